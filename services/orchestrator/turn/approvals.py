"""What a turn asks of people: calls that need an approval before they start, and calls of which nobody knows what became of them.

All of it stands in the checkpoint, by the number of the call within its step: `ask` are questions to be put, `wait` those put and not
answered, `answers` what came back; `waived` are calls that the agent's rules approve, `refused` those that are not made, with why, and
`again` counts the retries of a call of unknown outcome. A step goes on with what was answered only when nothing waits any more.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import orjson

from services.common.approval import Approval, canonical, digest
from services.common.errors import BulkheadError
from services.orchestrator.agent_status import WAITING_APPROVAL
from services.orchestrator.approvals.policy import ApprovalRule
from services.orchestrator.approvals.records import COMMAND, OUTCOME_UNKNOWN, TOOL_CALL, Interrupt, Who
from services.orchestrator.ports import Checked, ToolDefinition, ToolOutcome
from services.orchestrator.records import Command
from services.orchestrator.turn.guarding import CODE
from services.orchestrator.turn.patience import patiently
from services.orchestrator.turn.state import PendingCall, RunParked, RunStopped, Turn
from services.orchestrator.workflows.definition import REQUEST_APPROVAL

PART = "approvals"
REQUIRED, REJECTED, EXPIRED = "policy.approval_required", "policy.approval_rejected", "policy.approval_expired"
# Looks again after this where the store's clock is behind ours.
AGAIN_MS = 250


def planned(
    turn: Turn, calls: Sequence[PendingCall], known: Mapping[str, ToolDefinition], unwanted: Mapping[int, Sequence[str]] | None = None
) -> None:
    """Notes for each call of a new step whether it needs an approval; `unwanted` are refused, with code and message. Calls that are refused
    anyhow need none, nor do those of tools of the turn's own: they have no effect outside, and what another agent is asked to do is asked
    about in its own run."""
    part: dict[str, Any] = {}
    for call in calls:
        tool = known.get(call.name)
        if tool is not None and not call.over and call.number in (unwanted or {}):
            part.setdefault("refused", {})[str(call.number)] = list((unwanted or {})[call.number])
            continue
        if tool is None or tool.own or call.over:
            continue
        why = _why(turn, tool)
        if why and turn.agent.approval.ask and turn.services.interrupts is not None:
            part.setdefault("ask", {})[str(call.number)] = {"kind": TOOL_CALL, "reason": why}
        elif why:
            message = "This tool needs the approval of a person, and this agent has nobody to ask. Go on without it."
            part.setdefault("refused", {})[str(call.number)] = [REQUIRED, message]
        elif tool.approval:
            part.setdefault("waived", []).append(call.number)
    if part or turn.state.parts.get(PART):
        turn.state.parts[PART] = part


def _why(turn: Turn, tool: ToolDefinition) -> str:
    cost, tier = turn.state.usage["cost_microusd"], turn.principal.tier
    why = turn.agent.approval.of(tool.name).why(tool.approval, tier, cost)
    if not why and turn.services.interrupts is not None:
        why = turn.services.interrupts.demanded(tier, tool.name, cost, repeatable=tool.repeatable)
    return why


def _of_pending(turn: Turn) -> dict[str, Any]:
    """What is known of calls that are pending; a strategy may have dropped some since."""
    part = turn.state.parts.get(PART)
    if not part:
        return {}
    numbers = {str(call.number) for call in turn.state.pending}
    for name in ("ask", "wait", "answers"):
        if name in part:
            part[name] = {number: known for number, known in part[name].items() if number in numbers}
    return part


def held(turn: Turn) -> frozenset[int]:
    """Calls that do not go on now: they wait for an answer, or for those of others to be answered."""
    part = _of_pending(turn)
    if not part:
        return frozenset()
    waiting = {**part.get("ask", {}), **part.get("wait", {})}
    return frozenset(int(number) for number in {**waiting, **(part.get("answers", {}) if waiting else {})})


def answered(turn: Turn) -> bool:
    """Whether people have answered about calls of this step."""
    return bool((turn.state.parts.get(PART) or {}).get("answers"))


def refusal(turn: Turn, call: PendingCall) -> ToolOutcome | None:
    """How a call ended that is not made, or of which a person said how it ended."""
    part, number = turn.state.parts.get(PART), str(call.number)
    if not part:
        return None
    if number in (refused := part.get("refused", {})):
        code, message = refused[number]
        return ToolOutcome("failed", code=code, message=message)
    answer = part.get("answers", {}).get(number)
    if answer is None:
        return None
    reason = f" The reason given: {answer['reason']}" if answer["reason"] else ""
    match answer["outcome"]:
        case "rejected":
            return ToolOutcome("failed", code=REJECTED, message=f"A person refused this call, so it was not made.{reason}")
        case "expired" if answer["kind"] == TOOL_CALL:
            return ToolOutcome("failed", code=EXPIRED, message="Nobody approved this call in time, so it was not made.")
        case "expired":
            return ToolOutcome("unknown")
        case "done":
            return ToolOutcome("done", answer["output"].encode(), version=call.version)
        case "failed":
            return ToolOutcome("failed", code="outcome.failed", message=f"A person found that this call did not take effect.{reason}")
    return None


def not_made(turn: Turn, call: PendingCall) -> bool:
    """Whether a call is refused before anything of it is made."""
    outcome = refusal(turn, call)
    return outcome is not None and (outcome.code in (REQUIRED, REJECTED, EXPIRED) or outcome.code.startswith(CODE))


def retrying(turn: Turn, call: PendingCall) -> bool:
    """Whether a person asked for a call of unknown outcome to be made again, which its key and its approval bound to once."""
    answer = (turn.state.parts.get(PART) or {}).get("answers", {}).get(str(call.number))
    return answer is not None and answer["outcome"] == "retry"


def token(turn: Turn, call: PendingCall) -> str:
    """The signed approval of a call; '' where it has none and needs none."""
    part, number, interrupts = turn.state.parts.get(PART), str(call.number), turn.services.interrupts
    if not part or interrupts is None:
        return ""
    answer = part.get("answers", {}).get(number)
    if answer is None and call.number not in part.get("waived", ()):
        return ""
    # A rule that waives the approval of a tool does so whatever its arguments are.
    approved = answer["digest"] if answer is not None else ""
    key = f"{turn.ref.run_id}/{turn.state.step}/{call.number}"
    by = tuple(answer["by"]) if answer is not None else ()
    again = int(part.get("again", {}).get(number, 0)) if answer is not None and answer["outcome"] == "retry" else 0
    return interrupts.sign(Approval(turn.ref.tenant, turn.ref.run_id, key, call.name, call.version, approved, by, again))


def remark(turn: Turn, call: PendingCall) -> str:
    """What the model is told before the result of a call that a person changed."""
    answer = (turn.state.parts.get(PART) or {}).get("answers", {}).get(str(call.number))
    if answer is None or not answer["edited"]:
        return ""
    return f"[A person changed the arguments of this call to {answer['arguments']}]\n"


def doubt(turn: Turn, call: PendingCall) -> bool:
    """Has a person asked what became of a call of unknown outcome; False where the model is told that instead."""
    part, number = turn.state.parts.setdefault(PART, {}), str(call.number)
    answer = part.get("answers", {}).get(number)
    if turn.services.interrupts is None or not turn.agent.approval.ask or turn.agent.approval.unknown_outcome != "ask":
        return False
    if answer is not None and answer["kind"] == OUTCOME_UNKNOWN and answer["outcome"] == "expired":
        return False
    part.get("answers", {}).pop(number, None)
    part.setdefault("ask", {})[number] = {"kind": OUTCOME_UNKNOWN, "reason": "outcome_unknown"}
    return True


def ended(turn: Turn, call: PendingCall) -> None:
    """Forgets what was asked about a call that has its result."""
    part = turn.state.parts.get(PART)
    if not part:
        return
    for name in ("ask", "wait", "answers", "refused", "again"):
        found = part.get(name)
        if found is not None and found.pop(str(call.number), None) is not None and not found:
            del part[name]
    if call.number in part.get("waived", ()):
        part["waived"].remove(call.number)
    if not any(part.values()):
        del turn.state.parts[PART]


def decided(turn: Turn, command: Command) -> None:
    """Takes an answer into the state; one to a question of before changes nothing."""
    data, part = command.data, turn.state.parts.get(PART) or {}
    number = str(data["call"])
    asked = part.get("wait", {}).get(number) or part.get("ask", {}).get(number)
    if asked is None or data["step"] != turn.state.step or asked["kind"] != data["kind"] or turn.state.phase != "tools":
        return
    for name in ("wait", "ask"):
        if part.get(name, {}).pop(number, None) is not None and not part[name]:
            del part[name]
    names = ("kind", "outcome", "arguments", "digest", "edited", "by", "reason", "output", "on_expiry")
    part.setdefault("answers", {})[number] = {name: data[name] for name in names}
    call = next((call for call in turn.state.pending if call.number == data["call"]), None)
    if call is not None and data["kind"] == TOOL_CALL:
        call.arguments = data["arguments"]
    elif call is not None and data["outcome"] == "retry":
        again = part.setdefault("again", {})
        again[number] = int(again.get(number, 0)) + 1


def cancels(turn: Turn) -> bool:
    """Whether somebody answered that the run is to end."""
    answers = (turn.state.parts.get(PART) or {}).get("answers", {})
    return any(answer["outcome"] == "cancel_run" for answer in answers.values())


async def put(turn: Turn) -> None:
    """Puts the questions that are to be put: durable before anybody hears of them, and each once, however often this is done.

    Raises Fenced, Overloaded; RunStopped where a run fails because nobody answered.
    """
    part, interrupts = _of_pending(turn), turn.services.interrupts
    if not part or interrupts is None:
        return
    if any(a["outcome"] == "expired" and a["on_expiry"] == "fail" for a in part.get("answers", {}).values()):
        raise RunStopped("APPROVAL_EXPIRED", "Nobody answered in time what this run asked for.")
    asked = dict(part.get("ask", {}))
    if not asked:
        return
    questions = []
    for number, asks in asked.items():
        call = next(call for call in turn.state.pending if call.number == int(number))
        question = await _question(turn, call, asks)
        if question is None:
            del part["ask"][number]
        else:
            questions.append(question)
    if questions:
        raised = partial(interrupts.raised, turn.ref, turn.writer.epoch, turn.writer.trace_id, questions)
        for interrupt in await patiently(turn, raised):
            number = str(interrupt.call)
            del part["ask"][number]
            part.setdefault("wait", {})[number] = {
                "id": interrupt.interrupt_id, "kind": interrupt.kind, "expires_ms": interrupt.expires_ms
            }  # fmt: skip
    if not part["ask"]:
        del part["ask"]
    await turn.writer.checkpoint(turn.snapshot(), turn.unstored())


async def _question(turn: Turn, call: PendingCall, asks: Mapping[str, str]) -> Interrupt | None:
    """The question about a call; None where the call is refused instead, and nobody has to be asked."""
    state, part = turn.state, turn.state.parts[PART]
    unknown = asks["kind"] == OUTCOME_UNKNOWN
    again = int(part.get("again", {}).get(str(call.number), 0))
    checked = await _checked(turn, call)
    if isinstance(checked, Checked) and not checked.violations:
        arguments, schema = checked.arguments, checked.schema
    elif unknown:
        arguments, schema = _canonical(call), b"{}"
    else:
        # Nobody should approve what the tool would refuse.
        part.setdefault("refused", {})[str(call.number)] = _wrong(call, checked)
        return None
    rule: ApprovalRule = turn.agent.approval.of(call.name)
    if unknown and not rule.four_eyes:
        rule = turn.agent.approval
    now, who = int(time.time() * 1000), rule.approvers
    return Interrupt(
        _id(turn, call.number, asks["kind"]), asks["kind"], turn.ref.run_id, turn.ref.thread_id, state.step, call.number,
        call.call_id, turn.spec.principal, call.name, call.version, arguments.decode(), digest(arguments), schema.decode(), asks["reason"],
        now, now + int(rule.expires_s * 1000), "reject" if unknown else rule.on_expiry,
        Who(tuple(who.users), tuple(who.scopes), who.requester), rule.four_eyes, again,
    )  # fmt: skip


async def _checked(turn: Turn, call: PendingCall) -> Checked | BulkheadError:
    if call.name == REQUEST_APPROVAL:
        # No tool of the executor: a step of a workflow, whose question is made by the workflow.
        return Checked(_canonical(call), [], b"{}")
    turn.enter_call()
    try:
        return await turn.services.tools.check(call.name, call.version, (call.arguments or "{}").encode())
    except BulkheadError as error:
        turn.check_time()
        return error


def _canonical(call: PendingCall) -> bytes:
    return canonical(orjson.loads(call.arguments or "{}"))


def _wrong(call: PendingCall, checked: Checked | BulkheadError) -> list[str]:
    if isinstance(checked, BulkheadError):
        message = f"It could not be found out whether the arguments fit ({checked.reason.lower()}), so nobody was asked for the approval."
        return ["tool_unavailable" if checked.retryable else f"refused.{checked.reason.lower()}", message]
    places = ", ".join(dict.fromkeys(f"{path or '/'} ({keyword})" for path, keyword in checked.violations))
    return ["input.invalid", f"The arguments do not fit the schema of {call.name}: {places}."]


async def wait(turn: Turn) -> None:
    """For a step of which nothing can go on: ends the questions whose time has passed, else parks the run until the first one's has.

    Raises RunParked, Overloaded.
    """
    part, interrupts = _of_pending(turn), turn.services.interrupts
    if part.get("ask"):
        # Put in the next round.
        return
    assert part.get("wait"), "something goes on, or waits for an answer"
    assert interrupts is not None
    waiting = list(part.get("wait", {}).values())
    now = int(time.time() * 1000)
    late = [asked["id"] for asked in waiting if asked["expires_ms"] <= now]
    if late:
        turn.hear(await patiently(turn, partial(interrupts.expire, turn.ref, late, turn.heard)))
    if turn.commands:
        return
    turn.tell_rest(WAITING_APPROVAL)
    raise RunParked(max(now + AGAIN_MS, min(asked["expires_ms"] for asked in waiting)))


async def withdraw(turn: Turn, call: PendingCall) -> bool:
    """Takes back what is asked about a call that is not to be made; False where somebody has answered meanwhile. Raises Overloaded."""
    part, number, interrupts = _of_pending(turn), str(call.number), turn.services.interrupts
    asked = part.get("wait", {}).get(number)
    if asked is None or interrupts is None:
        # It was answered, and waits for the answers about others.
        return number in part.get("answers", {})
    return await interrupts.withdraw(turn.ref, asked["id"], turn.principal.user)


async def catch_up(turn: Turn) -> None:
    """Hears of the answers that came while the run was on its way to its end, before `report`. Raises Overloaded."""
    if _of_pending(turn) and turn.services.interrupts is not None:
        turn.hear(await turn.services.interrupts.expire(turn.ref, (), turn.heard))


def report(turn: Turn) -> None:
    """Tells that the questions of a run that ends are not to be answered any more: also one of which a lost owner did not write down that
    it was put, so that nobody is shown a question for ever."""
    part = _of_pending(turn)
    # An answer that was not absorbed any more has told of itself.
    answered = {command.data["interrupt_id"] for command in turn.commands if command.kind == COMMAND}
    asked = {known["id"]: known["kind"] for known in part.get("wait", {}).values()}
    for number, known in part.get("ask", {}).items():
        asked[_id(turn, int(number), known["kind"])] = known["kind"]
    for interrupt_id, kind in asked.items():
        if interrupt_id not in answered:
            turn.writer.emit("interrupt_resolved", {"interrupt_id": interrupt_id, "kind": kind, "outcome": "cancelled", "by": ""})


def _id(turn: Turn, number: int, kind: str) -> str:
    """The id of the question about a call, which every owner of the run gives it."""
    key = f"{turn.ref.run_id}/{turn.state.step}/{number}"
    again = int(turn.state.parts[PART].get("again", {}).get(str(number), 0))
    return f"{key}/unknown/{again + 1}" if kind == OUTCOME_UNKNOWN else key
