"""A chat completion request, checked and in the form the rules work on.

Everything that OpenAI refuses with 400 is refused here with the same words where clients depend on them; parameters that
this server does not know are accepted and have no effect, as vLLM does.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.simulator import tokens
from services.simulator.refusals import Refused
from services.simulator.scalars import Numbers, is_model_name

MAX_TOOLS = 128
MAX_CHOICES = 128
EFFORT_TOKENS: Mapping[str, int] = {"none": 0, "minimal": 4, "low": 8, "medium": 16, "high": 32, "xhigh": 64, "max": 128}
"""How many tokens are thought before an answer, by the effort that is asked for."""
_TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_NUMBERS = Numbers(
    not_integer=lambda name, _: Refused(f"Invalid type for '{name}': expected an integer.", param=name, code="invalid_type"),
    below=lambda name, value, low: Refused(
        f"Invalid '{name}': expected a value of at least {low}, got {value}.", param=name, code="integer_below_min_value"
    ),
    not_number=lambda name, _: Refused(f"Invalid type for '{name}': expected a number.", param=name, code="invalid_type"),
    outside=lambda name, value, low, high: Refused(
        f"Invalid '{name}': expected a value from {low} to {high}, got {value}.", param=name, code="decimal_out_of_range"
    ),
)
_ROLES = frozenset(("system", "developer", "user", "assistant", "tool", "function"))


@dataclass(frozen=True, slots=True)
class Tool:
    """A function on offer; `parameters` is its JSON Schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PastCall:
    """A tool call in the conversation; `arguments` is None where they are no JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any] | None
    arguments_json: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message; `text` joins the text parts of its content."""

    role: str
    text: str
    images: int = 0
    tool_calls: tuple[PastCall, ...] = ()
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """A valid request.

    `tool_choice` is none, auto, required or `=<name>`; `response_schema` is a JSON Schema, `{}` for any object, None for text.
    `thinking_tokens` are wanted before the answer.
    """

    model: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    tool_choice: str
    parallel_tool_calls: bool
    stream: bool
    include_usage: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    seed: int | None
    response_schema: Mapping[str, Any] | None
    labels: tuple[str, ...]
    choices: int = 1
    thinking_tokens: int = 0
    show_thinking: bool = False

    @property
    def prefilled(self) -> bool:
        """Whether the request ends with the beginning of the answer."""
        last = self.messages[-1]
        return last.role == "assistant" and not last.tool_calls

    @property
    def asked_at(self) -> int:
        """Index of the last user message, -1 without one."""
        for index in range(len(self.messages) - 1, -1, -1):
            if self.messages[index].role == "user":
                return index
        return -1

    @property
    def asked(self) -> str:
        """The text of the last user message."""
        index = self.asked_at
        return self.messages[index].text if index >= 0 else ""

    def prompt_tokens(self, tools_json: bytes) -> int:
        """What the request is billed for as its input; `tools_json` is the serialised tools."""
        total = 3 + (len(tools_json) + 3) // 4
        for message in self.messages:
            total += tokens.MESSAGE_OVERHEAD_TOKENS + message.images * tokens.IMAGE_TOKENS
            if message.text:
                total += tokens.count_prompt(message.text)
            for call in message.tool_calls:
                total += tokens.count_prompt(call.name) + tokens.count_prompt(call.arguments_json)
        return total


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a request body; raises Refused (400) where it is none."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refused(f"We could not parse the JSON body of your request: {error}.") from None
    if not isinstance(parsed, dict):
        raise Refused("The body of the request must be a JSON object.")
    return parsed


def parse_chat(body: Mapping[str, Any]) -> ChatRequest:
    """Check a chat completion request; raises Refused (400) with the name of the parameter at fault."""
    stream = _flag(body, "stream")
    tools = tuple(_tools(body.get("tools")))
    tools, tool_choice = _tool_choice(body.get("tool_choice"), tools)
    _NUMBERS.check(body, "temperature", 0, 2)
    _NUMBERS.check(body, "top_p", 0, 1)
    _NUMBERS.check(body, "frequency_penalty", -2, 2)
    _NUMBERS.check(body, "presence_penalty", -2, 2)
    choices = _NUMBERS.integer(body, "n", 1) or 1
    if choices > MAX_CHOICES:
        raise Refused(f"Invalid 'n': at most {MAX_CHOICES}, got {choices}.", param="n", code="integer_above_max_value")
    messages = tuple(_messages(body.get("messages")))
    return ChatRequest(
        model=_model(body),
        messages=messages,
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=body.get("parallel_tool_calls") is not False,
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        max_tokens=_first(_NUMBERS.integer(body, "max_completion_tokens", 1), _NUMBERS.integer(body, "max_tokens", 1)),
        stop=_stop(body.get("stop")),
        seed=_NUMBERS.integer(body, "seed", -(2**63)),
        response_schema=_response_schema(body.get("response_format")),
        labels=tuple(_labels(body)),
        choices=choices,
        thinking_tokens=_reasoning_effort(body.get("reasoning_effort")),
    )


def _reasoning_effort(value: Any) -> int:
    if value is None:
        return 0
    if not isinstance(value, str) or value not in EFFORT_TOKENS:
        raise Refused(
            f"Invalid value for 'reasoning_effort': expected one of {', '.join(EFFORT_TOKENS)}.",
            param="reasoning_effort",
            code="invalid_value",
        )
    return EFFORT_TOKENS[value]


def _first(*values: int | None) -> int | None:
    return next((value for value in values if value is not None), None)


def _model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if model is None:
        raise Refused("you must provide a model parameter", param="model")
    if not is_model_name(model):
        raise Refused("'model' must be a string of 1 to 256 printable characters.", param="model")
    return model


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise Refused(f"Invalid type for '{name}': expected a boolean.", param=name, code="invalid_type")
    return value


def _include_usage(options: Any, stream: bool) -> bool:
    if options is None:
        return False
    if not isinstance(options, dict):
        raise Refused("'stream_options' must be an object.", param="stream_options", code="invalid_type")
    if not stream:
        raise Refused("The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options")
    return _flag(options, "include_usage")


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    values = [value] if isinstance(value, str) else value
    if not isinstance(values, list) or len(values) > 4 or not all(isinstance(item, str) and item for item in values):
        raise Refused("'stop' must be a string or a list of up to 4 strings, none empty.", param="stop")
    return tuple(values)


def _labels(body: Mapping[str, Any]) -> Iterator[str]:
    """Texts by which a control fault may name the run that a request belongs to."""
    user = body.get("user")
    if isinstance(user, str):
        yield user
    metadata = body.get("metadata")
    if isinstance(metadata, dict):
        yield from (value for value in metadata.values() if isinstance(value, str))


def _response_schema(value: Any) -> Mapping[str, Any] | None:
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {}
    if kind != "json_schema":
        raise Refused("'response_format.type' must be text, json_object or json_schema.", param="response_format")
    described = value.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(described.get("name"), str) or not isinstance(schema, dict):
        raise Refused("'response_format.json_schema' must have a 'name' and an object as 'schema'.", param="response_format")
    return schema


def _tools(value: Any) -> Iterator[Tool]:
    if value is None:
        return
    if not isinstance(value, list):
        raise Refused("Invalid type for 'tools': expected an array.", param="tools", code="invalid_type")
    if len(value) > MAX_TOOLS:
        raise Refused(f"Invalid 'tools': at most {MAX_TOOLS} tools, got {len(value)}.", param="tools", code="array_above_max_length")
    names: set[str] = set()
    for index, item in enumerate(value):
        where = f"tools[{index}]"
        function = item.get("function") if isinstance(item, dict) else None
        if not isinstance(function, dict) or item.get("type") != "function":
            raise Refused(f"'{where}' must be an object of type 'function' with a 'function'.", param=where)
        name = function.get("name")
        if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
            raise Refused(
                f"Invalid '{where}.function.name': expected a string that matches ^[a-zA-Z0-9_-]{{1,64}}$.", param=f"{where}.function.name"
            )
        if name in names:
            raise Refused(f"'{where}.function.name': the name '{name}' is used twice.", param=f"{where}.function.name")
        names.add(name)
        parameters = function.get("parameters")
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, dict):
            raise Refused(f"'{where}.function.parameters' must be a JSON Schema object.", param=f"{where}.function.parameters")
        description = function.get("description")
        yield Tool(name, description if isinstance(description, str) else "", parameters)


def _tool_choice(value: Any, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], str]:
    if value is None:
        return tools, "auto" if tools else "none"
    if not tools:
        raise Refused("'tool_choice' is only allowed when 'tools' are specified.", param="tool_choice")
    if value in ("none", "auto", "required"):
        return tools, value
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "allowed_tools" and isinstance(value.get("allowed_tools"), dict):
        allowed = value["allowed_tools"]
        offered = allowed.get("tools") if isinstance(allowed.get("tools"), list) else []
        names = {_function_name(item) for item in offered}
        return tuple(tool for tool in tools if tool.name in names), "required" if allowed.get("mode") == "required" else "auto"
    if kind == "function":
        name = _function_name(value)
        if not any(tool.name == name for tool in tools):
            raise Refused(f"Tool choice '{name}' is not among the 'tools'.", param="tool_choice")
        return tools, f"={name}"
    raise Refused("'tool_choice' must be none, auto, required or an object that names a function.", param="tool_choice")


def _function_name(item: Any) -> str:
    function = item.get("function") if isinstance(item, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else ""


def _messages(value: Any) -> Iterator[Message]:
    if value is None:
        raise Refused("Missing required parameter: 'messages'.", param="messages", code="missing_required_parameter")
    if not isinstance(value, list):
        raise Refused("Invalid type for 'messages': expected an array of objects.", param="messages", code="invalid_type")
    if not value:
        raise Refused("Invalid 'messages': empty array. Expected at least one message.", param="messages", code="empty_array")
    unanswered: dict[str, int] = {}
    for index, item in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(item, dict):
            raise Refused(f"Invalid type for '{where}': expected an object.", param=where, code="invalid_type")
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise Refused(f"Invalid value for '{where}.role': expected one of {', '.join(sorted(_ROLES))}.", param=f"{where}.role")
        message = _message(item, role, where)
        if role == "tool":
            if unanswered.pop(message.tool_call_id, None) is None:
                raise Refused(
                    "messages with role 'tool' must be a response to a preceding message with 'tool_calls'.", param=f"{where}.role"
                )
        elif unanswered:
            raise _unanswered(unanswered)
        unanswered.update((call.id, index) for call in message.tool_calls)
        yield message
    if unanswered:
        raise _unanswered(unanswered)


def _unanswered(calls: Mapping[str, int]) -> Refused:
    return Refused(
        "An assistant message with 'tool_calls' must be followed by tool messages responding to each 'tool_call_id'. "
        f"The following tool_call_ids did not have response messages: {', '.join(calls)}",
        param=f"messages[{next(iter(calls.values()))}]",
    )


def _message(item: Mapping[str, Any], role: str, where: str) -> Message:
    content = item.get("content")
    images = 0
    if isinstance(content, str):
        text = content
    elif content is None:
        if role not in ("assistant", "function"):
            raise Refused(f"Invalid value for '{where}.content': expected a string, got null.", param=f"{where}.content")
        text = ""
    elif isinstance(content, list):
        text, images = _parts(content, where)
    else:
        raise Refused(f"Invalid type for '{where}.content': expected a string or an array.", param=f"{where}.content", code="invalid_type")
    call_id = item.get("tool_call_id")
    if role == "tool" and not isinstance(call_id, str):
        raise Refused(f"Missing required parameter: '{where}.tool_call_id'.", param=f"{where}.tool_call_id")
    raw_calls = item.get("tool_calls") if role == "assistant" else None
    calls = tuple(_past_calls(raw_calls, where)) if raw_calls else ()
    return Message(role, text, images, calls, call_id if role == "tool" and isinstance(call_id, str) else "")


def _parts(content: Sequence[Any], where: str) -> tuple[str, int]:
    texts, images = [], 0
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if isinstance(text, str):
            texts.append(text)
        elif kind in ("image_url", "input_audio", "file"):
            images += 1
        else:
            raise Refused(f"Invalid '{where}.content[{index}]': not a content part.", param=f"{where}.content[{index}]")
    return "\n".join(texts), images


def _past_calls(value: Any, where: str) -> Iterator[PastCall]:
    if not isinstance(value, list):
        raise Refused(f"Invalid type for '{where}.tool_calls': expected an array.", param=f"{where}.tool_calls", code="invalid_type")
    for index, item in enumerate(value):
        function = item.get("function") if isinstance(item, dict) else None
        call_id = item.get("id") if isinstance(item, dict) else None
        name = _function_name(item)
        arguments = function.get("arguments") if isinstance(function, dict) else None
        if not isinstance(call_id, str) or not name or not isinstance(arguments, str):
            raise Refused(
                f"'{where}.tool_calls[{index}]' must have an 'id', a function 'name' and 'arguments' as a string.",
                param=f"{where}.tool_calls[{index}]",
            )
        try:
            parsed = orjson.loads(arguments)
        except orjson.JSONDecodeError:
            parsed = None
        yield PastCall(call_id, name, parsed if isinstance(parsed, dict) else None, arguments)
