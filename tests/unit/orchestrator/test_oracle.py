"""The oracle of fault tests: a history in order passes, and each promise that is broken is told under its name."""

import json

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.orchestrator.testing.oracle import Effect, History, Seen, Violation, violations

USAGE = {"input_tokens": 10, "output_tokens": 2, "cost_microusd": 7}
ENDED_MS = 10_000


def event(seq, kind, data=None, attempt=1, run_id="r"):
    message = pb.Event(
        seq=seq, type=kind, data_json=json.dumps(data or {}).encode(), attempt=attempt, run_id=run_id, provisional=kind == "message_delta"
    )
    message.occurred_at.FromMilliseconds(1_000 + seq)
    return message


def delta(seq, text, attempt=1, step=1):
    return event(seq, "message_delta", {"text": text, "message_id": f"r/{step}"}, attempt)


def taken_over():
    """A run whose owner was lost mid-stream, after a tool call."""
    return [
        event(1, "run_queued", attempt=0), event(2, "run_started"), event(3, "step_started", {"step": 1}),
        event(4, "usage", {"step": 1, **USAGE}),
        event(5, "tool_call_started", {"call_id": "c", "tool": "send_mail", "arguments": {"nonce": "n"}}),
        event(6, "tool_call_completed", {"call_id": "c", "tool": "send_mail"}), event(7, "step_completed", {"step": 1}),
        event(8, "step_started", {"step": 2}), delta(9, "some", step=2), delta(10, " other", step=2),
        event(11, "attempt_superseded", {"from_seq": 9}, 2), event(12, "step_started", {"step": 2}, 2), delta(13, "all", 2, step=2),
        delta(14, " well", 2, step=2), event(15, "usage", {"step": 2, **USAGE}, 2),
        event(16, "message_completed", {"message_id": "r/2", "text": "all well"}, 2), event(17, "step_completed", {"step": 2}, 2),
        event(18, "run_finished", {"output_text": "all well"}, 2),
    ]  # fmt: skip


def record(**fields):
    usage = {"input_tokens": 20, "output_tokens": 4, "cost_microusd": 14, "model_calls": 2, "tool_calls": 1}
    values = {
        "run_id": "r", "status": pb.RUN_STATUS_SUCCEEDED, "attempt": 2, "first_seq": 1, "terminal_seq": 18, "output_text": "all well",
        "usage": usage, **fields,
    }  # fmt: skip
    run = pb.Run(**values)
    run.ended_at.FromMilliseconds(ENDED_MS)
    return run


MAIL = Effect("r", "send_mail", "n", "r/1/0", 1_005, False)


def history(log=None, run=None, **fields):
    log = taken_over() if log is None else log
    values = {"accepted": frozenset("r"), "effects": [MAIL], "seen": [Seen("r", list(taken_over()), ended=True)], **fields}
    return History("t", log, {"r": run or record()}, **values)


def told(given):
    return {violation.invariant for violation in violations(given)}


def renumbered(log):
    return [event(i, e.type, json.loads(e.data_json), e.attempt, e.run_id) for i, e in enumerate(log, 1)]


def test_a_history_in_order_breaks_no_promise():
    assert violations(history()) == []


def test_an_accepted_run_without_a_record_is_lost():
    assert violations(History("t", [], {}, accepted=frozenset("r"))) == [Violation("A1", "r", "it was acknowledged and has no record")]


def test_an_accepted_run_that_never_ends_is_lost():
    run = record(status=pb.RUN_STATUS_RUNNING, terminal_seq=0)
    assert told(history(taken_over()[:10], run, seen=[])) == {"A1"}


def test_a_run_that_nothing_announced():
    assert "A1" in told(history(run=record(first_seq=2)))


def test_a_run_that_was_given_up_is_lost_where_nothing_but_the_store_was_away():
    given_up = record(status=pb.RUN_STATUS_FAILED, error=pb.RunError(reason="WORKER_LOST"), output_text="")
    log = [*taken_over()[:-1], event(18, "run_failed", {}, 2)]
    assert told(history(log, given_up, seen=[])) == set()
    assert told(history(log, given_up, seen=[], none_given_up=True)) == {"A1"}


@pytest.mark.parametrize(
    "log",
    [
        [*taken_over(), event(19, "run_finished", {"output_text": "all well"}, 2)],
        [*taken_over(), event(19, "warning", {"code": "late"}, 2)],
        taken_over()[:17],
        [*taken_over()[:17], event(18, "run_failed", {}, 2)],
        [*taken_over()[:17], event(18, "run_finished", {"output_text": "another text"}, 2)],
    ],
    ids=["two ends", "an event after the end", "no end", "another end", "another text"],
)
def test_an_end_that_is_not_the_one_end(log):
    assert told(history(log, seen=[])) == {"A2"}


@pytest.mark.parametrize("log", [taken_over()[:7] + taken_over()[8:], taken_over()[:7] + taken_over()[6:]], ids=["a gap", "a number twice"])
def test_numbers_with_a_gap_or_a_repetition(log):
    assert "A3" in told(history(log, seen=[]))


FAR = 10**13


def promoted(log=None):
    """As taken_over, but for a primary that was lost with its last text, of which clients were shown two words more."""
    log = taken_over() if log is None else log
    gap = event(FAR, "log_gap", {"from_seq": 11}, 0, "")
    return [*log[:10], gap, *(event(FAR + i, e.type, json.loads(e.data_json), e.attempt) for i, e in enumerate(log[10:], 1))]


def shown_and_lost(log=None):
    log = promoted() if log is None else log
    return [*log[:10], delta(11, " lost", step=2), delta(12, " words", step=2), *log[10:]]


def test_numbers_that_a_log_gap_declares_and_what_was_shown_and_lost_break_no_promise():
    run = record(terminal_seq=FAR + 8)
    seen = [
        Seen("r", shown_and_lost(), ended=True), Seen("r", shown_and_lost()[:12]), Seen("r", promoted()[10:], after_seq=12, ended=True),
        Seen("r", [e for e in promoted() if e.type in ("usage", "log_gap")], types=frozenset({"usage"}), ended=True),
    ]  # fmt: skip
    assert violations(history(promoted(), run, seen=seen)) == []


def test_an_end_that_a_filter_hides_is_the_lost_one_only_where_the_log_gap_came_later():
    run, kinds, log = record(terminal_seq=FAR + 8), frozenset({"usage"}), promoted()
    for each in log[10:]:
        each.occurred_at.FromMilliseconds(each.occurred_at.ToMilliseconds() + 1_000)
    shown = [e for e in log[:10] if e.type == "usage"]
    gap_ms = log[10].occurred_at.ToMilliseconds()
    assert told(history(log, run, seen=[Seen("r", shown, types=kinds, ended=True, ended_ms=gap_ms - 1)])) == set()
    assert told(history(log, run, seen=[Seen("r", shown, types=kinds, ended=True, ended_ms=gap_ms)])) == {"A6"}
    whole = [e for e in taken_over() if e.type == "usage"]
    assert told(history(seen=[Seen("r", whole, types=kinds, ended=True, ended_ms=ENDED_MS)])) == set()
    assert told(history(seen=[Seen("r", whole, types=kinds, ended=True, ended_ms=1)])) == {"A6"}


def test_a_log_gap_that_declares_something_else():
    log = promoted()
    log[10] = event(FAR, "log_gap", {"from_seq": 12}, 0, "")
    assert "A3" in told(history(log, record(terminal_seq=FAR + 8), seen=[]))


def test_what_was_shown_is_void_only_up_to_the_log_gap():
    run = record(terminal_seq=FAR + 8)
    assert "A5" in told(history(promoted(), run, seen=[Seen("r", [*shown_and_lost(), delta(FAR + 9, "late")])]))
    assert "A6" in told(history(promoted(), run, seen=[Seen("r", [e for e in promoted() if e.type != "log_gap"], ended=True)]))


def test_a_former_owner_that_writes():
    log = taken_over()
    log.insert(15, event(0, "warning", {"code": "zombie"}, 1))
    assert told(history(renumbered(log), record(terminal_seq=19), seen=[])) == {"A4"}


def test_an_owner_that_the_record_does_not_know():
    assert told(history(run=record(attempt=1))) == {"A4"}


def test_two_runs_of_a_thread_at_work_at_once():
    log = taken_over()
    log.insert(13, event(0, "run_started", run_id="s"))
    assert "A4" in told(history(renumbered(log), record(terminal_seq=19), seen=[]))


def test_what_was_shown_and_is_not_in_the_log():
    shown = taken_over()
    shown[12] = delta(13, "al", 2, step=2)
    assert told(history(seen=[Seen("r", shown, ended=True)])) == {"A5"}


def test_text_of_two_attempts_that_nothing_tells_apart():
    log = taken_over()
    del log[10]
    assert told(history(renumbered(log), record(terminal_seq=17), seen=[])) == {"A5"}


@pytest.mark.parametrize("index", [3, 4, 5, 6, 15, 16], ids=lambda index: taken_over()[index].type)
def test_a_thing_that_is_told_twice(index):
    log = taken_over()
    log.insert(index, log[index])
    assert "A5" in told(history(renumbered(log), record(terminal_seq=19), seen=[]))


def test_a_superseded_attempt_that_names_no_text():
    log = taken_over()
    log[10] = event(11, "attempt_superseded", {"from_seq": 8}, 2)
    assert told(history(log, seen=[])) == {"A5"}


def test_an_event_that_may_be_taken_back_and_is_no_text():
    log = taken_over()
    log[14].provisional = True
    assert told(history(log, seen=[])) == {"A5"}


def test_a_cancelled_run_that_keeps_another_text_than_it_showed():
    log = [*taken_over()[:10], event(11, "run_cancelled", {"output_text": "some"})]
    usage = {"input_tokens": 10, "output_tokens": 2, "cost_microusd": 7, "model_calls": 1, "tool_calls": 1}
    run = record(status=pb.RUN_STATUS_CANCELLED, terminal_seq=11, output_text="some", usage=usage)
    assert told(history(log, run, seen=[])) == {"A5"}


@pytest.mark.parametrize(
    "shown",
    [
        taken_over()[:5] + taken_over()[6:],
        taken_over()[:6] + taken_over()[5:],
        taken_over()[:-1],
        [*taken_over()[:6], taken_over()[7], taken_over()[6], *taken_over()[8:]],
    ],
    ids=["an event missing", "an event twice", "the end missing", "out of order"],
)
def test_a_client_that_saw_something_else_than_the_log(shown):
    assert told(history(seen=[Seen("r", shown, ended=True)])) == {"A6"}


def test_a_client_that_is_cut_off_may_have_seen_less_and_one_with_a_filter_sees_what_it_asked_for():
    filtered = [e for e in taken_over() if e.type == "message_delta"]
    kinds = frozenset({"message_delta"})
    assert told(history(seen=[Seen("r", taken_over()[:4]), Seen("r", filtered, types=kinds, ended=True)])) == set()
    assert told(history(seen=[Seen("r", filtered[1:], types=kinds, ended=True)])) == {"A6"}
    assert told(history(seen=[Seen("r", taken_over(), types=kinds, ended=True)])) == {"A6"}


def test_a_cursor_older_than_the_log_is_told_of_the_gap():
    log = taken_over()[6:]
    kept = {"oldest_seq": 7, "effects": [], "accepted": frozenset()}
    run = record(usage={"input_tokens": 10, "output_tokens": 2, "cost_microusd": 7, "model_calls": 1})
    assert told(history(log, run, seen=[Seen("", log, ended=True)], **kept)) == {"A7"}
    assert told(history(log, run, seen=[Seen("", log, ended=True, gap_to=7)], **kept)) == set()


@pytest.mark.parametrize(
    "effects",
    [
        [MAIL, MAIL],
        [MAIL, MAIL._replace(key="r/1/1", repeatable=True)],
        [MAIL, MAIL._replace(nonce="never asked for")],
        [],
    ],
    ids=["done twice", "done under two keys", "done unannounced", "told and not done"],
)
def test_side_effects_that_are_not_what_the_log_tells(effects):
    assert told(history(effects=effects)) == {"A8"}


def test_what_may_be_repeated_may_be_done_twice_under_its_key():
    again = MAIL._replace(repeatable=True)
    assert told(history(effects=[again, again])) == set()


def test_a_tool_that_is_started_after_an_acknowledged_cancel():
    cancelled = {"effects": [MAIL._replace(at_ms=9_000)], "cancels": {"r": 5_000}, "run": record(cancel_requested=True)}
    assert "A8" in told(history(**cancelled))


def test_usage_that_was_lost_with_an_owner():
    usage = {"input_tokens": 10, "output_tokens": 2, "cost_microusd": 7, "model_calls": 1, "tool_calls": 1}
    assert told(history(run=record(usage=usage))) == {"A9"}


def test_a_run_has_used_what_the_runs_of_other_agents_have_used_that_it_waited_for():
    theirs = {"input_tokens": 5, "output_tokens": 1, "cost_microusd": 3, "model_calls": 1, "tool_calls": 2}
    made = event(9, "child_run_started", {"call_id": "c", "run_id": "r.1.0", "thread_id": "th_r.1.0", "agent": "a"})
    told_of = event(10, "child_run_finished", {"run_id": "r.1.0", "usage": theirs})
    log = [*taken_over()[:8], made, told_of, event(11, "run_cancelled", {"output_text": ""})]

    def judged(model_calls):
        usage = {"input_tokens": 15, "output_tokens": 3, "cost_microusd": 10, "model_calls": model_calls, "tool_calls": 3}
        run = record(status=pb.RUN_STATUS_CANCELLED, terminal_seq=11, output_text="", usage=usage)
        return told(history(log, run, seen=[]))

    assert [judged(calls) for calls in (1, 2, 3)] == [{"A9"}, set(), {"A9"}]


@pytest.mark.parametrize("code", ["limit.tool_calls", "policy.approval_rejected", "policy.approval_expired", "policy.approval_required"])
def test_a_run_has_used_the_calls_that_were_started_and_not_refused(code):
    log = [*taken_over()[:8], event(9, "run_cancelled", {"output_text": ""})]
    usage = {"input_tokens": 10, "output_tokens": 2, "cost_microusd": 7, "model_calls": 1}

    def judged(log, used):
        run = record(status=pb.RUN_STATUS_CANCELLED, terminal_seq=len(log), output_text="", usage={**usage, "tool_calls": used})
        return told(history(log, run, seen=[]))

    assert [judged(log, used) for used in (0, 1, 3)] == [{"A9"}, set(), {"A9"}]
    beyond = [
        event(9, "tool_call_started", {"call_id": "c2", "tool": "send_mail", "arguments": {}}),
        event(10, "tool_call_failed", {"call_id": "c2", "tool": "send_mail", "error": {"code": code, "message": ""}}),
        event(11, "run_cancelled", {"output_text": ""}),
    ]
    assert [judged(log[:8] + beyond, used) for used in (0, 1, 2)] == [{"A9"}, set(), {"A9"}]


def test_a_cancel_that_a_run_outlives():
    assert told(history(run=record(cancel_requested=True), cancels={"r": ENDED_MS - 5_000})) == {"A10"}
    assert told(history(run=record(cancel_requested=False), cancels={"r": ENDED_MS - 100})) == {"A10"}
    assert told(history(run=record(cancel_requested=True), cancels={"r": ENDED_MS - 100})) == set()
