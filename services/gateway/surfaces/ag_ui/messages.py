"""The messages of a RunAgentInput."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from services.gateway.refusals import InvalidBody
from services.gateway.surfaces.ag_ui.images import in_this_version, is_readable

MOST_MESSAGES = 1_000
# Of them, and of instructions and context, as many as the orchestrator takes for one run.
MOST_TOLD = 512
MOST_ID_CHARS = 512
_MEDIA = ("image", "audio", "video", "document", "binary")
# Of a message: its text, its images with their places, the types of what is left out.
Content = tuple[str, tuple[tuple[str, Mapping[str, Any]], ...], tuple[str, ...]]
_STRINGS = ("name", "encryptedValue", "subagentRunId", "error")


@dataclass(frozen=True, slots=True)
class Said:
    """One message. `text` is what of it is text, `images` are its images with their places, `left_out` the types of its other parts;
    `wire` is how it is shown again."""

    id: str
    role: str
    text: str
    images: tuple[tuple[str, Mapping[str, Any]], ...]
    left_out: tuple[str, ...]
    wire: dict[str, Any]


def read_messages(value: Any) -> list[Said]:
    """The messages, each id once. Raises InvalidBody that names the first thing that is wrong, and never repeats it."""
    if not isinstance(value, list):
        raise InvalidBody.field("messages", "must be a list" if value is not None else "is required")
    if len(value) > MOST_MESSAGES:
        raise InvalidBody.field("messages", f"must be at most {MOST_MESSAGES} messages")
    found: dict[str, Said] = {}
    for at, message in enumerate(value):
        said = _message(message, f"messages[{at}]")
        if said.id in found:
            raise InvalidBody.field(f"messages[{at}].id", "is the id of another message too")
        found[said.id] = said
    return list(found.values())


def _message(message: Any, where: str) -> Said:
    if not isinstance(message, dict):
        raise InvalidBody.field(where, "must be an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in _CONTENT:
        raise InvalidBody.field(f"{where}.role", f"must be one of {', '.join(_CONTENT)}")
    message_id = message.get("id")
    if not isinstance(message_id, str) or not 0 < len(message_id) <= MOST_ID_CHARS:
        raise InvalidBody.field(f"{where}.id", f"must be a string of 1 to {MOST_ID_CHARS} characters")
    wire: dict[str, Any] = {"id": message_id, "role": role}
    for name in _STRINGS:
        if message.get(name) is not None:
            wire[name] = _string(message[name], f"{where}.{name}")
    if message.get("metadata") is not None:
        wire["metadata"] = _object(message["metadata"], f"{where}.metadata")
    text, images, left_out = _CONTENT[role](message, where, wire)
    return Said(message_id, role, text, images, left_out, wire)


def _string(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidBody.field(where, "must be a string")
    return value


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidBody.field(where, "must be an object")
    return value


def _plain(message: Mapping[str, Any], where: str, wire: dict[str, Any]) -> Content:
    wire["content"] = _string(message.get("content"), f"{where}.content")
    return wire["content"], (), ()


def _assistant(message: Mapping[str, Any], where: str, wire: dict[str, Any]) -> Content:
    if message.get("content") is not None:
        wire["content"] = _string(message["content"], f"{where}.content")
    calls = message.get("toolCalls")
    if calls is not None:
        if not isinstance(calls, list):
            raise InvalidBody.field(f"{where}.toolCalls", "must be a list")
        wire["toolCalls"] = [_call(call, f"{where}.toolCalls[{at}]") for at, call in enumerate(calls)]
    return wire.get("content", ""), (), ()


def _call(call: Any, where: str) -> dict[str, Any]:
    function = _object(_object(call, where).get("function"), f"{where}.function")
    if call.get("type", "function") != "function":
        raise InvalidBody.field(f"{where}.type", "must be function")
    return {
        "id": _string(call.get("id"), f"{where}.id"),
        "type": "function",
        "function": {name: _string(function.get(name), f"{where}.function.{name}") for name in ("name", "arguments")},
    }


def _parts(message: Mapping[str, Any], where: str, wire: dict[str, Any]) -> Content:
    content = message.get("content")
    if not isinstance(content, list):
        if not isinstance(content, str):
            raise InvalidBody.field(f"{where}.content", "must be a text or a list of parts")
        wire["content"] = content
        return content, (), ()
    texts, images, left_out = [], [], []
    wire["content"] = []
    for at, part in enumerate(content):
        kind = _object(part, f"{where}.content[{at}]").get("type")
        # A part of before the protocol's first version its clients turn into one of the others.
        if (shown := in_this_version(part)) is not None:
            wire["content"].append({name: value for name, value in shown.items() if value is not None})
        if kind == "text":
            texts.append(_string(part.get("text"), f"{where}.content[{at}].text"))
        elif message["role"] == "user" and is_readable(part):
            images.append((f"{where}.content[{at}]", part))
        elif kind in _MEDIA:
            left_out.append(str(kind))
        else:
            raise InvalidBody.field(f"{where}.content[{at}].type", f"must be one of text, {', '.join(_MEDIA)}")
    return "".join(texts), tuple(images), tuple(left_out)


def _tool(message: Mapping[str, Any], where: str, wire: dict[str, Any]) -> Content:
    wire["toolCallId"] = _string(message.get("toolCallId"), f"{where}.toolCallId")
    return _parts(message, where, wire)


def _activity(message: Mapping[str, Any], where: str, wire: dict[str, Any]) -> Content:
    wire["activityType"] = _string(message.get("activityType"), f"{where}.activityType")
    wire["content"] = _object(message.get("content"), f"{where}.content")
    return "", (), ()


_CONTENT: Mapping[str, Callable[[Mapping[str, Any], str, dict[str, Any]], Content]] = {
    "developer": _plain, "system": _plain, "assistant": _assistant, "user": _parts, "tool": _tool, "activity": _activity,
    "reasoning": _plain,
}  # fmt: skip
