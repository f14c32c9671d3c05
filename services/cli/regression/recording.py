"""A recorded thread as a test: what was said to it becomes the input, what came of it becomes what must come of it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.cli.failure import CommandFailure
from services.cli.regression.form import Call, Conversation, Decision, Expected, Said, Turn

MOST_SAID = 20
# Of one digit nearly every text has one.
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
LEAST_DIGITS = 2
# The results of such a call are others the next time.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d|\d\d:\d\d")
STATUS = {"run_finished": "succeeded", "run_failed": "failed"}


def recorded(name: str, events: Sequence[Mapping[str, Any]], *, exact: bool = False) -> tuple[Conversation, list[str]]:
    """The test of a thread whose whole log is `events`, and what could not become a part of it. With `exact` the arguments of tool calls
    and the answers must be the same. Raises CommandFailure where nothing is left."""
    back = {run_id for event in events if event["type"] == "thread_rolled_back" for run_id in (event["data"].get("run_ids") or [])}
    turns, left_out = [], []
    for run_id, of_run in _by_run(events).items():
        why = _why_not(of_run, run_id in back)
        if why:
            left_out.append(f"{run_id}: {why}")
            continue
        turn, doubts = _turn(of_run, exact)
        turns.append(turn)
        left_out += [f"{run_id}: {doubt}" for doubt in doubts]
    if not turns:
        raise CommandFailure(f"{name}: nothing in it can become a test" + (f" ({'; '.join(left_out)})" if left_out else ""))
    return Conversation(version=1, name=name, turns=turns), left_out


def _by_run(events: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The events of each run, in the order in which the runs were accepted."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        run_id = event.get("run_id")
        if run_id and (event["type"] == "run_queued" or run_id in found):
            found.setdefault(str(run_id), []).append(event)
    return found


def _why_not(events: Sequence[Mapping[str, Any]], rolled_back: bool) -> str:
    types = {event["type"] for event in events}
    if rolled_back:
        return "was rolled back"
    if not _data(events, "run_queued").get("input"):
        return "goes on from a fork, without an input of its own"
    if "run_cancelled" in types:
        return "was cancelled"
    if not types & set(STATUS):
        return "has not ended in this thread"
    return ""


def _turn(events: Sequence[Mapping[str, Any]], exact: bool) -> tuple[Turn, list[str]]:
    queued = _data(events, "run_queued")
    said = [Said(role=message["role"], content=message.get("text", message.get("content", ""))) for message in queued["input"]]
    ending = next(event for event in reversed(events) if event["type"] in STATUS)
    data = ending["data"]
    calls = _calls(events)
    answer = str(data.get("output_text") or "")
    failed = ending["type"] == "run_failed"
    expect = Expected(
        status=STATUS[ending["type"]],
        error=(data.get("error") or {}).get("reason") if failed else None,
        tools=[Call(tool=call["tool"], arguments=call["arguments"]) if exact else call["tool"] for call in calls],
        says=[] if failed or exact else _repeated(answer, events, said),
        cites=[] if failed else list(dict.fromkeys(c["title"] for c in data.get("citations") or [] if c.get("title"))),
        answer=answer if exact and not failed else None,
    )
    decisions, doubts = _decisions(events)
    if any(event["type"] == "steer_applied" for event in events):
        doubts.append("was steered while it was at work, which the test does not do")
    alone = said[0].content if len(said) == 1 and said[0].role == "user" and said[0].content else said
    return Turn(input=alone, agent=queued.get("agent") or None, expect=expect, approvals=decisions, recorded=answer or None), doubts


def _calls(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tool calls of a run, each once: the next owner of a run tells again of one that it makes again."""
    found: dict[str, dict[str, Any]] = {}
    for event in events:
        if event["type"] == "tool_call_started":
            data = event["data"]
            key = str(data.get("idempotency_key") or data.get("call_id"))
            arguments = data.get("arguments")
            found.setdefault(key, {"tool": str(data.get("tool")), "arguments": arguments if isinstance(arguments, dict) else {}})
    return list(found.values())


def _repeated(answer: str, events: Sequence[Mapping[str, Any]], said: Sequence[Said]) -> list[str]:
    """The numbers that the answer has from the results of tools: what an agent must not get wrong, however it puts it."""
    results = [json.dumps(event["data"].get("output"), ensure_ascii=False) for event in events if event["type"] == "tool_call_completed"]
    known = {number for result in results if not _MOMENT.search(result) for number in _NUMBER.findall(result)}
    asked = {number for message in said for number in _NUMBER.findall(message.content)}
    of_answer = dict.fromkeys(_NUMBER.findall(answer))
    return [n for n in of_answer if n in known and n not in asked and sum(c.isdigit() for c in n) >= LEAST_DIGITS][:MOST_SAID]


def _decisions(events: Sequence[Mapping[str, Any]]) -> tuple[list[Decision], list[str]]:
    asked = {event["data"].get("interrupt_id"): event["data"] for event in events if event["type"] == "interrupt_raised"}
    found, doubts = [], []
    for event in events:
        if event["type"] != "interrupt_resolved":
            continue
        answer = event["data"]
        question = asked.get(answer.get("interrupt_id"), {})
        verb, tool = answer.get("verb"), str(question.get("tool"))
        if question.get("kind") != "tool_call" or verb not in ("approve", "edit", "reject"):
            doubts.append(f"what it asked about {tool} was answered in a way that the test cannot repeat")
            continue
        edited = answer.get("arguments") if verb == "edit" else None
        decision = Decision(
            tool=tool, arguments=question.get("arguments") or {}, verb=verb, edited=edited, reason=str(answer.get("reason") or "")
        )
        found.append(decision)
    return found, doubts


def _data(events: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    return next((event["data"] for event in events if event["type"] == kind), {})
