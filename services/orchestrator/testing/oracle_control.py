"""What the oracle judges where people and other runs have a say: questions and decisions, messages that steer, plans, child runs.

Events that others than a run's owner write (a decision, the receipt of a message) are in no attempt, so the whole log counts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.orchestrator.testing.history import TERMINAL, Decided, History, Violation

OUTCOMES = {"approve": "approved", "edit": "approved", "reject": "rejected", "done": "done", "failed": "failed"}
# How a decision may be refused because the run, or the question, was over first.
_OVER = {"APPROVAL_EXPIRED": ("expired", "cancelled"), "RUN_CANCELLED": ("cancelled",), "RUN_ENDED": ("cancelled",)}
# A run that was given up tells of nothing but that.
GIVEN_UP = "WORKER_LOST"
_STATUS = {"succeeded": pb.RUN_STATUS_SUCCEEDED, "failed": pb.RUN_STATUS_FAILED, "cancelled": pb.RUN_STATUS_CANCELLED}


def control_violations(history: History) -> list[Violation]:
    """Every promise of these that `history` shows broken."""
    return [
        *_questions(history), *_decisions(history), *_guarded(history), *_steers(history), *_stops(history), *_said_once(history),
        *_plans(history), *_children(history), *_child_records(history), *_uncalled(history),
    ]  # fmt: skip


def _by_id(history: History, kind: str) -> dict[str, list[tuple[pb.Event, Any]]]:
    found: dict[str, list[tuple[pb.Event, Any]]] = defaultdict(list)
    for event, data in history.told(kind):
        # What the client of a run is asked for is answered by the next run, and has no id.
        if "interrupt_id" in data:
            found[data["interrupt_id"]].append((event, data))
    return found


def _questions(history: History) -> Iterator[Violation]:
    """A5: a question is asked once, answered once, and the end of its run leaves none open."""
    raised, resolved = _by_id(history, "interrupt_raised"), _by_id(history, "interrupt_resolved")
    for name, asked in raised.items():
        run_id = name.partition("/")[0]
        if len(asked) > 1:
            yield Violation("A5", run_id, f"{name} was asked {len(asked)} times")
        if not resolved[name] and history.ended(run_id) and history.runs[run_id].error.reason != GIVEN_UP:
            yield Violation("A5", run_id, f"the run has ended, and nobody was told what became of {name}")
    for name, answers in resolved.items():
        run_id, outcomes = name.partition("/")[0], [data["outcome"] for _, data in answers]
        if len(answers) > 1:
            yield Violation("A8", run_id, f"{name} was answered {len(answers)} times: {outcomes}")
        # A question that was about to be put when its run ended may be told as over.
        if not raised[name] and set(outcomes) - {"cancelled"}:
            yield Violation("A5", run_id, f"{name} was answered and never asked")


def _decisions(history: History) -> Iterator[Violation]:
    """A1: a decision that was acknowledged holds. A8: one that was refused does not, and of several one does."""
    resolved = _by_id(history, "interrupt_resolved")
    every: dict[str, list[Decided]] = defaultdict(list)
    for decided in history.decisions:
        every[decided.approval_id].append(decided)
    for name, those in every.items():
        run_id = name.partition("/")[0]
        holding = {data.get("reason", ""): data for _, data in resolved.get(name, ())}
        outcomes = {data["outcome"] for data in holding.values()}
        taken = {decided.key for decided in those if not decided.refused}
        if len(taken) > 1:
            yield Violation("A8", run_id, f"{len(taken)} decisions on {name} were acknowledged: {sorted(taken)}")
        for decided in those:
            holds = holding.get(decided.key)
            if decided.refused and holds is not None:
                yield Violation("A8", run_id, f"{decided} was refused, and holds")
            elif decided.refused == "ALREADY_DECIDED" and not taken:
                yield Violation("A8", run_id, f"{decided} was refused, and nobody has decided")
            elif decided.refused in _OVER and outcomes and not outcomes.intersection(_OVER[decided.refused]):
                yield Violation("A8", run_id, f"{decided} was refused, and {name} is {sorted(outcomes)}")
            elif not decided.refused and holds is None:
                yield Violation("A1", run_id, f"{decided} was acknowledged, and is not what holds: {sorted(outcomes)}")
            elif holds is not None and holds["outcome"] != OUTCOMES[decided.verb]:
                yield Violation("A8", run_id, f"{decided} was taken as {holds['outcome']}")
            elif holds is not None and decided.nonce and _nonce(holds) != decided.nonce:
                yield Violation("A8", run_id, f"{decided} was taken for {_nonce(holds)}")


def _nonce(data: Any) -> str:
    arguments = data.get("arguments")
    return str(arguments.get("nonce", "")) if isinstance(arguments, dict) else ""


def _guarded(history: History) -> Iterator[Violation]:
    """A8: a call that needs an approval is made only behind one, with its arguments; and is made where the run goes on to its answer."""
    approved: dict[tuple[str, str], pb.Event] = {}
    for event, data in history.told("interrupt_resolved"):
        if data["outcome"] == "approved" and (nonce := _nonce(data)):
            approved[event.run_id, nonce] = event
    done = set()
    for effect in history.effects:
        done.add((effect.run_id, effect.nonce))
        if (effect.run_id, effect.tool) not in history.guarded:
            continue
        event = approved.get((effect.run_id, effect.nonce))
        if event is None:
            yield Violation("A8", effect.run_id, f"{effect.tool} {effect.nonce} was done, and nobody has approved it")
        elif effect.at_ms < event.occurred_at.ToMilliseconds():
            early = event.occurred_at.ToMilliseconds() - effect.at_ms
            yield Violation("A8", effect.run_id, f"{effect.tool} {effect.nonce} was done {early} ms before it was approved")
    for run_id, nonce in approved:
        if history.succeeded(run_id) and (run_id, nonce) not in done:
            yield Violation("A8", run_id, f"{nonce} was approved and never done")


def _steers(history: History) -> Iterator[Violation]:
    """A1: a message that was acknowledged is in the log. A5: of each, either that it was applied or that it was dropped is told, once."""
    received = Counter((event.run_id, data["number"]) for event, data in history.told("steer_received"))
    applied = {(event.run_id, data["number"]): data["text"] for event, data in history.told("steer_applied")}
    became = Counter((event.run_id, data["number"]) for event, data in history.told("steer_applied", "steer_dropped"))
    for (run_id, number), count in (received | became).items():
        if count > 1 or not received[run_id, number]:
            times = f"received {received[run_id, number]} times, told of {became[run_id, number]} times"
            yield Violation("A5", run_id, f"message {number} was {times}")
        elif not became[run_id, number] and history.ended(run_id):
            yield Violation("A1", run_id, f"message {number} was neither applied nor dropped")
    for run_id, texts in history.steers.items():
        for number, text in texts.items():
            if not received[run_id, number]:
                yield Violation("A1", run_id, f"message {number} was acknowledged and is not in the log")
            elif applied.get((run_id, number), text) != text:
                yield Violation("A8", run_id, f"message {number} was applied as {applied[run_id, number]!r} and said {text!r}")


def _stops(history: History) -> Iterator[Violation]:
    """A1: a wish to stop generating that was acknowledged is in the log. A5: once."""
    received = Counter((event.run_id, data["number"]) for event, data in history.told("stop_received"))
    acknowledged = Counter((run_id, number) for run_id, numbers in history.stops.items() for number in numbers)
    for (run_id, number), count in (received | acknowledged).items():
        if not received[run_id, number]:
            yield Violation("A1", run_id, f"the wish to stop {number} was acknowledged and is not in the log")
        elif count > 1:
            yield Violation("A5", run_id, f"the wish to stop {number} was received {count} times")


def _said_once(history: History) -> Iterator[Violation]:
    """A8: what was sent once is said once, as the input of a run or to steer one, however often it was asked for."""
    places: dict[str, list[str]] = defaultdict(list)
    for event, data in history.told("run_queued", "steer_applied"):
        text = data["text"] if event.type == "steer_applied" else data["input"][-1]["text"] if data.get("input") else ""
        if text in history.said:
            places[text].append(f"{event.type} of {event.run_id}")
    for text, where in places.items():
        if len(where) > 1:
            yield Violation("A8", "", f"{text!r} was said {len(where)} times: {where}")


def _plans(history: History) -> Iterator[Violation]:
    """A5: a version of a plan is told once by one owner, and a caller's change is taken or dropped, not both."""
    told = Counter((e.run_id, e.attempt, data["version"]) for e, data in history.told("plan_updated"))
    for (run_id, attempt, version), count in told.items():
        if count > 1:
            yield Violation("A5", run_id, f"version {version} of the plan is told {count} times in attempt {attempt}")
    changes = Counter((e.run_id, data["number"]) for e, data in history.told("plan_updated", "plan_update_dropped") if "number" in data)
    for (run_id, number), count in changes.items():
        if count > 1:
            yield Violation("A8", run_id, f"change {number} of the plan is told {count} times")


def _children(history: History) -> Iterator[Violation]:
    """A8: each call that asks another agent has one child run, whose id follows from it. A5: its end is told once."""
    for run_id, entries in history.standing.items():
        started = [data for event, data in entries if event.type == "child_run_started"]
        ended = Counter(data["run_id"] for event, data in entries if event.type == "child_run_finished")
        for what in ("run_id", "call_id"):
            for name, count in Counter(data[what] for data in started).items():
                if count > 1:
                    yield Violation("A8", run_id, f"{count} child runs were made for {what} {name}")
        children = {data["run_id"] for data in started}
        for data in started:
            step, _, number = data["run_id"].removeprefix(f"{run_id}.").partition(".")
            if not (step.isdigit() and number.isdigit()) or data["thread_id"] != f"th_{data['run_id']}":
                yield Violation("A8", run_id, f"the id of the child run {data['run_id']} does not follow from its call")
            if history.succeeded(run_id) and not ended[data["run_id"]]:
                yield Violation("A1", run_id, f"it has answered and never heard of the end of {data['run_id']}")
        for child, count in ended.items():
            if count > 1 or child not in children:
                yield Violation("A5", run_id, f"the end of {child} is told {count} times, its start {child in children}")


def _child_records(history: History) -> Iterator[Violation]:
    """A2, A9: what a run says of its child is what the child's record says. A10: none outlives the run that asked for it."""
    ends = {data["run_id"]: data for _, data in history.told("child_run_finished")}
    parents = {data["run_id"]: event.run_id for event, data in history.told("child_run_started")}
    for child, run in history.children.items():
        parent, said = parents.get(child, ""), ends.get(child)
        if run.parent_run_id != parent:
            yield Violation("A8", child, f"it is of {run.parent_run_id!r}, and told by {parent!r}")
        if said is not None and _STATUS.get(said["status"]) != run.status:
            yield Violation("A2", child, f"{parent} was told of {said['status']}, its record says {pb.RunStatus.Name(run.status)}")
        wrong = {name: value for name, value in (said or {}).get("usage", {}).items() if getattr(run.usage, name) != value}
        if wrong:
            yield Violation("A9", child, f"{parent} was told that it used {wrong}, its record says otherwise")
        if history.ended(parent) and run.status not in TERMINAL.values():
            yield Violation("A10", child, f"it is {pb.RunStatus.Name(run.status)}, and {parent} has ended")


def _uncalled(history: History) -> Iterator[Violation]:
    """A1: what was refused is not made. A10: nothing is cancelled of which nobody asked for the end."""
    for run_id in sorted(history.refused):
        if run_id in history.by_run:
            yield Violation("A1", run_id, f"its client was told that it is not made, and it is: {history.by_run[run_id][0].type}")
    if history.ending is None:
        return
    for run_id, run in history.runs.items():
        if run.status == pb.RUN_STATUS_CANCELLED and run_id not in history.ending:
            yield Violation("A10", run_id, "it was cancelled, and nobody has asked for that")
