"""The oracle of fault tests, where people and other runs have a say: each promise that is broken is told under its name."""

import json

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.orchestrator.testing.oracle import Decided, Effect, History, Seen, violations

ASKED = "r/1/0"
USED = {"input_tokens": 10, "output_tokens": 2, "cost_microusd": 7}


def event(seq, kind, data=None, attempt=1, run_id="r"):
    message = pb.Event(seq=seq, type=kind, data_json=json.dumps(data or {}).encode(), attempt=attempt, run_id=run_id)
    message.occurred_at.FromMilliseconds(1_000 + seq)
    return message


def logged(*entries, run_id="r"):
    """A log of one run: each entry a type and its data."""
    return [event(seq, kind, data, attempt=0 if kind == "run_queued" else 1, run_id=run_id) for seq, (kind, data) in enumerate(entries, 1)]


QUEUED, STARTED = ("run_queued", {"input": [{"role": "user", "text": "go"}]}), ("run_started", {})
RAISED = ("interrupt_raised", {"interrupt_id": ASKED, "kind": "tool_call", "call_id": "c", "arguments": {"nonce": "n"}})
CALLED = ("tool_call_started", {"call_id": "c", "tool": "send_mail", "arguments": {"nonce": "n"}})
DONE = ("tool_call_completed", {"call_id": "c", "tool": "send_mail"})
FINISHED = ("run_finished", {"output_text": "well"})
FAILED, CANCELLED = ("run_failed", {"error": {}}), ("run_cancelled", {"output_text": ""})
STATUS = {"run_finished": pb.RUN_STATUS_SUCCEEDED, "run_failed": pb.RUN_STATUS_FAILED, "run_cancelled": pb.RUN_STATUS_CANCELLED}


def resolved(outcome="approved", key="k", nonce="n", **fields):
    return ("interrupt_resolved", {"interrupt_id": ASKED, "outcome": outcome, "reason": key, "arguments": {"nonce": nonce}, **fields})


def record(log, run_id="r", **fields):
    own = [e for e in log if e.run_id == run_id]
    status = STATUS.get(own[-1].type, pb.RUN_STATUS_RUNNING)
    refused = sum(e.type == "tool_call_failed" for e in own)
    usage = {"tool_calls": sum(e.type == "tool_call_started" for e in own) - refused}
    for e in own:
        if e.type == "child_run_finished":
            usage = {name: usage.get(name, 0) + value for name, value in {**usage, **json.loads(e.data_json)["usage"]}.items()}
            usage["tool_calls"] = sum(e.type == "tool_call_started" for e in own) + json.loads(e.data_json)["usage"].get("tool_calls", 0)
    values = {
        "run_id": run_id, "status": status, "attempt": 1, "first_seq": own[0].seq, "usage": usage,
        "terminal_seq": own[-1].seq if own[-1].type in STATUS else 0, "output_text": "well" if own[-1].type == "run_finished" else "",
    }  # fmt: skip
    run = pb.Run(**{**values, **fields})
    run.ended_at.FromMilliseconds(9_000)
    return run


def history(log, **fields):
    runs = fields.pop("runs", None) or {name: record(log, name) for name in {e.run_id for e in log}}
    return History("t", log, runs, **fields)


def told(given):
    return {violation.invariant for violation in violations(given)}


# --- questions and decisions ---

MAIL = Effect("r", "send_mail", "n", ASKED, 1_006, False)
APPROVED = (QUEUED, STARTED, RAISED, resolved(), CALLED, DONE, FINISHED)
MADE = Decided(ASKED, "k", "approve", "n")
REFUSED = Decided(ASKED, "k2", "reject", refused="ALREADY_DECIDED")


def decided(entries=APPROVED, decisions=(MADE, REFUSED), effects=(MAIL,), **fields):
    return history(logged(*entries), decisions=decisions, effects=effects, guarded={("r", "send_mail")}, **fields)


def test_a_decision_that_holds_and_one_that_came_too_late_break_no_promise():
    assert violations(decided()) == []


def test_a_call_that_was_refused_and_never_made_breaks_no_promise():
    entries = (QUEUED, STARTED, RAISED, resolved("rejected"), CALLED, ("tool_call_failed", {**DONE[1], "error": _rejected()}), FINISHED)
    assert violations(decided(entries, [Decided(ASKED, "k", "reject")], [])) == []


def _rejected():
    return {"code": "policy.approval_rejected", "message": ""}


@pytest.mark.parametrize(
    ("entries", "broken"),
    [
        ((*APPROVED[:3], RAISED, *APPROVED[3:]), "A5"),
        ((*APPROVED[:3], *APPROVED[4:]), "A5"),
        ((*APPROVED[:2], *APPROVED[3:]), "A5"),
        ((*APPROVED[:4], resolved("rejected", "k2"), *APPROVED[4:]), "A8"),
    ],
    ids=["asked twice", "never answered", "never asked", "answered twice"],
)
def test_questions_that_are_not_asked_and_answered_once(entries, broken):
    assert broken in told(decided(entries, []))


def test_a_question_that_the_end_of_its_run_leaves_open():
    entries = (*APPROVED[:3], CANCELLED)
    assert told(decided(entries, [], [])) == {"A5"}
    over = ("interrupt_resolved", {"interrupt_id": ASKED, "kind": "tool_call", "outcome": "cancelled", "by": ""})
    assert told(decided((*APPROVED[:3], over, CANCELLED), [], [])) == set()
    # One that was about to be asked is told as over.
    assert told(decided((QUEUED, STARTED, over, CANCELLED), [], [])) == set()
    lost = record(logged(*APPROVED[:3], FAILED), error=pb.RunError(reason="WORKER_LOST"))
    assert told(decided((*APPROVED[:3], FAILED), [], [], runs={"r": lost})) == set()


@pytest.mark.parametrize(
    ("decisions", "broken"),
    [
        ([MADE, Decided(ASKED, "k2", "approve", "n")], "A8"),
        ([Decided(ASKED, "k2", "approve", "n")], "A1"),
        ([MADE._replace(refused="RUN_ENDED")], "A8"),
        ([REFUSED], "A8"),
        ([MADE._replace(verb="reject", nonce="")], "A8"),
        ([MADE._replace(nonce="other")], "A8"),
        ([MADE, REFUSED._replace(refused="APPROVAL_EXPIRED")], "A8"),
        ([MADE, REFUSED._replace(refused="RUN_CANCELLED")], "A8"),
    ],
    ids=[
        "two acknowledged",
        "lost",
        "refused and holds",
        "refused for nothing",
        "taken as another",
        "of other arguments",
        "expired",
        "over",
    ],
)
def test_decisions_whose_answer_is_not_what_holds(decisions, broken):
    assert broken in told(decided(decisions=decisions))


def test_a_decision_that_is_refused_as_late_where_the_time_has_passed():
    entries = (QUEUED, STARTED, RAISED, resolved("expired", ""), CALLED, ("tool_call_failed", {**DONE[1], "error": _expired()}), FINISHED)
    assert told(decided(entries, [REFUSED._replace(refused="APPROVAL_EXPIRED")], [])) == set()


def _expired():
    return {"code": "policy.approval_expired", "message": ""}


def test_a_guarded_call_that_nobody_approved():
    entries = (QUEUED, STARTED, RAISED, resolved("rejected"), CALLED, DONE, FINISHED)
    assert told(decided(entries, [Decided(ASKED, "k", "reject")])) == {"A8"}
    # With other arguments than those that were approved.
    assert told(decided((*APPROVED[:3], resolved(nonce="n2"), *APPROVED[4:]), [])) == {"A8"}
    assert "A8" in told(decided(effects=[MAIL._replace(at_ms=1_003)]))


def test_an_approved_call_that_is_never_made():
    assert told(decided((*APPROVED[:4], FINISHED), effects=[])) == {"A8"}
    # A run that ends otherwise need not come to it.
    assert told(decided((*APPROVED[:4], CANCELLED), effects=[])) == set()


# --- messages ---

GOT, APPLIED = ("steer_received", {"number": 1}), ("steer_applied", {"number": 1, "step": 2, "text": "more"})
DROPPED = ("steer_dropped", {"number": 1})
STEERED = (QUEUED, STARTED, GOT, APPLIED, FINISHED)


def second(text):
    """Another message."""
    return ("steer_received", {"number": 2}), ("steer_applied", {"number": 2, "step": 3, "text": text})


def steered(*entries, steers=None, **fields):
    return told(history(logged(*entries), steers={"r": {1: "more"}} if steers is None else steers, said={"more", "go"}, **fields))


def test_a_message_that_is_told_as_applied_or_as_dropped_breaks_no_promise():
    assert steered(*STEERED) == set()
    assert steered(QUEUED, STARTED, GOT, DROPPED, FINISHED) == set()


def test_a_message_within_text_that_is_taken_back_is_not_taken_back():
    shown = ("message_delta", {"text": "a", "message_id": "r/1"})
    log = logged(QUEUED, STARTED, shown, GOT, ("attempt_superseded", {"from_seq": 3}), APPLIED, FINISHED)
    log[2].provisional = True
    for late in log[4:]:
        late.attempt = 2
    assert told(history(log, steers={"r": {1: "more"}}, runs={"r": record(log, attempt=2)})) == set()


@pytest.mark.parametrize(
    ("entries", "broken"),
    [
        ((QUEUED, STARTED, FINISHED), {"A1"}),
        ((QUEUED, STARTED, GOT, FINISHED), {"A1"}),
        ((QUEUED, STARTED, GOT, APPLIED, DROPPED, FINISHED), {"A5"}),
        ((QUEUED, STARTED, GOT, GOT, APPLIED, FINISHED), {"A5"}),
        ((QUEUED, STARTED, GOT, ("steer_applied", {"number": 1, "text": "other"}), FINISHED), {"A8"}),
        ((QUEUED, STARTED, GOT, APPLIED, *second("more"), FINISHED), {"A8"}),
        ((QUEUED, STARTED, GOT, APPLIED, *second("go"), FINISHED), {"A8"}),
    ],
    ids=["not in the log", "neither", "both", "received twice", "another text", "said twice", "said as input and again"],
)  # fmt: skip
def test_messages_that_are_lost_or_doubled(entries, broken):
    assert steered(*entries) == broken


def test_a_message_that_is_told_of_and_was_never_received():
    assert steered(QUEUED, STARTED, APPLIED, FINISHED, steers={}) == {"A5"}


def test_a_wish_to_stop_that_is_lost_or_told_twice():
    stop = ("stop_received", {"number": 1})
    assert told(history(logged(QUEUED, STARTED, stop, FINISHED), stops={"r": {1}})) == set()
    assert told(history(logged(QUEUED, STARTED, FINISHED), stops={"r": {1}})) == {"A1"}
    assert told(history(logged(QUEUED, STARTED, stop, stop, FINISHED))) == {"A5"}


# --- plans ---


@pytest.mark.parametrize(
    ("plans", "broken"),
    [
        ([{"version": 1}, {"version": 2, "number": 1}], set()),
        ([{"version": 1}, {"version": 1}], {"A5"}),
        ([{"version": 1, "number": 1}, {"version": 2, "number": 1}], {"A8"}),
    ],
    ids=["in order", "a version twice", "a change twice"],
)
def test_plans(plans, broken):
    assert told(history(logged(QUEUED, STARTED, *(("plan_updated", plan) for plan in plans), FINISHED))) == broken


def test_a_plan_that_the_next_owner_tells_again_breaks_no_promise():
    log = logged(QUEUED, STARTED, ("plan_updated", {"version": 1}), ("plan_updated", {"version": 1}), FINISHED)
    for late in log[3:]:
        late.attempt = 2
    assert told(history(log, runs={"r": record(log, attempt=2)})) == set()


# --- child runs ---

CHILD = "r.1.0"
ASKS = ("tool_call_started", {"call_id": "c", "tool": "delegate_to_a", "arguments": {"task": "t"}})
MADE_CHILD = ("child_run_started", {"call_id": "c", "run_id": CHILD, "thread_id": f"th_{CHILD}", "agent": "a"})
CHILD_ENDED = ("child_run_finished", {"run_id": CHILD, "status": "succeeded", "usage": USED})
DELEGATED = (QUEUED, STARTED, ASKS, MADE_CHILD, CHILD_ENDED, FINISHED)


def child(status=pb.RUN_STATUS_SUCCEEDED, **fields):
    return {CHILD: pb.Run(**{"run_id": CHILD, "status": status, "parent_run_id": "r", "usage": USED, **fields})}


def test_a_child_run_that_is_made_once_and_ends_breaks_no_promise():
    assert violations(history(logged(*DELEGATED), children=child())) == []


@pytest.mark.parametrize(
    ("entries", "broken"),
    [
        ((*DELEGATED[:4], MADE_CHILD, *DELEGATED[4:]), {"A8"}),
        ((*DELEGATED[:4], ("child_run_started", {**MADE_CHILD[1], "run_id": "r.1.1", "thread_id": "th_r.1.1"}), CANCELLED), {"A8"}),
        ((*DELEGATED[:3], ("child_run_started", {**MADE_CHILD[1], "run_id": "r.x", "thread_id": "th_r.x"}), CANCELLED), {"A8"}),
        ((*DELEGATED[:3], ("child_run_started", {**MADE_CHILD[1], "thread_id": "th_other"}), CANCELLED), {"A8"}),
        ((*DELEGATED[:4], FINISHED), {"A1"}),
        ((*DELEGATED[:3], *DELEGATED[4:]), {"A5"}),
        ((*DELEGATED[:4], ("child_run_finished", {**CHILD_ENDED[1], "usage": {}}), *DELEGATED[4:]), {"A5"}),
    ],
    ids=["made twice", "two for a call", "another id", "another thread", "not waited for", "ended, never made", "ended twice"],
)
def test_child_runs_that_are_not_made_and_ended_once(entries, broken):
    assert told(history(logged(*entries))) == broken


@pytest.mark.parametrize(
    ("children", "broken"),
    [
        (child(pb.RUN_STATUS_CANCELLED), {"A2"}),
        (child(usage={"input_tokens": 11}), {"A9"}),
        (child(parent_run_id="s"), {"A8"}),
        (child(pb.RUN_STATUS_RUNNING), {"A2", "A10"}),
    ],
    ids=["another end", "other usage", "of another run", "outlives its parent"],
)
def test_child_runs_whose_records_say_something_else(children, broken):
    assert told(history(logged(*DELEGATED), children=children)) == broken


# --- runs that were refused, and ends that nobody asked for ---


def test_a_run_that_was_refused_and_is_made():
    assert told(history(logged(*STEERED), refused={"r"})) == {"A1"}
    assert told(history(logged(*STEERED), refused={"s"})) == set()


def test_a_run_that_is_cancelled_without_anybody_asking():
    log = logged(QUEUED, STARTED, CANCELLED)
    assert told(history(log, ending=set())) == {"A10"}
    assert told(history(log, ending={"r"})) == told(history(log)) == set()


def test_whoever_watches_a_thread_is_shown_the_whole_log_or_what_it_chose():
    log = [*logged(*STEERED), *(later(e, 5) for e in logged(*STEERED[:2], FINISHED, run_id="s"))]
    chosen = [e for e in log if e.type == "run_started"]
    kinds = frozenset({"run_started"})
    assert told(history(log, seen=[Seen("", log, ended=True), Seen("", chosen, types=kinds, ended=True)])) == set()
    assert told(history(log, seen=[Seen("", log[:-1], ended=True)])) == {"A6"}
    assert told(history(log, seen=[Seen("", chosen[1:], types=kinds, ended=True)])) == {"A6"}
    assert told(history(log, seen=[Seen("", log, types=kinds, ended=True)])) == {"A6"}


def later(given, by):
    return event(given.seq + by, given.type, json.loads(given.data_json), given.attempt, given.run_id)
