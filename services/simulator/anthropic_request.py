"""A Messages request in the form the rules work on. What Anthropic refuses with 400 is refused here in like words."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.simulator.anthropic_blocks import BlockReader, boundaries
from services.simulator.chat_request import ChatRequest, Message, Tool
from services.simulator.prompt_cache import Boundary
from services.simulator.refusals import Refused
from services.simulator.scalars import Numbers, is_model_name

MAX_TOOLS = 10_000
MIN_THINKING_BUDGET_TOKENS = 1_024
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_NUMBERS = Numbers(
    not_integer=lambda name, _: Refused(f"{name}: Input should be a valid integer"),
    below=lambda name, _, low: Refused(f"{name}: Input should be greater than or equal to {low}"),
    not_number=lambda name, _: Refused(f"{name}: Input should be a valid number"),
    outside=lambda name, _, low, high: Refused(f"{name}: range: {low}..{high}"),
)
_EFFORT_TOKENS: Mapping[str, int] = {"low": 8, "medium": 16, "high": 32, "xhigh": 64, "max": 128}
_DEFAULT_EFFORT = "high"


@dataclass(frozen=True, slots=True)
class MessagesRequest:
    """A valid request. `boundaries` are the prompt's blocks, where any of them is marked to be cached."""

    chat: ChatRequest
    tools_json: bytes
    boundaries: Sequence[Boundary]


def parse_messages(body: Mapping[str, Any], raw: bytes, *, counting: bool = False) -> MessagesRequest:
    """Check a Messages request; raises Refused (400). `counting` says that only its tokens are wanted (no max_tokens)."""
    model = body.get("model")
    if model is None:
        raise Refused("model: Field required")
    if not is_model_name(model):
        raise Refused("model: String should have 1 to 256 printable characters")
    max_tokens = _NUMBERS.integer(body, "max_tokens", 1)
    if max_tokens is None and not counting:
        raise Refused("max_tokens: Field required")
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise Refused("stream: Input should be a valid boolean")
    _NUMBERS.check(body, "temperature", 0, 1)
    _NUMBERS.check(body, "top_p", 0, 1)
    _NUMBERS.integer(body, "top_k", 0)
    thinking = body.get("thinking")
    thinking_tokens, show_thinking = _thinking(thinking, body.get("output_config"), max_tokens)
    tools = tuple(_tools(body.get("tools")))
    tool_choice, parallel = _tool_choice(body.get("tool_choice"), tools)
    manual = isinstance(thinking, dict) and thinking.get("type") == "enabled"
    if thinking_tokens and tool_choice not in ("auto", "none"):
        raise Refused("Thinking may not be enabled when tool_choice forces tool use.")
    if thinking_tokens and body.get("temperature") not in (None, 1):
        raise Refused("`temperature` may only be set to 1 when thinking is enabled.")
    messages = (*_system(body.get("system")), *_messages(body.get("messages"), manual))
    chat = ChatRequest(
        model=model,
        messages=messages,
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=parallel,
        stream=stream is True,
        include_usage=True,
        max_tokens=max_tokens,
        stop=_stop(body.get("stop_sequences")),
        seed=None,
        response_schema=_response_schema(body),
        labels=_labels(body.get("metadata")),
        thinking_tokens=thinking_tokens,
        show_thinking=show_thinking,
    )
    try:
        tools_json = orjson.dumps(body["tools"]) if body.get("tools") else b""
        found = boundaries(body) if b'"cache_control"' in raw else ()
    except orjson.JSONEncodeError as error:
        raise Refused(f"tools: cannot be read: {error}") from None
    return MessagesRequest(chat, tools_json, found)


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Refused("stop_sequences: Input should be a valid list of strings")
    if not all(item.strip() for item in value):
        raise Refused("stop_sequences: each stop sequence must contain non-whitespace")
    return tuple(value)


def _labels(metadata: Any) -> tuple[str, ...]:
    if metadata is not None and not isinstance(metadata, dict):
        raise Refused("metadata: Input should be an object")
    user = metadata.get("user_id") if metadata else None
    return (user,) if isinstance(user, str) else ()


def _thinking(value: Any, output_config: Any, max_tokens: int | None) -> tuple[int, bool]:
    """Tokens to think, and whether to show them."""
    effort = output_config.get("effort") if isinstance(output_config, dict) else None
    if effort is not None and (not isinstance(effort, str) or effort not in _EFFORT_TOKENS):
        raise Refused(f"output_config.effort: Input should be one of {', '.join(_EFFORT_TOKENS)}")
    if value is None:
        return 0, False
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "disabled":
        return 0, False
    if kind not in ("enabled", "adaptive", "between_tools"):
        raise Refused("thinking: Input tag does not match any of the expected tags: 'adaptive', 'between_tools', 'disabled', 'enabled'")
    wanted = _EFFORT_TOKENS[effort or _DEFAULT_EFFORT]
    if kind == "enabled":
        budget = value.get("budget_tokens")
        if isinstance(budget, bool) or not isinstance(budget, int):
            raise Refused("thinking.enabled.budget_tokens: Field required")
        if budget < MIN_THINKING_BUDGET_TOKENS:
            raise Refused(f"thinking.enabled.budget_tokens: Input should be greater than or equal to {MIN_THINKING_BUDGET_TOKENS}")
        if max_tokens is not None and max_tokens <= budget:
            raise Refused("`max_tokens` must be greater than `thinking.budget_tokens`.")
    return wanted, value.get("display") != "omitted"


def _response_schema(body: Mapping[str, Any]) -> Mapping[str, Any] | None:
    config = body.get("output_config")
    if config is not None and not isinstance(config, dict):
        raise Refused("output_config: Input should be an object")
    asked = (config or {}).get("format", body.get("output_format"))
    if asked is None:
        return None
    schema = asked.get("schema") if isinstance(asked, dict) else None
    if not isinstance(asked, dict) or asked.get("type") != "json_schema" or not isinstance(schema, dict):
        raise Refused("output_config.format: Input should be of type json_schema with a 'schema'")
    return schema


def _tools(value: Any) -> Iterator[Tool]:
    if value is None:
        return
    if not isinstance(value, list):
        raise Refused("tools: Input should be a valid list")
    if len(value) > MAX_TOOLS:
        raise Refused(f"tools: List should have at most {MAX_TOOLS} items")
    names: set[str] = set()
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise Refused(f"tools.{index}: Input should be an object")
        name = item.get("name")
        kind = item.get("type")
        if kind not in (None, "custom"):
            # A tool of Anthropic's own: nothing here runs it.
            if not isinstance(kind, str):
                raise Refused(f"tools.{index}.type: Input should be a valid string")
            continue
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            raise Refused(f"tools.{index}.custom.name: String should match pattern '^[a-zA-Z0-9_-]{{1,128}}$'")
        if name in names:
            raise Refused("tools: Tool names must be unique.")
        names.add(name)
        schema = item.get("input_schema")
        if not isinstance(schema, dict):
            raise Refused(f"tools.{index}.custom.input_schema: Field required")
        if schema.get("type") != "object":
            raise Refused(f"tools.{index}.custom.input_schema.type: Input should be 'object'")
        description = item.get("description")
        yield Tool(name, description if isinstance(description, str) else "", schema)


def _tool_choice(value: Any, tools: tuple[Tool, ...]) -> tuple[str, bool]:
    """The choice in the rules' words, and whether several calls at once are allowed."""
    if value is None:
        return "auto" if tools else "none", True
    kind = value.get("type") if isinstance(value, dict) else None
    parallel = not (isinstance(value, dict) and value.get("disable_parallel_tool_use") is True)
    if kind == "none":
        return "none", parallel
    if kind not in ("auto", "any", "tool"):
        raise Refused("tool_choice: Input tag does not match any of the expected tags: 'auto', 'any', 'tool', 'none'")
    if not tools:
        raise Refused("tool_choice may only be specified while providing tools.")
    if kind == "tool":
        name = value.get("name")
        if not any(tool.name == name for tool in tools):
            raise Refused(f"Tool '{name}' not found in provided tools")
        return f"={name}", parallel
    return ("required" if kind == "any" else "auto"), parallel


def _system(value: Any) -> Iterator[Message]:
    if value is None:
        return
    text = value
    if isinstance(value, list):
        if not all(isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in value):
            raise Refused("system: Input should be text blocks")
        text = "\n".join(part["text"] for part in value)
    if not isinstance(text, str):
        raise Refused("system: Input should be a valid string")
    if text:
        yield Message("system", text)


def _messages(value: Any, manual_thinking: bool) -> Iterator[Message]:
    if value is None:
        raise Refused("messages: Field required")
    if not isinstance(value, list):
        raise Refused("messages: Input should be a valid list")
    if not value:
        raise Refused("messages: at least one message is required")
    unanswered: set[str] = set()
    for index, item in enumerate(value):
        where = f"messages.{index}"
        role = item.get("role") if isinstance(item, dict) else None
        if role not in ("user", "assistant", "system"):
            raise Refused(f"{where}.role: Input should be 'user' or 'assistant'")
        reader = BlockReader(where, role)
        reader.read(item.get("content"))
        answered = {result.tool_call_id for result in reader.results}
        if strange := answered - unanswered:
            raise Refused(
                f"{where}.content: unexpected `tool_use_id` found in `tool_result` blocks: {', '.join(sorted(strange))}. "
                "Each `tool_result` block must have a corresponding `tool_use` block in the previous message."
            )
        if missing := unanswered - answered:
            raise _unanswered(where, missing)
        unanswered = {call.id for call in reader.calls}
        if role == "assistant":
            if index == len(value) - 1 and reader.text != reader.text.rstrip():
                raise Refused("messages: final assistant content cannot end with trailing whitespace")
            thought_first = reader.kinds[0] in ("thinking", "redacted_thinking")
            if manual_thinking and reader.calls and index == len(value) - 2 and not thought_first:
                raise Refused(
                    f"{where}.content.0.type: Expected `thinking` or `redacted_thinking`, but found `{reader.kinds[0]}`. When "
                    "`thinking` is enabled, a final `assistant` message must start with a thinking block."
                )
        yield from reader.results
        if reader.text or reader.images or reader.calls or not reader.results:
            yield Message(role, reader.text, reader.images, tuple(reader.calls))
    if unanswered:
        raise _unanswered(f"messages.{len(value) - 1}", unanswered)


def _unanswered(where: str, ids: set[str]) -> Refused:
    return Refused(
        f"{where}: `tool_use` ids were found without `tool_result` blocks immediately after: {', '.join(sorted(ids))}. Each `tool_use` "
        "block must have a corresponding `tool_result` block in the next message."
    )
