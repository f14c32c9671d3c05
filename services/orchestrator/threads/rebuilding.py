"""A run as its events tell it: what was said, step by step. The log has all of it; checkpoints are deleted with the run's end."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from services.orchestrator.ports import Message, ToolRequest
from services.orchestrator.records import TERMINAL_EVENTS, Event
from services.orchestrator.results import is_lost
from services.orchestrator.turn.client_tools import PART as CLIENT_TOOLS
from services.orchestrator.turn.results import cut, output_of

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
    # A result among the messages is lost, and only its beginning stands there.
    lost: bool = False
    # Calls that the run's client is asked for, with which it ended; its last message asks for them too.
    asks: Sequence[Mapping[str, str]] = ()
    # Where the message of the last step stands, None where it said and called nothing.
    said_at: int | None = None

    def ask(self, calls: Sequence[Mapping[str, str]]) -> None:
        """Puts the client's calls where they were asked for, beside those of the same step that were made here."""
        self.asks = calls
        asked = tuple(ToolRequest(call["tool_call_id"], call["name"], call["arguments"].encode()) for call in calls)
        if self.said_at is None:
            self.messages.append(Message("assistant", "", asked))
        else:
            said = self.messages[self.said_at]
            self.messages[self.said_at] = replace(said, tool_calls=(*said.tool_calls, *asked))


def rebuild(events: Iterable[Event]) -> Rebuilt:
    """One run out of its events, oldest first. What came after its last whole step is left out."""
    found = Rebuilt()
    text, calls, results, logged, steered, plan, lost = "", {}, [], [], [], None, False
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
            if event.type == "tool_call_failed":
                content = orjson.dumps({"error": data["error"]}).decode()
            elif is_lost(data):
                content, lost = data["preview"], True
            else:
                content = output_of(event.data, data)
            note = data.get("note", "")
            results.append(Message("tool", note + cut(content), tool_call_id=data["call_id"]))
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
        elif event.type == "interrupt_raised":
            if data["kind"] == CLIENT_TOOLS:
                found.ask(data["calls"])
        elif event.type == "step_completed":
            # An answer that was not of the form that was asked for was shown to nobody.
            said = [Message("assistant", text, tuple(calls.values()))] if text or calls else []
            found.said_at = len(found.messages) + len(steered) if said else None
            found.messages += [*steered, *said, *results]
            found.tool_log += logged
            found.step, found.plan, found.lost = data["step"], plan or found.plan, lost or found.lost
            text, calls, results, logged, steered = "", {}, [], [], []
        else:
            found.ended = event.type
    return found


_READ = frozenset(
    {
        "run_queued", "message_completed", "tool_call_started", "tool_call_completed", "tool_call_failed", "steer_applied", "plan_updated",
        "memory_reset", "step_completed", "interrupt_raised",
    }
)  # fmt: skip


def _arguments(arguments: Any) -> bytes:
    # Arguments that were no JSON stand in the event as the text that they were.
    return arguments.encode() if isinstance(arguments, str) else orjson.dumps(arguments)
