"""Tools that a run's client calls itself: what surfaces take of them and of their calls, and how the log tells of these."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import InvalidInput
from services.gateway.refusals import unsupported

MOST_TOOLS = 64
MOST_DESCRIPTION_BYTES = 4 * 1024
MOST_SCHEMA_BYTES = 32 * 1024
MOST_FORMAT_BYTES = 64 * 1024
NAME_PATTERN = r"[A-Za-z0-9_-]{1,64}"
CLIENT_TOOLS = "client_tools"
FORMATS = ("text", "json_object", "json_schema")


class Call(NamedTuple):
    """A call that a client makes. `arguments` is the text that the model wrote."""

    tool_call_id: str
    name: str
    arguments: str


def calls_of(data: Mapping[str, Any]) -> list[Call]:
    """The calls that a run's end asks its client for."""
    found = data.get("client_tool_calls") or ()
    return [Call(str(one.get("tool_call_id", "")), str(one.get("name", "")), str(one.get("arguments", ""))) for one in found]


def client_tools(given: Any, *, inner: str = "", at: str = "tools", wrong: type[InvalidInput] = InvalidInput) -> list[pb.ClientTool]:
    """The client's tools, which are the field `at` of a request: functions with `name`, `description`, `parameters` and `strict`, each in
    its object `inner` where that is named.

    Raises `wrong`, which names what is wrong with which of them.
    """
    if given is None:
        return []
    if not isinstance(given, list):
        raise wrong.field(at, "must be a list")
    if len(given) > MOST_TOOLS:
        raise wrong.field(at, f"must be at most {MOST_TOOLS} tools")
    found: dict[str, pb.ClientTool] = {}
    for number, entry in enumerate(given):
        where = f"{at}[{number}]"
        if not isinstance(entry, dict):
            raise wrong.field(where, "must be an object")
        if inner:
            _only(entry, ("type", inner), where, wrong)
            where, entry = f"{where}.{inner}", entry.get(inner)
            if not isinstance(entry, dict):
                raise wrong.field(where, "must be an object")
        tool = _tool(entry, where, wrong)
        if tool.name in found:
            raise wrong.field(f"{where}.name", "is the name of another tool too")
        found[tool.name] = tool
    return list(found.values())


def _tool(given: Mapping[str, Any], where: str, wrong: type[InvalidInput]) -> pb.ClientTool:
    _only(given, ("type", "name", "description", "parameters", "strict"), where, wrong)
    name, description = given.get("name"), given.get("description")
    parameters, strict = given.get("parameters"), given.get("strict")
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        raise wrong.field(f"{where}.name", f"must match {NAME_PATTERN}")
    if not isinstance(description, str | None) or len((description or "").encode()) > MOST_DESCRIPTION_BYTES:
        raise wrong.field(f"{where}.description", f"must be a text of at most {MOST_DESCRIPTION_BYTES} bytes")
    if not isinstance(strict, bool | None):
        raise wrong.field(f"{where}.strict", "must be a boolean")
    schema = b""
    if parameters is not None:
        if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
            raise wrong.field(f"{where}.parameters", "must be the JSON Schema of an object")
        schema = orjson.dumps(parameters) if parameters else b""
        if len(schema) > MOST_SCHEMA_BYTES:
            raise wrong.field(f"{where}.parameters", f"must be at most {MOST_SCHEMA_BYTES} bytes of JSON")
    return pb.ClientTool(name=name, description=description or "", parameters_json=schema, strict=bool(strict))


def refuse_other_types(given: Any, wrong: type[InvalidInput] = InvalidInput) -> None:
    """Raises `wrong` for the first of `tools` that is no function: those of OpenAI's own platform are not here."""
    for at, entry in enumerate(given if isinstance(given, list) else ()):
        kind = entry.get("type") if isinstance(entry, dict) else "function"
        if not isinstance(kind, str):
            raise wrong.field(f"tools[{at}].type", "must be function")
        if kind != "function":
            told = kind if re.fullmatch(r"[a-z0-9_]{1,64}", kind) else "a type of this name"
            raise unsupported(f"tools[{at}].type", f"{told} is not supported; only tools of type function are", wrong)


def tool_choice(
    given: Any, tools: Sequence[pb.ClientTool], *, inner: str = "", of_agent: bool = False, wrong: type[InvalidInput] = InvalidInput
) -> bytes:
    """`tool_choice` as JSON of chat completions; empty for auto, and where there is nothing to choose from. Raises `wrong`.

    `of_agent`: the agent's own tools can be meant too, and what is meant is the orchestrator's to know.
    """
    if given is None or given == "auto" or (given == "none" and not (tools or of_agent)):
        return b""
    if given in ("none", "required"):
        if not (tools or of_agent):
            raise wrong.field("tool_choice", "is only for requests with tools")
        return orjson.dumps(given)
    if isinstance(given, str):
        raise wrong.field("tool_choice", "must be none, auto, required or a function")
    if not isinstance(given, dict):
        raise wrong.field("tool_choice", "must be a text or an object")
    if given.get("type") != "function":
        raise unsupported("tool_choice.type", "only function is taken", wrong)
    where, chosen = ("tool_choice", given)
    if inner:
        _only(given, ("type", inner), where, wrong)
        where, chosen = f"tool_choice.{inner}", given.get(inner)
        if not isinstance(chosen, dict):
            raise wrong.field(where, "must be an object")
    _only(chosen, ("name",) if inner else ("type", "name"), where, wrong)
    name = chosen.get("name")
    if not isinstance(name, str) or not (of_agent or name in [tool.name for tool in tools]):
        raise wrong.field(f"{where}.name", "is the name of none of the tools")
    return orjson.dumps({"type": "function", "function": {"name": name}})


def response_format(given: Any, where: str, *, inner: str = "", wrong: type[InvalidInput] = InvalidInput) -> bytes:
    """The form of the answer as JSON of chat completions' `response_format`; empty for text. Raises `wrong`."""
    if given is None:
        return b""
    if not isinstance(given, dict):
        raise wrong.field(where, "must be an object")
    kind = given.get("type")
    if not isinstance(kind, str) or kind not in FORMATS:
        raise unsupported(f"{where}.type", f"must be one of {', '.join(FORMATS)}", wrong)
    if kind != "json_schema":
        _only(given, ("type",), where, wrong)
        return b"" if kind == "text" else orjson.dumps({"type": kind})
    of, at = given, where
    if inner:
        _only(given, ("type", inner), where, wrong)
        of, at = given.get(inner), f"{where}.{inner}"
        if not isinstance(of, dict):
            raise wrong.field(at, "must be an object")
    found = _schema_of_answer(of, at, wrong)
    made = orjson.dumps({"type": kind, "json_schema": found})
    if len(made) > MOST_FORMAT_BYTES:
        raise wrong.field(where, f"must be at most {MOST_FORMAT_BYTES} bytes of JSON")
    return made


def _schema_of_answer(given: Mapping[str, Any], where: str, wrong: type[InvalidInput]) -> dict[str, Any]:
    _only(given, ("type", "name", "description", "schema", "strict"), where, wrong)
    name, description, schema, strict = (given.get(one) for one in ("name", "description", "schema", "strict"))
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        raise wrong.field(f"{where}.name", f"must match {NAME_PATTERN}")
    if not isinstance(description, str | None):
        raise wrong.field(f"{where}.description", "must be a string")
    if not isinstance(schema, dict):
        raise wrong.field(f"{where}.schema", "must be a JSON Schema, as an object")
    if not isinstance(strict, bool | None):
        raise wrong.field(f"{where}.strict", "must be a boolean")
    found = {"name": name, "description": description, "schema": schema, "strict": strict}
    return {one: value for one, value in found.items() if value is not None}


def _only(given: Mapping[str, Any], known: Sequence[str], where: str, wrong: type[InvalidInput]) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            raise unsupported(f"{where}.{str(name)[:64]}", "is not supported", wrong)
