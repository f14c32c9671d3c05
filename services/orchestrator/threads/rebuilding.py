"""A run as its events tell it: what was said, step by step. The log has all of it; checkpoints are deleted with the run's end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.orchestrator.ports import Message, ToolRequest
from services.orchestrator.records import TERMINAL_EVENTS, Event
from services.orchestrator.turn.execute_tools import MOST_OUTPUT_CHARS

MOST_LOGGED_CHARS = 2_000


@dataclass
class Rebuilt:
    """`messages` are those of its whole steps after its input; `ended` is the type of its last event, where that is terminal."""

    input: Sequence[Mapping[str, str]] = ()
    messages: list[Message] = field(default_factory=list)
    tool_log: list[dict[str, Any]] = field(default_factory=list)
    plan: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    ended: str = ""
    # Turns that ended before (ms) are forgotten by memory; 0: none.
    forgets_before_ms: int = 0


def rebuild(events: Iterable[Event]) -> Rebuilt:
    """One run out of its events, oldest first. What came after its last whole step is left out."""
    found = Rebuilt()
    text, calls, results, logged, steered, plan = "", {}, [], [], [], None
    for event in events:
        if event.type not in _READ and event.type not in TERMINAL_EVENTS:
            continue
        data = orjson.loads(event.data)
        if event.type == "run_queued":
            found.input = data["input"]
        elif event.type == "message_completed":
            text = data["text"]
        elif event.type == "tool_call_started":
            calls[data["call_id"]] = ToolRequest(data["call_id"], data["tool"], _arguments(data["arguments"]))
        elif event.type in ("tool_call_completed", "tool_call_failed"):
            content = _output(event, data) if event.type == "tool_call_completed" else orjson.dumps({"error": data["error"]}).decode()
            note = data.get("note", "")
            results.append(Message("tool", note + _cut(content), tool_call_id=data["call_id"]))
            asked = calls.get(data["call_id"])
            arguments = asked.arguments.decode("utf-8", "replace") if asked else ""
            logged.append(
                {"name": data["tool"], "arguments": arguments[:MOST_LOGGED_CHARS], "output": (note + content)[:MOST_LOGGED_CHARS]}
            )
        elif event.type == "steer_applied":
            steered.append(Message("user", data["text"]))
        elif event.type == "memory_reset":
            found.forgets_before_ms = max(found.forgets_before_ms, data["ended_before_ms"])
        elif event.type == "plan_updated":
            plan = data
        elif event.type == "step_completed":
            found.messages += [*steered, Message("assistant", text, tuple(calls.values())), *results]
            found.tool_log += logged
            found.step, found.plan = data["step"], plan or found.plan
            text, calls, results, logged, steered = "", {}, [], [], []
        else:
            found.ended = event.type
    return found


_READ = frozenset(
    {
        "run_queued", "message_completed", "tool_call_started", "tool_call_completed", "tool_call_failed", "steer_applied", "plan_updated",
        "memory_reset", "step_completed",
    }
)  # fmt: skip


def _arguments(arguments: Any) -> bytes:
    # Arguments that were no JSON stand in the event as the text that they were.
    return arguments.encode() if isinstance(arguments, str) else orjson.dumps(arguments)


def _output(event: Event, data: Mapping[str, Any]) -> str:
    """The output, byte for byte as the model got it, which parsing and writing it again would not give."""
    before = orjson.dumps({"call_id": data["call_id"], "tool": data["tool"]})[:-1] + b',"output":'
    after = b"," + orjson.dumps({name: value for name, value in data.items() if name not in ("call_id", "tool", "output")})[1:]
    if event.data.startswith(before) and event.data.endswith(after):
        return event.data[len(before) : -len(after)].decode("utf-8", "replace")
    return orjson.dumps(data["output"]).decode()


def _cut(content: str) -> str:
    return content if len(content) <= MOST_OUTPUT_CHARS else content[:MOST_OUTPUT_CHARS] + " …[cut: the result is longer]"
