"""What can be told to be wrong with what a caller asks beside text: calls and results, tools of its own, the form of the answer."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from services.common.errors import FieldViolation
from services.orchestrator.agents import brought_by
from services.orchestrator.turn.schemas import MOST_DEPTH, AnswerSchema, BadSchema, check_form, size

MOST_TOOLS, MOST_DESCRIPTION_BYTES, MOST_PARAMETERS_BYTES = 64, 4 * 1024, 32 * 1024
# They stand in the record of the run, as its input does.
MOST_TOOLS_BYTES = 512 * 1024
MOST_CHOICE_BYTES, MOST_FORMAT_BYTES = 16 * 1024, 64 * 1024
MOST_CALL_ID, MOST_BLOB_ID, MOST_IMAGES, MOST_IMAGES_IN_ALL = 128, 128, 8, 64
NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DETAILS = ("", "low", "high", "auto")
_CHOICES = ("none", "auto", "required")


def told(tools: Sequence[Mapping[str, Any]], choice: str, form: str) -> dict[str, Any]:
    """What the acceptance of a run tells of its client's tools and of the form of its answer, for whoever shows the run."""
    found: dict[str, Any] = {name: orjson.loads(raw) for name, raw in (("tool_choice", choice), ("response_format", form)) if raw}
    if tools:
        found["client_tools"] = [{**tool, "parameters": orjson.loads(tool["parameters"] or "{}")} for tool in tools]
    return found


def size_of(said: Mapping[str, Any]) -> int:
    """Bytes of a message's texts."""
    calls = said.get("tool_calls", ())
    return len(said["text"].encode()) + sum(len(call["arguments"].encode()) for call in calls)


def leading_results(said: Sequence[Mapping[str, Any]]) -> list[int]:
    """Places of the results that an input begins with, apart from what it says as system: those of calls that wait in its thread."""
    found = []
    for place, message in enumerate(said):
        if message["role"] == "tool":
            found.append(place)
        elif message["role"] != "system":
            break
    return found


def message_violations(said: Sequence[Mapping[str, Any]]) -> Iterator[FieldViolation]:
    """What is wrong with messages in themselves, and with calls and results that belong together."""
    waiting: dict[str, int] = {}
    leading = leading_results(said)
    results = [said[place].get("tool_call_id", "") for place in leading]
    seen = set(results)
    for place, message in enumerate(said):
        at = f"input[{place}]"
        yield from _one(message, at)
        if place in leading:
            continue
        if message["role"] == "tool":
            if (call_id := message.get("tool_call_id")) and waiting.pop(call_id, None) is None:
                yield FieldViolation(f"{at}.tool_call_id", "answers no call of the messages before it, or one that is answered")
            continue
        if waiting:
            yield _unanswered(waiting)
            waiting = {}
        for number, call in enumerate(message.get("tool_calls", ())):
            if call["tool_call_id"] in seen:
                yield FieldViolation(f"{at}.tool_calls[{number}].tool_call_id", "stands twice")
            seen.add(call["tool_call_id"])
            waiting[call["tool_call_id"]] = place
    if waiting:
        yield _unanswered(waiting)
    if sum(len(message.get("images", ())) for message in said) > MOST_IMAGES_IN_ALL:
        yield FieldViolation("input", f"must hold at most {MOST_IMAGES_IN_ALL} images")
    if len(set(results)) < len(results):
        yield FieldViolation("input", "answers a call twice")


def _unanswered(waiting: Mapping[str, int]) -> FieldViolation:
    return FieldViolation(f"input[{next(iter(waiting.values()))}].tool_calls", "must each be answered by the next messages, of role tool")


def _one(message: Mapping[str, Any], at: str) -> Iterator[FieldViolation]:
    role, calls, images = message["role"], message.get("tool_calls", ()), message.get("images", ())
    if calls and role != "assistant":
        yield FieldViolation(f"{at}.tool_calls", "is only for the role assistant")
    for number, call in enumerate(calls):
        if not call["tool_call_id"] or len(call["tool_call_id"]) > MOST_CALL_ID:
            yield FieldViolation(f"{at}.tool_calls[{number}].tool_call_id", f"must be 1 to {MOST_CALL_ID} characters")
        if not NAME.fullmatch(call["name"]):
            yield FieldViolation(f"{at}.tool_calls[{number}].name", "must be 1 to 64 characters out of A-Z a-z 0-9 _ -")
    if role == "tool" and not 0 < len(message.get("tool_call_id", "")) <= MOST_CALL_ID:
        yield FieldViolation(f"{at}.tool_call_id", f"must be 1 to {MOST_CALL_ID} characters")
    if role != "tool" and message.get("tool_call_id"):
        yield FieldViolation(f"{at}.tool_call_id", "is only for the role tool")
    if images and role != "user":
        yield FieldViolation(f"{at}.images", "is only for the role user")
    if len(images) > MOST_IMAGES:
        yield FieldViolation(f"{at}.images", f"must hold at most {MOST_IMAGES}")
    for number, image in enumerate(images[:MOST_IMAGES]):
        if not 0 < len(image["blob_id"]) <= MOST_BLOB_ID:
            yield FieldViolation(f"{at}.images[{number}].blob_id", f"must be 1 to {MOST_BLOB_ID} characters")
        if image["detail"] not in DETAILS:
            yield FieldViolation(f"{at}.images[{number}].detail", "must be low, high or auto")


def tools_violations(tools: Sequence[Mapping[str, Any]]) -> Iterator[FieldViolation]:
    """What is wrong with tools of the client's."""
    if len(tools) > MOST_TOOLS:
        yield FieldViolation("client_tools", f"must hold at most {MOST_TOOLS}")
    if sum(len(orjson.dumps(tool)) for tool in tools) > MOST_TOOLS_BYTES:
        yield FieldViolation("client_tools", f"must hold at most {MOST_TOOLS_BYTES} bytes in all")
    seen = set[str]()
    for number, tool in enumerate(tools[:MOST_TOOLS]):
        at, name = f"client_tools[{number}]", tool["name"]
        if not NAME.fullmatch(name):
            yield FieldViolation(f"{at}.name", "must be 1 to 64 characters out of A-Z a-z 0-9 _ -")
        elif brought_by(name):
            yield FieldViolation(f"{at}.name", "is the name of a tool that a strategy brings itself")
        elif name in seen:
            yield FieldViolation(f"{at}.name", "stands twice")
        seen.add(name)
        if len(tool["description"].encode()) > MOST_DESCRIPTION_BYTES:
            yield FieldViolation(f"{at}.description", f"must be at most {MOST_DESCRIPTION_BYTES} bytes")
        if problem := _parameters(tool["parameters"]):
            yield FieldViolation(f"{at}.parameters_json", problem)


def _parameters(raw: str) -> str:
    if len(raw.encode()) > MOST_PARAMETERS_BYTES:
        return f"must be at most {MOST_PARAMETERS_BYTES} bytes"
    schema = _parsed(raw)
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        return "must be a JSON Schema of an object"
    try:
        check_form(schema)
    except BadSchema as error:
        return f"is no JSON Schema: {error}"
    return ""


def choice_violations(raw: str) -> Iterator[FieldViolation]:
    """What is wrong with a tool_choice, but for names of tools, which may be the agent's."""
    if not raw:
        return
    if len(raw.encode()) > MOST_CHOICE_BYTES or not _is_choice(_parsed(raw)):
        yield FieldViolation("tool_choice_json", "must be none, auto, required, a function by its name, or allowed_tools of functions")


def _is_choice(wanted: Any) -> bool:
    if isinstance(wanted, str):
        return wanted in _CHOICES
    if not isinstance(wanted, dict):
        return False
    if wanted.get("type") == "function":
        return _names_function(wanted)
    allowed = wanted.get("allowed_tools")
    if wanted.get("type") != "allowed_tools" or not isinstance(allowed, dict) or allowed.get("mode") not in ("auto", "required"):
        return False
    tools = allowed.get("tools")
    return isinstance(tools, list) and bool(tools) and all(isinstance(tool, dict) and _names_function(tool) for tool in tools)


def _names_function(tool: Mapping[str, Any]) -> bool:
    function = tool.get("function")
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def format_violations(raw: str) -> Iterator[FieldViolation]:
    """What is wrong with a response_format."""
    if not raw:
        return
    if len(raw.encode()) > MOST_FORMAT_BYTES:
        yield FieldViolation("response_format_json", f"must be at most {MOST_FORMAT_BYTES} bytes")
        return
    wanted = _parsed(raw)
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind not in ("text", "json_object", "json_schema"):
        yield FieldViolation("response_format_json", "must be an object whose type is text, json_object or json_schema")
    elif kind == "json_schema":
        named = wanted["json_schema"] if isinstance(wanted.get("json_schema"), dict) else {}
        if not isinstance(named.get("name"), str) or not NAME.fullmatch(named["name"]):
            yield FieldViolation("response_format_json.json_schema.name", "must be 1 to 64 characters out of A-Z a-z 0-9 _ -")
        try:
            AnswerSchema(named.get("schema"))
        except BadSchema as error:
            yield FieldViolation("response_format_json.json_schema.schema", str(error))


def _parsed(raw: str) -> Any:
    """A value of JSON of a sensible depth; None for anything else."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if size(value)[1] <= MOST_DEPTH else None
