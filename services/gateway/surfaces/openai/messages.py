"""The messages of a chat completion."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.common.errors import InvalidInput
from services.gateway.client_tools import Call
from services.gateway.inputs import Image, Said, check_answers, check_images, checked_call, checked_id, image_of_url, start_of_new
from services.gateway.surfaces.openai.fields import unsupported

MOST_MESSAGES = 1000
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
_CALL_NAMES = ("id", "function.name", "function.arguments")


def read_messages(value: Any) -> list[Said]:
    """The messages as they are. Raises InvalidInput for the first thing that is wrong."""
    if not isinstance(value, list) or not value:
        raise InvalidInput.field("messages", "must be a list of at least one message")
    if len(value) > MOST_MESSAGES:
        raise InvalidInput.field("messages", f"must be at most {MOST_MESSAGES} messages")
    found = [_message(message, f"messages[{at}]") for at, message in enumerate(value)]
    last = found[-1]
    if last.role not in ("user", "tool"):
        raise InvalidInput.field("messages", "the last message must be of role user or tool")
    if last.role == "user" and not last.text.strip() and not last.images:
        raise InvalidInput.field(f"{last.where}.content", "must not be empty")
    check_images(found)
    return found


def whole(said: Sequence[Said]) -> Sequence[Said]:
    """What a thread of its own is given: all of it. Raises InvalidInput where calls and results do not go together."""
    check_answers(said, "tool_call_id", whole=True)
    return said


def new(said: Sequence[Said]) -> Sequence[Said]:
    """What of a conversation is new on a thread that has the rest: its last message of a user, and the results of calls at its end."""
    start = start_of_new(said)
    found = said[start:]
    asked_by = said[start - 1 :] if start and found[0].role == "tool" and said[start - 1].calls else found
    check_answers(asked_by, "tool_call_id", whole=asked_by is not found)
    return found


def _message(message: Any, where: str) -> Said:
    if not isinstance(message, dict):
        raise InvalidInput.field(where, "must be an object")
    role = message.get("role")
    if role == "function":
        raise unsupported(f"{where}.role", "results are messages of role tool")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidInput.field(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
    for name in ("function_call", "audio"):
        if message.get(name):
            raise unsupported(f"{where}.{name}")
    calls: tuple[Call, ...] = ()
    if message.get("tool_calls"):
        if role != "assistant":
            raise InvalidInput.field(f"{where}.tool_calls", "goes with the role assistant")
        calls = _calls(message["tool_calls"], f"{where}.tool_calls")
    answers = checked_id(message.get("tool_call_id"), f"{where}.tool_call_id") if role == "tool" else ""
    text, images = _content(message, f"{where}.content", role)
    return Said(_ROLES[role], text, where, images, calls, answers)


def _calls(value: Any, where: str) -> tuple[Call, ...]:
    if not isinstance(value, list):
        raise InvalidInput.field(where, "must be a list")
    found = []
    for at, call in enumerate(value):
        one = f"{where}[{at}]"
        if not isinstance(call, dict):
            raise InvalidInput.field(one, "must be an object")
        if call.get("type", "function") != "function":
            raise unsupported(f"{one}.type", "only calls of type function are taken")
        function = call.get("function")
        if not isinstance(function, dict):
            raise InvalidInput.field(f"{one}.function", "must be an object")
        found.append(checked_call(call.get("id"), function.get("name"), function.get("arguments"), one, _CALL_NAMES, InvalidInput))
    return tuple(found)


def _content(message: Mapping[str, Any], where: str, role: str) -> tuple[str, tuple[Image, ...]]:
    value = message.get("content")
    if isinstance(value, str):
        return value, ()
    if value is None and role == "assistant":
        # An answer that was refused says so in place of a text.
        refusal = message.get("refusal")
        return (refusal if isinstance(refusal, str) else ""), ()
    if not isinstance(value, list):
        raise InvalidInput.field(where, "must be a text or a list of parts")
    texts, images = [], []
    for at, part in enumerate(value):
        one = f"{where}[{at}]"
        if not isinstance(part, dict):
            raise InvalidInput.field(one, "must be an object")
        match part.get("type"):
            case "text":
                texts.append(_text(part, "text", one))
            case "refusal" if role == "assistant":
                texts.append(_text(part, "refusal", one))
            case "image_url" if role == "user":
                images.append(_image(part.get("image_url"), f"{one}.image_url"))
            case "image_url":
                raise unsupported(f"{one}.type", "images go with messages of role user")
            case _:
                raise unsupported(f"{one}.type", "only parts of type text and image_url are taken")
    return "".join(texts), tuple(images)


def _text(part: Mapping[str, Any], name: str, where: str) -> str:
    if not isinstance(part.get(name), str):
        raise InvalidInput.field(f"{where}.{name}", "must be a string")
    return part[name]


def _image(value: Any, where: str) -> Image:
    if not isinstance(value, dict):
        raise InvalidInput.field(where, "must be an object")
    return image_of_url(value.get("url"), f"{where}.url", value.get("detail"))
