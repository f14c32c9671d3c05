"""The judge of fault tests: given all that is known of a thread afterwards, which of the promises A1 to A10 were broken.

    broken = violations(History("th", log=log, runs=runs, accepted={"r1"}, effects=counter.effects, seen=seen))
    assert not broken

It looks at nothing but records from outside: the log, the run records, what each client was shown, and what a tool that is
never killed counted. What durability.md calls A1 to A10 stands above the function that looks for it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from itertools import pairwise

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.orchestrator.testing.history import LOG_GAP, TERMINAL, Decided, Effect, History, Seen, Violation
from services.orchestrator.testing.oracle_control import GIVEN_UP, control_violations

__all__ = ["LOG_GAP", "TERMINAL", "Decided", "Effect", "History", "Seen", "Violation", "violations"]
# How long an acknowledged cancel may take to reach whoever works on the run: a heartbeat, on a loaded machine.
REACHES_WITHIN_MS = 2_000
# Events that tell of one thing each, by the member that names the thing. A step may be announced again by its next owner.
_ONCE = {
    "run_queued": "", "run_started": "", "step_completed": "step", "usage": "step", "message_completed": "message_id",
    "tool_call_started": "call_id",
}  # fmt: skip
# What a call is refused with that is one more than the run may make, and one that a person has not approved: none of it is used.
OVER = "limit.tool_calls"
REFUSED = frozenset({OVER, "policy.approval_required", "policy.approval_rejected", "policy.approval_expired"})
_OUTCOMES = ("tool_call_completed", "tool_call_failed")
_COUNTED = ("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_microusd")


def violations(history: History, reaches_within_ms: int = REACHES_WITHIN_MS) -> list[Violation]:
    """Every promise that `history` shows broken; runs must have had the time to end."""
    return [
        *_accepted(history), *_one_end(history), *_numbers(history), *_one_writer(history), *_visible(history), *_once(history),
        *_text(history), *_same_as_log(history), *_effects(history, reaches_within_ms), *_budgets(history),
        *_cancels(history, reaches_within_ms), *control_violations(history),
    ]  # fmt: skip


def _accepted(history: History) -> Iterator[Violation]:
    """A1: an acknowledged run has a record, a place in the log, and an end."""
    for run_id in sorted(history.accepted):
        run = history.runs.get(run_id)
        events = history.by_run.get(run_id, [])
        if run is None:
            yield Violation("A1", run_id, "it was acknowledged and has no record")
            continue
        if history.oldest_seq == 1 and (not events or events[0].type != "run_queued" or events[0].seq != run.first_seq):
            yield Violation("A1", run_id, "its log does not begin with run_queued at first_seq")
        if run.status not in TERMINAL.values():
            yield Violation("A1", run_id, f"it was acknowledged and never ended: {pb.RunStatus.Name(run.status)}")
        if history.none_given_up and run.error.reason == GIVEN_UP:
            yield Violation("A1", run_id, "it was acknowledged and given up, though nothing but the store was away")


def _one_end(history: History) -> Iterator[Violation]:
    """A2: one terminal event, the last of its run, that says what the record says."""
    for run_id, events in history.by_run.items():
        ends = [event for event in events if event.type in TERMINAL]
        run = history.runs.get(run_id)
        if len(ends) > 1:
            yield Violation("A2", run_id, f"{len(ends)} terminal events at {[event.seq for event in ends]}")
        if ends and events[-1] is not ends[-1]:
            yield Violation("A2", run_id, f"{events[-1].type} at {events[-1].seq} after the end at {ends[-1].seq}")
        if run is None or not run_id:
            continue
        if bool(ends) != (run.status in TERMINAL.values()):
            yield Violation("A2", run_id, f"the record says {pb.RunStatus.Name(run.status)}, the log has {len(ends)} ends")
        elif ends:
            said = orjson.loads(ends[-1].data_json)
            if TERMINAL[ends[-1].type] != run.status or ends[-1].seq != run.terminal_seq:
                yield Violation("A2", run_id, f"{ends[-1].type} at {ends[-1].seq}, the record says otherwise")
            if "output_text" in said and said["output_text"] != run.output_text:
                yield Violation("A2", run_id, "the record's text is not that of its terminal event")


def _numbers(history: History) -> Iterator[Violation]:
    """A3: 1, 2, 3 … without gap or repetition, but for what a log_gap declares: from there on the numbers are above all before."""
    expected = history.oldest_seq
    for event in history.log:
        declared = event.type == LOG_GAP and orjson.loads(event.data_json)["from_seq"] == expected < event.seq
        if event.seq != expected and not declared:
            yield Violation("A3", event.run_id, f"{event.seq} stands where {expected} belongs")
        expected = event.seq + 1


def _one_writer(history: History) -> Iterator[Violation]:
    """A4: no owner writes after its successor, and a thread's runs work one after the other."""
    latest: dict[str, int] = {}
    at_work = ""
    for event in history.log:
        if not event.attempt:
            continue
        if event.attempt < latest.get(event.run_id, 0):
            yield Violation("A4", event.run_id, f"attempt {event.attempt} wrote {event.seq} after attempt {latest[event.run_id]}")
        latest[event.run_id] = max(event.attempt, latest.get(event.run_id, 0))
        if at_work not in ("", event.run_id):
            yield Violation("A4", event.run_id, f"it wrote {event.seq} while {at_work} was at work in the thread")
        at_work = "" if event.type in TERMINAL else event.run_id
    for run_id, attempt in latest.items():
        run = history.runs.get(run_id)
        if run is not None and attempt > run.attempt:
            yield Violation("A4", run_id, f"attempt {attempt} wrote, the record knows {run.attempt}")


def _visible(history: History) -> Iterator[Violation]:
    """A5: what anybody saw is in the log, or is named as void; what may be taken back is text, and says so."""
    written = {event.seq: event for event in history.log}
    for seen in history.seen:
        for event in seen.events:
            if event.seq >= history.oldest_seq and written.get(event.seq) != event and not history.void(event.seq):
                yield Violation("A5", event.run_id, f"{event.type} at {event.seq} was shown and is not what the log holds")
    for event in history.log:
        if event.provisional != (event.type == "message_delta"):
            yield Violation("A5", event.run_id, f"{event.type} at {event.seq} has provisional={event.provisional}")


def _once(history: History) -> Iterator[Violation]:
    """A5: what was taken back is named; nothing else is told twice."""
    for run_id, events in history.standing.items():
        # A step has one answer, beside calls that were lost.
        single = [(event.type, data) for event, data in events if event.type in _ONCE and not data.get("lost")]
        told = Counter((kind, str(data.get(_ONCE[kind], ""))) for kind, data in single)
        told.update(("tool outcome", data["call_id"]) for event, data in events if event.type in _OUTCOMES)
        steps = Counter((event.attempt, data["step"]) for event, data in events if event.type == "step_started")
        told.update({("step_started of one attempt", str(step)): count for (_, step), count in steps.items() if count > 1})
        for (kind, name), count in told.items():
            if count > 1:
                yield Violation("A5", run_id, f"{kind} {name} is told {count} times and none of them was taken back")
        firsts = {event.seq for event in history.by_run[run_id] if event.type == "message_delta"}
        for event, data in events:
            if event.type == "attempt_superseded" and data["from_seq"] not in firsts:
                yield Violation("A5", run_id, f"attempt_superseded at {event.seq} names {data['from_seq']}, which is no text of the run")


def _text(history: History) -> Iterator[Violation]:
    """A5: the text that was shown and stands is the text that was meant: two attempts are never mixed."""
    for run_id, events in history.standing.items():
        shown: dict[str, str] = defaultdict(str)
        for event, data in events:
            if event.type == "message_delta":
                shown[data["message_id"]] += data["text"]
            elif event.type == "message_completed":
                if (text := shown.pop(data["message_id"], "")) != data["text"]:
                    yield Violation("A5", run_id, f"{data['message_id']} was shown as {text!r} and is {data['text']!r}")
            elif event.type == "run_cancelled" and "".join(shown.values()) != data["output_text"]:
                yield Violation("A5", run_id, f"it was cancelled with {data['output_text']!r} and had shown {''.join(shown.values())!r}")


def _same_as_log(history: History) -> Iterator[Violation]:
    """A6: every client saw the log, whole and in order, filters included. A7: what is gone is told as a gap."""
    for seen in history.seen:
        chosen = {*seen.types, LOG_GAP}
        events = history.shown_to(seen.run_id)
        expected = [event.seq for event in events if event.seq > seen.after_seq and (not seen.types or event.type in chosen)]
        got = [event.seq for event in seen.events]
        if any(after <= before for before, after in pairwise(got)):
            yield Violation("A6", seen.run_id, f"shown out of order or twice: {_around(got)}")
        begins = max(seen.after_seq + 1, seen.gap_to)
        if not seen.gap_to and seen.after_seq + 1 < history.oldest_seq and not seen.run_id:
            yield Violation("A7", seen.run_id, f"asked for what follows {seen.after_seq}, of which the log keeps {history.oldest_seq} on")
        # Whoever was shown an end that a promotion lost had left when the log went on.
        lost_end = history.void(got[-1] if got else 0)
        if not lost_end and seen.ended_ms and seen.types and not seen.types & TERMINAL.keys():
            # Which end ended it, its filter hides.
            later = [event for event in events if event.occurred_at.ToMilliseconds() > seen.ended_ms]
            lost_end = any(event.type == LOG_GAP for event in later)
            if not lost_end and any(event.type in TERMINAL for event in later):
                yield Violation("A6", seen.run_id, "the stream ended before the run did")
        until = expected[-1:] if seen.ended and not lost_end else got[-1:]
        missed = [seq for seq in expected if begins <= seq <= (until or [0])[0] and seq not in set(got)]
        if missed:
            yield Violation("A6", seen.run_id, f"never shown: {missed[:10]}")
        if extra := [seq for seq in got if seq in {event.seq for event in history.log} and seq not in set(expected)]:
            yield Violation("A6", seen.run_id, f"shown and not asked for: {extra[:10]}")


def _around(numbers: list[int]) -> list[int]:
    at = next(i for i in range(1, len(numbers)) if numbers[i] <= numbers[i - 1])
    return numbers[max(0, at - 2) : at + 2]


def _effects(history: History, reaches_within_ms: int) -> Iterator[Violation]:
    """A8: what the counter counted against what the log tells."""
    counted: dict[tuple[str, str], list[Effect]] = defaultdict(list)
    for effect in history.effects:
        counted[effect.run_id, effect.nonce].append(effect)
        acknowledged = history.cancels.get(effect.run_id)
        if acknowledged is not None and effect.at_ms > acknowledged + reaches_within_ms:
            late = effect.at_ms - acknowledged
            yield Violation("A8", effect.run_id, f"{effect.tool} {effect.nonce} was started {late} ms after an acknowledged cancel")
    calls = {
        (run_id, str(data["call_id"])): str(data["arguments"].get("nonce", ""))
        for run_id, events in history.standing.items() for event, data in events
        if event.type == "tool_call_started" and isinstance(data["arguments"], dict)
    }  # fmt: skip
    announced = {(run_id, nonce) for (run_id, _), nonce in calls.items()}
    for (run_id, nonce), effects in counted.items():
        keys = {effect.key for effect in effects}
        if len(keys) > 1:
            yield Violation("A8", run_id, f"{nonce} was done under {len(keys)} keys: {sorted(keys)}")
        elif len(effects) > 1 and not effects[0].repeatable:
            yield Violation("A8", run_id, f"{effects[0].tool} {nonce} was done {len(effects)} times")
        if (run_id, nonce) not in announced:
            yield Violation("A8", run_id, f"{nonce} was done and the log tells of no such call")
    for run_id, events in history.standing.items():
        for event, data in events:
            nonce = calls.get((run_id, str(data.get("call_id"))), "")
            if event.type == "tool_call_completed" and nonce and not counted.get((run_id, nonce)):
                yield Violation("A8", run_id, f"{nonce} is told as done and never was")


def _budgets(history: History) -> Iterator[Violation]:
    """A9: what the record says was used is what its log says, whoever wrote it."""
    for run_id, run in history.runs.items():
        events = history.standing.get(run_id, [])
        if run.status not in TERMINAL.values() or not events:
            continue
        used = [data for event, data in events if event.type == "usage"]
        expected = {name: sum(data.get(name, 0) for data in used) for name in _COUNTED}
        expected["model_calls"] = sum(data.get("model_calls", 1) for data in used)
        # Such a call is announced and refused, and none of it is used.
        refused = sum(event.type == "tool_call_failed" and data["error"]["code"] in REFUSED for event, data in events)
        expected["tool_calls"] = sum(event.type == "tool_call_started" for event, _ in events) - refused
        # What the runs of other agents have used is this one's as well, once each has told of its end.
        for theirs in (data["usage"] for event, data in events if event.type == "child_run_finished"):
            for name in expected:
                expected[name] += theirs.get(name, 0)
        wrong = {name: (getattr(run.usage, name), value) for name, value in expected.items() if getattr(run.usage, name) != value}
        if wrong:
            yield Violation("A9", run_id, f"{pb.RunStatus.Name(run.status)}, the record against the log: {wrong}")


def _cancels(history: History, reaches_within_ms: int) -> Iterator[Violation]:
    """A10: a cancel stays asked for, and a run that went on long enough to hear of it ends cancelled."""
    for run_id, acknowledged in history.cancels.items():
        run = history.runs.get(run_id)
        if run is None or run.status not in TERMINAL.values():
            continue
        # It may have ended as it was asked for; the log says when.
        ended_ms = run.ended_at.ToMilliseconds()
        if run.status != pb.RUN_STATUS_CANCELLED and ended_ms > acknowledged + reaches_within_ms:
            late = ended_ms - acknowledged
            yield Violation("A10", run_id, f"it ended as {pb.RunStatus.Name(run.status)} {late} ms after an acknowledged cancel")
        if not run.cancel_requested and ended_ms > acknowledged:
            yield Violation("A10", run_id, "the wish for its end is not kept")
