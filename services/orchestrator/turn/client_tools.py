"""Tools that a run's client calls itself. The model is offered them beside the agent's own; a step that asks for one ends the run.

The agent's own calls of that step come first. What the run said is then left to the thread, in one write with its end, as what a run that
was cut off leaves (turn/carried.py): each call that waits stands there with the words that nothing came of it, so that a next run which
brings no result, of whatever version its owner is, tells its model so. A next run that brings the results puts them there instead.
"""

from collections.abc import Mapping, Sequence, Set
from typing import Any

import orjson

from services.orchestrator.agents import HAND_OFF, UPDATE_PLAN, AgentDefinition
from services.orchestrator.ports import Message, ToolDefinition, ToolRequest
from services.orchestrator.records import RunSpec
from services.orchestrator.turn.degradation import PART as LADDER
from services.orchestrator.turn.state import RunStopped, Turn

# Name of what is kept among the parts of a turn's state: the calls that `wait` for the client ({tool_call_id, name, arguments}), the
# `text` of their step and what that has `cited`. It is also the kind of the interrupt that tells of them.
PART = "client_tools"
FINISH_REASON = "tool_calls"
NOT_WAITING = "TOOL_CALLS_NOT_WAITING"
MOST_LOGGED_CHARS = 2_000
NO_RESULT = "The client gave no result of this call. It is not known whether it was made."
_GONE = "The calls that this input answers do not wait for an answer any more."
# Strategies whose steps are not the model's alone.
_WITHOUT = frozenset({"supervisor", "workflow"})
_NOTHING = b'{"type":"object","properties":{}}'
Call = Mapping[str, str]


def definitions(spec: RunSpec) -> list[ToolDefinition]:
    """The client's tools as the model is offered them."""
    return [
        ToolDefinition(
            tool["name"],
            "client",
            tool["description"],
            _schema(tool["parameters"]),
            own=True,
            client=True,
            strict=tool.get("strict", False),
        )
        for tool in spec.client_tools
    ]


def _schema(parameters: str) -> bytes:
    # Some providers want to be told of a tool that takes nothing that it takes an object.
    return _NOTHING if parameters == "{}" else parameters.encode()


def offers(agent: AgentDefinition) -> bool:
    """Whether runs of an agent can offer them, and hold their answer to a form."""
    return agent.strategy not in _WITHOUT


def own_names(agent: AgentDefinition) -> Set[str]:
    """Names of the agent's tools, those of its strategy among them."""
    brought = {UPDATE_PLAN} if agent.strategy == "plan_execute" else set[str]()
    return {tool.partition("@")[0] for tool in agent.tools} | brought | {HAND_OFF}


def choice(turn: Turn, tools: Sequence[ToolDefinition]) -> bytes:
    """OpenAI's tool_choice of the next model call, of which these are the tools: that of the run for its first one; empty: none."""
    raw = turn.spec.tool_choice
    if not raw or turn.state.step or not tools:
        return b""
    names = {tool.name for tool in tools}
    return raw.encode() if chosen(orjson.loads(raw)) <= names else b""


def chosen(wanted: Any) -> set[str]:
    """The names that a tool_choice gives."""
    if not isinstance(wanted, Mapping):
        return set()
    if wanted.get("type") == "function":
        return {wanted["function"]["name"]}
    return {tool["function"]["name"] for tool in wanted["allowed_tools"]["tools"]}


def forces(raw: bytes) -> bool:
    """Whether a tool_choice leaves a model nothing but to call a tool."""
    wanted = orjson.loads(raw) if raw else "auto"
    if isinstance(wanted, str):
        return wanted == "required"
    return wanted["type"] == "function" or wanted["allowed_tools"].get("mode") == "required"


def divided(
    requests: Sequence[ToolRequest], offered: Sequence[ToolDefinition], unwanted: Mapping[int, Sequence[str]]
) -> tuple[list[ToolRequest], dict[int, Sequence[str]], list[Call]]:
    """The calls of one answer: those that are made here, with those `unwanted` by their new places, and those that the client makes. One of
    the client's that is refused is answered here, as any other."""
    names = {tool.name for tool in offered if tool.client}
    here: list[ToolRequest] = []
    refused: dict[int, Sequence[str]] = {}
    waiting: list[Call] = []
    for place, request in enumerate(requests):
        if request.name in names and place not in unwanted:
            arguments = request.arguments.decode("utf-8", "replace")
            waiting.append({"tool_call_id": request.call_id, "name": request.name, "arguments": arguments})
            continue
        if place in unwanted:
            refused[len(here)] = unwanted[place]
        here.append(request)
    return here, refused, waiting


def hold(turn: Turn, calls: Sequence[Call], text: str, cited: Sequence[Mapping[str, Any]]) -> None:
    """Notes the calls that the run ends with once its own of this step are done, what was said with them, and the sources of that."""
    turn.state.parts[PART] = {"wait": [dict(call) for call in calls], "text": text, "cited": list(cited)}


def waiting(turn: Turn) -> list[Call]:
    """The calls that the run ends with; none while it goes on."""
    found: list[Call] = turn.state.parts.get(PART, {}).get("wait", [])
    return found


def said_with(turn: Turn) -> tuple[str, list[Mapping[str, Any]]]:
    """What the model said with them, and the sources of that."""
    part = turn.state.parts.get(PART, {})
    return part.get("text", ""), part.get("cited", [])


def carry(turn: Turn, said: str) -> bytes:
    """What the run leaves to the next one of its thread; `said` is what the user said up to here."""
    first, end = turn.state.parts.get(LADDER, {}).get("recalled", (1, 1))
    # The prompt is the agent's, and memory is asked anew.
    spoken = [*turn.messages[1:first], *turn.messages[end:]]
    return orjson.dumps(
        {
            "run_id": turn.ref.run_id, "step": turn.state.step, "agent": turn.spec.agent, "input": [dict(m) for m in turn.spec.input],
            "said": said, "plan": turn.state.plan, "citations": turn.state.citations, "tool_log": logged(turn),
            **open_end(spoken, waiting(turn)),
        }
    )  # fmt: skip


def open_end(spoken: Sequence[Message], calls: Sequence[Call]) -> dict[str, Any]:
    """`messages` of a conversation that ends with calls that wait, and which these are."""
    unanswered = [Message("tool", NO_RESULT, tool_call_id=call["tool_call_id"]) for call in calls]
    return {"messages": [m.encode().decode() for m in (*spoken, *unanswered)], "asks": [dict(call) for call in calls]}


def joined(carried: Mapping[str, Any], before: Sequence[Message], own: Sequence[Message]) -> list[Message]:
    """The conversation with what a next run is given: results in the places of the calls that they answer, then the rest. What it says as
    system comes first, once."""
    asked = {call["tool_call_id"] for call in carried.get("asks", ())}
    brought = {message.tool_call_id: message for message in own if message.role == "tool" and message.tool_call_id in asked}
    given = [brought.get(message.tool_call_id, message) if message.role == "tool" else message for message in before]
    rest = [message for message in own if not (message.role == "tool" and message.tool_call_id in brought)]
    leading = 0
    while leading < len(rest) and rest[leading].role == "system":
        leading += 1
    return [*(message for message in rest[:leading] if message not in given), *given, *rest[leading:]]


def check_waiting(turn: Turn) -> None:
    """Raises RunStopped where a run answers calls that another one has answered since it was accepted, or that were taken back."""
    asked = {call["tool_call_id"] for call in turn.carried.get("asks", ())}
    if turn.spec.answers and (not asked or not asked <= _answered(turn.spec.input)):
        raise RunStopped(NOT_WAITING, _GONE)


def _answered(said: Sequence[Mapping[str, Any]]) -> set[str]:
    return {message["tool_call_id"] for message in said if message["role"] == "tool"}


def logged(turn: Turn) -> list[dict[str, Any]]:
    """Tool calls of the whole turn as memory keeps them: those of the runs that it goes on from, the client's, and its own."""
    return [*logged_before(turn.carried, turn.spec.input), *turn.state.tool_log]


def logged_before(carried: Mapping[str, Any], said: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same without the run's own."""
    results = {message["tool_call_id"]: message["text"] for message in said if message["role"] == "tool"}
    calls = [
        {
            "name": call["name"], "arguments": call["arguments"][:MOST_LOGGED_CHARS],
            "output": results.get(call["tool_call_id"], NO_RESULT)[:MOST_LOGGED_CHARS],
        }
        for call in carried.get("asks", ())
    ]  # fmt: skip
    return [*carried.get("tool_log", ()), *calls]
