"""What a request must be before any provider hears of it. Unknown fields are nobody's business here."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.common.errors import InvalidInput
from services.llm_gateway.tool_rules import check_choice, check_names, check_parameters, check_schema

# What a caller's key or token must hold for every call that costs.
SCOPE = "models:invoke"
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MAX_TOOLS = 2_000
# Each of them is looked at on the way: 100,000 take half a second in which nobody else is served.
MAX_MESSAGES, MAX_PARTS = 10_000, 10_000
MAX_TEXTS = 2_048
# OpenAI takes 4, Gemini 5, vLLM any number.
MAX_STOPS = 16
_ASKING = frozenset({"system", "developer", "user"})
# A test, and what a value that fails it must be.
_Rule = tuple[Callable[[Any], bool], str]
# In place of content an assistant may have said one of these.
_SAID_OTHERWISE = (
    "tool_calls",
    "function_call",
    "refusal",
    "audio",
    "thinking_blocks",
    "reasoning_content",
    "reasoning",
    "provider_specific_fields",
)


def check_request(body: Mapping[str, Any], prefix: str = "") -> None:
    """Checks an OpenAI chat request. Raises InvalidInput that names the first wrong field, after `prefix`."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidInput.field(f"{prefix}messages", "must be a list of messages")
    if not messages:
        raise InvalidInput.field(f"{prefix}messages", "must hold at least one message")
    if len(messages) > MAX_MESSAGES:
        raise InvalidInput.field(f"{prefix}messages", f"must hold at most {MAX_MESSAGES} messages")
    for number, message in enumerate(messages):
        _check_message(message, f"{prefix}messages[{number}]")
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise InvalidInput.field(f"{prefix}tools", "must be a list of objects")
        if len(tools) > MAX_TOOLS:
            raise InvalidInput.field(f"{prefix}tools", f"must hold at most {MAX_TOOLS} tools")
        _check_tools(tools, f"{prefix}tools")
    for name, value in body.items():
        rule = _RULES.get(name)
        if rule is not None and value is not None and not rule[0](value):
            raise InvalidInput.field(f"{prefix}{name}", rule[1])
    if body.get("functions"):
        _check_functions(body["functions"], f"{prefix}functions")
    choice = body.get("tool_choice")
    if choice is not None:
        names = [tool["function"]["name"] for tool in tools if tool.get("type", "function") == "function"] if tools else None
        check_choice(choice, names, f"{prefix}tool_choice")
    wanted = body.get("response_format")
    if wanted is not None:
        _check_format(wanted, f"{prefix}response_format")
    options = body.get("stream_options")
    if options is not None and not isinstance(options.get("include_usage"), bool | None):
        raise InvalidInput.field(f"{prefix}stream_options.include_usage", "must be a boolean")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_stop(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and len(value) <= MAX_STOPS and all(isinstance(text, str) for text in value))


def _is_bias(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(bias, int | float) and not isinstance(bias, bool) for bias in value.values())


def _integer(most: int) -> _Rule:
    return lambda value: _is_int(value) and 1 <= value <= most, f"must be an integer from 1 to {most}"


def _number(low: float, high: float) -> _Rule:
    def fits(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high

    return fits, f"must be a number from {low:g} to {high:g}"


_BOOL: _Rule = (lambda value: isinstance(value, bool), "must be a boolean")
_STRING: _Rule = (lambda value: isinstance(value, str), "must be a string")
_OBJECT: _Rule = (lambda value: isinstance(value, dict), "must be an object")
# What a field must be where it is given and not null. Beyond what OpenAI takes of `n` sums of money would leave their range.
_RULES: Mapping[str, _Rule] = {
    "max_tokens": _integer(2**31 - 1),
    "max_completion_tokens": _integer(2**31 - 1),
    "n": _integer(128),
    "temperature": _number(0.0, 2.0),
    "top_p": _number(0.0, 1.0),
    "presence_penalty": _number(-2.0, 2.0),
    "frequency_penalty": _number(-2.0, 2.0),
    "response_format": _OBJECT,
    "stream_options": _OBJECT,
    "metadata": _OBJECT,
    "audio": _OBJECT,
    "prediction": _OBJECT,
    "web_search_options": _OBJECT,
    "thinking": _OBJECT,
    "modalities": (lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value), "must be a list of strings"),
    "store": _BOOL,
    "service_tier": _STRING,
    "verbosity": _STRING,
    "prompt_cache_key": _STRING,
    "safety_identifier": _STRING,
    "functions": (lambda value: isinstance(value, list), "must be a list of objects"),
    "function_call": (lambda value: isinstance(value, str | dict), "must be a string or an object"),
    "stop": (_is_stop, f"must be a string or a list of at most {MAX_STOPS} strings"),
    "seed": (_is_int, "must be an integer"),
    "logprobs": _BOOL,
    "top_logprobs": (lambda value: _is_int(value) and 0 <= value <= 20, "must be an integer from 0 to 20"),
    "logit_bias": (_is_bias, "must be an object of numbers"),
    "user": _STRING,
    "parallel_tool_calls": _BOOL,
    "reasoning_effort": _STRING,
}


def _check_format(wanted: Mapping[str, Any], where: str) -> None:
    kind = wanted.get("type")
    if kind not in ("text", "json_object", "json_schema", "grammar", "structural_tag"):  # the last two are vLLM's
        raise InvalidInput.field(f"{where}.type", "must be text, json_object or json_schema")
    if kind == "json_schema":
        named = wanted.get("json_schema")
        check_schema(named.get("schema") if isinstance(named, Mapping) else None, f"{where}.json_schema.schema")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise InvalidInput.field(where, "must be an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidInput.field(f"{where}.role", f"must be one of {', '.join(sorted(ROLES))}")
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise InvalidInput.field(f"{where}.content", "must be a string or a list of parts")
    if isinstance(content, list):
        if not content and role in _ASKING:
            raise InvalidInput.field(f"{where}.content", "must hold at least one part")
        if len(content) > MAX_PARTS:
            raise InvalidInput.field(f"{where}.content", f"must hold at most {MAX_PARTS} parts")
        for number, part in enumerate(content):
            _check_part(part, f"{where}.content[{number}]")
    if content is None:
        if role != "assistant":
            raise InvalidInput.field(f"{where}.content", "is required")
        if not any(message.get(name) for name in _SAID_OTHERWISE):
            raise InvalidInput.field(f"{where}.content", "is required unless there are tool_calls")
    calls = message.get("tool_calls")
    if calls is not None:
        if not isinstance(calls, list):
            raise InvalidInput.field(f"{where}.tool_calls", "must be a list of objects")
        for number, call in enumerate(calls):
            _check_call(call, f"{where}.tool_calls[{number}]")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise InvalidInput.field(f"{where}.tool_call_id", "is required in a message of role tool")


def _check_part(part: Any, where: str) -> None:
    if not isinstance(part, dict):
        raise InvalidInput.field(where, "must be an object")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise InvalidInput.field(f"{where}.type", "must be a string")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InvalidInput.field(f"{where}.text", "must be a string")
    elif kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        if not isinstance(url, str) or not url:
            raise InvalidInput.field(f"{where}.image_url.url", "must be a URL")


def _check_call(call: Any, where: str) -> None:
    if not isinstance(call, dict):
        raise InvalidInput.field(where, "must be an object")
    if call.get("type", "function") != "function":
        return
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not isinstance(function.get("arguments"), str):
        raise InvalidInput.field(f"{where}.function", "must be an object with a name and arguments as a string")
    if not isinstance(call.get("id"), str):
        raise InvalidInput.field(f"{where}.id", "is required")


def _check_tools(tools: list[dict[str, Any]], where: str) -> None:
    names, numbers = [], []
    for number, tool in enumerate(tools):
        kind = tool.get("type", "function")
        if not isinstance(kind, str):
            raise InvalidInput.field(f"{where}[{number}].type", "must be a string")
        if kind != "function":
            continue
        names.append(_check_function(tool.get("function"), f"{where}[{number}].function"))
        numbers.append(number)
    check_names(names, lambda at: f"{where}[{numbers[at]}].function.name")


def _check_functions(functions: list[Any], where: str) -> None:
    """Tools in the form that they had before there were tools."""
    if len(functions) > MAX_TOOLS:
        raise InvalidInput.field(where, f"must hold at most {MAX_TOOLS} functions")
    names = [_check_function(function, f"{where}[{number}]") for number, function in enumerate(functions)]
    check_names(names, lambda at: f"{where}[{at}].name")


def _check_function(function: Any, where: str) -> str:
    """The function's name."""
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidInput.field(where, "must be an object with a name")
    if function.get("parameters") is not None:
        check_parameters(function["parameters"], f"{where}.parameters")
    return function["name"]


def check_tokens(lists: Sequence[Sequence[int]], where: str) -> None:
    """Texts to embed that are numbers of tokens already. Raises InvalidInput."""
    if any(token < 0 for tokens in lists for token in tokens):
        raise InvalidInput.field(where, "must hold numbers of tokens, none of them negative")


def check_texts(texts: Sequence[str], where: str) -> None:
    """Texts to embed: 1 to 2,048, none empty. Raises InvalidInput."""
    if not texts:
        raise InvalidInput.field(where, "must hold at least one text")
    if len(texts) > MAX_TEXTS:
        raise InvalidInput.field(where, f"must hold at most {MAX_TEXTS} texts")
    for number, text in enumerate(texts):
        if not text:
            raise InvalidInput.field(f"{where}[{number}]", "must not be empty")
