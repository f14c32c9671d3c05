"""What a front end of AG-UI does: reads the stream, holds each event to the protocol, and keeps messages and state by its reducer."""

from collections.abc import Collection
from typing import Any

import orjson
from ag_ui.core import Event
from ag_ui_validate import create_validator
from ag_ui_validate.protocol.jsonpatch import PatchOk, apply_patch
from pydantic import TypeAdapter

EVENTS: TypeAdapter[Any] = TypeAdapter(Event)
# What the validator remarks upon: the state restated before an interrupt, as the protocol asks, and calls of a step without a text, whose
# message clients make of them.
STYLE = {"AGUI304", "AGUI208"}


def parsed(frames: bytes) -> list[dict[str, Any]]:
    """The events of a stream, in whole frames."""
    found = []
    for block in frames.decode().split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        ids = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
        if data:
            assert (len(data), len(ids) + 1) == (1, len([line for line in lines if not line.startswith("retry: ")]))
            found.append({**orjson.loads(data[0]), "_id": int(ids[0]) if ids else 0})
    return found


def checked(events: list[dict[str, Any]], *, whole: bool = True, but: Collection[str] = ()) -> list[dict[str, Any]]:
    """The events without their SSE ids, once each is exactly what the protocol's types say and their order is what its rules say.

    `whole`: the stream came to its end. `but`: rules that it need not keep.
    """
    plain = [{name: value for name, value in event.items() if name != "_id"} for event in events]
    for event in plain:
        model = EVENTS.validate_python(event)
        # Nothing that the type does not know, no null where a field is left out, every name as it is on the wire.
        assert not model.model_extra, event
        assert EVENTS.dump_python(model, mode="json", by_alias=True) == event
    rules = create_validator()
    found = [diagnostic for event in plain for diagnostic in rules.feed(event)] + (rules.finalize() if whole else [])
    wrong = [f"{one.rule} {one.message}" for one in found if one.rule not in {*STYLE, *but}]
    assert not wrong, wrong
    return plain


class Client:
    """The messages and the state of a front end, changed by events as the protocol's own client changes them."""

    def __init__(self, messages: list[dict[str, Any]] | None = None, state: Any = None) -> None:
        self.messages: list[dict[str, Any]] = [dict(message) for message in messages or []]
        self.state = {} if state is None else state
        self.activities: dict[str, Any] = {}
        self.interrupts: list[dict[str, Any]] = []
        self.customs: list[tuple[str, Any]] = []
        self.outcome = ""

    def take(self, events: list[dict[str, Any]]) -> "Client":
        """Takes events in their order."""
        for event in events:
            getattr(self, f"_{event['type'].lower()}", lambda event: None)(event)
        return self

    @property
    def answer(self) -> str:
        """What the agent said last."""
        return next((m.get("content", "") for m in reversed(self.messages) if m["role"] == "assistant"), "")

    def _find(self, message_id: str) -> dict[str, Any] | None:
        return next((message for message in self.messages if message["id"] == message_id), None)

    def _run_finished(self, event: dict[str, Any]) -> None:
        self.outcome = event["outcome"]["type"]
        self.interrupts = event["outcome"].get("interrupts", [])

    def _run_error(self, event: dict[str, Any]) -> None:
        self.outcome = event["code"]

    def _text_message_start(self, event: dict[str, Any]) -> None:
        if self._find(event["messageId"]) is None:
            self.messages.append({"id": event["messageId"], "role": event.get("role", "assistant"), "content": ""})

    def _text_message_content(self, event: dict[str, Any]) -> None:
        message = self._find(event["messageId"])
        assert message is not None
        message["content"] = message.get("content", "") + event["delta"]

    def _tool_call_start(self, event: dict[str, Any]) -> None:
        if any(call["id"] == event["toolCallId"] for message in self.messages for call in message.get("toolCalls", ())):
            return
        parent = self._find(event["parentMessageId"])
        if parent is None:
            parent = {"id": event["parentMessageId"], "role": "assistant"}
            self.messages.append(parent)
        call = {"id": event["toolCallId"], "type": "function", "function": {"name": event["toolCallName"], "arguments": ""}}
        parent["toolCalls"] = [*parent.get("toolCalls", ()), call]

    def _tool_call_args(self, event: dict[str, Any]) -> None:
        for message in self.messages:
            for call in message.get("toolCalls", ()):
                if call["id"] == event["toolCallId"]:
                    call["function"] = {**call["function"], "arguments": call["function"]["arguments"] + event["delta"]}
                    return

    def _tool_call_result(self, event: dict[str, Any]) -> None:
        made = {"id": event["messageId"], "role": "tool", "content": event["content"], "toolCallId": event["toolCallId"]}
        owners = [at for at, m in enumerate(self.messages) if any(call["id"] == event["toolCallId"] for call in m.get("toolCalls", ()))]
        at = owners[0] + 1 if owners else len(self.messages)
        while owners and at < len(self.messages) and self.messages[at]["role"] == "tool":
            at += 1
        self.messages.insert(at, made)

    def _messages_snapshot(self, event: dict[str, Any]) -> None:
        told = {message["id"]: orjson.loads(orjson.dumps(message)) for message in event["messages"]}
        kept = [told.pop(message["id"]) for message in self.messages if message["id"] in told]
        self.messages = [*kept, *told.values()]

    def _state_snapshot(self, event: dict[str, Any]) -> None:
        self.state = event["snapshot"]

    def _state_delta(self, event: dict[str, Any]) -> None:
        self.state = patched(self.state, event["delta"])

    def _activity_snapshot(self, event: dict[str, Any]) -> None:
        self.activities[event["messageId"]] = event["content"]

    def _activity_delta(self, event: dict[str, Any]) -> None:
        self.activities[event["messageId"]] = patched(self.activities[event["messageId"]], event["patch"])

    def _custom(self, event: dict[str, Any]) -> None:
        self.customs.append((event["name"], event["value"]))


def patched(value: Any, patch: Any) -> Any:
    """A value that an RFC 6902 patch was applied to, which has to be possible."""
    result = apply_patch(value, patch)
    assert isinstance(result, PatchOk), result
    return result.result
