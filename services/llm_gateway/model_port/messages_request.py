"""Requests of the Messages API as canonical chat requests. Whatever is wrong with one is said before anybody is asked."""

import re
from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidInput
from services.llm_gateway.chat import text_of
from services.llm_gateway.messages_shape import BETAS, EXTRAS, message_of, parts_of
from services.llm_gateway.request_rules import MAX_TOOLS
from services.llm_gateway.tool_rules import check_choice, check_names, check_parameters, check_schema

MAX_MESSAGES = 100_000
MIN_BUDGET = 1_024
_ROLES = ("user", "assistant", "system")
_CHOICES = {"auto": "auto", "any": "required", "none": "none"}
# Fields that have a place of their own in a chat request; all others are kept as extras.
_TRANSLATED = frozenset(
    {"model", "messages", "system", "max_tokens", "stream", "stop_sequences", "temperature", "top_p", "tools", "tool_choice"}
)
_RANGES = {"temperature": (0.0, 1.0), "top_p": (0.0, 1.0)}
_OBJECTS = ("metadata", "thinking", "output_config", "tool_choice", "context_management", "cache_control")
_STRINGS = ("service_tier", "inference_geo")
_BETA = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.A)


def canonical(body: Mapping[str, Any], betas: str = "", *, counting: bool = False) -> dict[str, Any]:
    """The chat request. Raises InvalidInput that names the first wrong field. `betas` is the header anthropic-beta.

    With `counting` it is a request to count tokens, which has no max_tokens.
    """
    _check(body, counting)
    extras = {key: value for key, value in body.items() if key not in _TRANSLATED and value is not None}
    if betas:
        extras[BETAS] = _betas(betas)
    made: dict[str, Any] = {"messages": [*_system(body.get("system")), *_messages(body["messages"])], EXTRAS: extras}
    if not counting:
        # Nobody else fills a cache without an answer; the extras say so to whom it concerns.
        made["max_tokens"] = max(body["max_tokens"], 1)
        if not body["max_tokens"]:
            extras["max_tokens"] = 0
    for name in ("temperature", "top_p"):
        if body.get(name) is not None:
            made[name] = body[name]
    if body.get("stop_sequences"):
        made["stop"] = body["stop_sequences"]
    if body.get("tools"):
        made["tools"] = [_tool(tool, f"tools.{number}") for number, tool in enumerate(body["tools"])]
        check_names(_names(body) or [], lambda number: f"tools.{number}.name")
    if body.get("tool_choice") is not None:
        _choose(made, body["tool_choice"])
        check_choice(made["tool_choice"], _names(body), "tool_choice")
    metadata = body.get("metadata")
    if metadata and metadata.get("user_id"):
        made["user"] = metadata["user_id"]
    if schema := _schema(body):
        made["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return made


def _wrong(field: str, why: str) -> InvalidInput:
    return InvalidInput.field(field, why)


def _check(body: Mapping[str, Any], counting: bool) -> None:
    if not counting:
        most = body.get("max_tokens")
        if most is None:
            raise _wrong("max_tokens", "Field required")
        if not isinstance(most, int) or isinstance(most, bool) or not 0 <= most < 2**31:
            raise _wrong("max_tokens", "must be an integer from 0 to 2147483647")
    messages = body.get("messages")
    if messages is None:
        raise _wrong("messages", "Field required")
    if not isinstance(messages, list):
        raise _wrong("messages", "must be a list of messages")
    if not messages:
        raise _wrong("messages", "at least one message is required")
    if len(messages) > MAX_MESSAGES:
        raise _wrong("messages", f"at most {MAX_MESSAGES} messages are allowed")
    for name, (low, high) in _RANGES.items():
        value = body.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high):
            raise _wrong(name, f"must be a number from {low:g} to {high:g}")
    top_k = body.get("top_k")
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 0):
        raise _wrong("top_k", "must be an integer of at least 0")
    for name in _OBJECTS:
        if not isinstance(body.get(name), Mapping | None):
            raise _wrong(name, "must be an object")
    for name in _STRINGS:
        if not isinstance(body.get(name), str | None):
            raise _wrong(name, "must be a string")
    if not isinstance(body.get("container"), str | Mapping | None):
        raise _wrong("container", "must be a string or an object")
    servers = body.get("mcp_servers")
    if servers is not None and (not isinstance(servers, list) or not all(isinstance(server, Mapping) for server in servers)):
        raise _wrong("mcp_servers", "must be a list of objects")
    if not isinstance(body.get("stream"), bool | None):
        raise _wrong("stream", "must be a boolean")
    stops = body.get("stop_sequences")
    if stops is not None and (not isinstance(stops, list) or not all(isinstance(text, str) for text in stops)):
        raise _wrong("stop_sequences", "must be a list of strings")
    metadata = body.get("metadata")
    if metadata is not None and not isinstance(metadata.get("user_id"), str | None):
        raise _wrong("metadata.user_id", "must be a string")
    tools = body.get("tools")
    if tools is not None and (not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools)):
        raise _wrong("tools", "must be a list of objects")
    if tools is not None and len(tools) > MAX_TOOLS:
        raise _wrong("tools", f"at most {MAX_TOOLS} tools are allowed")
    _check_thinking(body.get("thinking"), body.get("max_tokens"))


def _check_thinking(thinking: Mapping[str, Any] | None, most: int | None) -> None:
    if thinking is None:
        return
    if not isinstance(thinking.get("type"), str):
        raise _wrong("thinking.type", "Field required")
    if thinking["type"] != "enabled":
        return
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int) or isinstance(budget, bool) or budget < MIN_BUDGET:
        raise _wrong("thinking.budget_tokens", f"must be an integer of at least {MIN_BUDGET}")
    if most is not None and most <= budget:
        raise _wrong("max_tokens", "must be greater than thinking.budget_tokens")


def _betas(header: str) -> list[str]:
    found = [name.strip() for name in header.split(",") if name.strip()]
    if not all(_BETA.fullmatch(name) for name in found):
        raise _wrong("anthropic-beta", "must be a list of names")
    return found


def _system(system: Any) -> list[dict[str, Any]]:
    if system is None or system == "" or system == []:
        return []
    if isinstance(system, str):
        return [{"role": "system", "content": system}]
    _blocks(system, "system")
    for number, block in enumerate(system):
        if block["type"] != "text":
            raise _wrong(f"system.{number}.type", "must be text")
    return [{"role": "system", "content": parts_of(system)}]


def _messages(messages: list[Any]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages.{number}"
        if not isinstance(message, Mapping):
            raise _wrong(where, "must be an object")
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise _wrong(f"{where}.role", f"must be one of {', '.join(_ROLES)}")
        if content is None:
            raise _wrong(f"{where}.content", "Field required")
        if isinstance(content, str):
            if not content and number < len(messages) - 1:
                raise _wrong(where, "all messages must have non-empty content except for the optional final assistant message")
            made.append({"role": role, "content": content})
            continue
        _blocks(content, f"{where}.content")
        if not content and role != "assistant":
            raise _wrong(where, "all messages must have non-empty content except for the optional final assistant message")
        if role == "assistant":
            try:
                made.append(message_of(content, answer=False))
            except TypeError:
                raise _wrong(f"{where}.content", "is nested too deeply") from None
        elif role == "system":
            made.append({"role": "system", "content": parts_of(content)})
        else:
            _user(made, content)
    return made


def _user(made: list[dict[str, Any]], blocks: list[Mapping[str, Any]]) -> None:
    """Results of tools are messages of their own in a chat."""
    others: list[Mapping[str, Any]] = []
    for block in [*blocks, None]:
        if others and (block is None or block["type"] == "tool_result"):
            made.append({"role": "user", "content": parts_of(others)})
            others = []
        if block is None:
            return
        if block["type"] != "tool_result":
            others.append(block)
            continue
        rest = {key: value for key, value in block.items() if key not in ("type", "tool_use_id", "content")}
        content = block.get("content")
        made.append({"role": "tool", "tool_call_id": block["tool_use_id"], "content": "" if content is None else parts_of(content), **rest})


# Members that a block must have, with their types.
_MEMBERS: Mapping[str, tuple[tuple[str, type | tuple[type, ...]], ...]] = {
    "text": (("text", str),),
    "image": (("source", Mapping),),
    "document": (("source", Mapping),),
    "tool_use": (("id", str), ("name", str), ("input", Mapping)),
    "tool_result": (("tool_use_id", str),),
    "thinking": (("thinking", str), ("signature", str)),
    "redacted_thinking": (("data", str),),
}


def _blocks(blocks: Any, where: str) -> None:
    if not isinstance(blocks, list):
        raise _wrong(where, "must be a string or a list of blocks")
    for number, block in enumerate(blocks):
        here = f"{where}.{number}"
        if not isinstance(block, Mapping) or not isinstance(block.get("type"), str):
            raise _wrong(here, "must be an object with a type")
        for name, kind in _MEMBERS.get(block["type"], ()):
            if name not in block:
                raise _wrong(f"{here}.{name}", "Field required")
            if not isinstance(block[name], kind):
                raise _wrong(f"{here}.{name}", "is of the wrong type")
        if block["type"] == "image":
            _check_source(block["source"], f"{here}.source")
        if block["type"] == "tool_result" and not isinstance(block.get("content"), str | None):
            _blocks(block["content"], f"{here}.content")


def _check_source(source: Mapping[str, Any], where: str) -> None:
    members = {"base64": ("media_type", "data"), "url": ("url",), "file": ("file_id",)}.get(str(source.get("type")))
    if members is None:
        raise _wrong(f"{where}.type", "must be base64, url or file")
    for name in members:
        if not isinstance(source.get(name), str):
            raise _wrong(f"{where}.{name}", "Field required")


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        if not isinstance(kind, str):
            raise _wrong(f"{where}.type", "must be a string")
        return dict(tool)
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise _wrong(f"{where}.name", "Field required")
    check_parameters(tool.get("input_schema"), f"{where}.input_schema")
    if not isinstance(tool.get("description"), str | None):
        raise _wrong(f"{where}.description", "must be a string")
    function: dict[str, Any] = {"name": tool["name"]}
    if tool.get("description") is not None:
        function["description"] = tool["description"]
    function["parameters"] = tool["input_schema"]
    if tool.get("strict") is not None:
        function["strict"] = tool["strict"]
    rest = {key: value for key, value in tool.items() if key not in ("type", "name", "description", "input_schema", "strict")}
    return {"type": "function", "function": function, **rest}


def _names(body: Mapping[str, Any]) -> list[str] | None:
    # A set of MCP's tools has no name of its own.
    return [name for tool in body["tools"] if (name := text_of(tool.get("name")))] if body.get("tools") else None


def _choose(made: dict[str, Any], choice: Mapping[str, Any]) -> None:
    kind = choice.get("type")
    if kind == "tool":
        if not isinstance(choice.get("name"), str):
            raise _wrong("tool_choice.name", "Field required")
        made["tool_choice"] = {"type": "function", "function": {"name": choice["name"]}}
    elif isinstance(kind, str) and kind in _CHOICES:
        made["tool_choice"] = _CHOICES[kind]
    else:
        raise _wrong("tool_choice.type", "must be auto, any, tool or none")
    if choice.get("disable_parallel_tool_use"):
        made["parallel_tool_calls"] = False


def _schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    config = body.get("output_config")
    # The name of the field before structured outputs left their beta.
    wanted = (config.get("format") if config else None) or body.get("output_format")
    if wanted is None:
        return None
    schema = wanted.get("schema") if isinstance(wanted, Mapping) else None
    if not isinstance(schema, Mapping) or wanted.get("type") != "json_schema":
        raise _wrong("output_config.format", "must be {type: json_schema, schema: object}")
    check_schema(schema, "output_config.format.schema")
    return schema
