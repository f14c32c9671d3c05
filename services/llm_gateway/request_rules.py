"""What a request must be before any provider hears of it. Unknown fields are nobody's business here."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.common.errors import InvalidInput

# What a caller's key or token must hold for every call that costs.
SCOPE = "models:invoke"
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
MAX_TOOLS = 2_000
MAX_TEXTS = 512
_COUNTS = ("max_tokens", "max_completion_tokens", "n")
_NUMBERS = {"temperature": (0.0, 2.0), "top_p": (0.0, 1.0), "presence_penalty": (-2.0, 2.0), "frequency_penalty": (-2.0, 2.0)}


def check_request(body: Mapping[str, Any], prefix: str = "") -> None:
    """Checks an OpenAI chat request. Raises InvalidInput that names the first wrong field, after `prefix`."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise InvalidInput.field(f"{prefix}messages", "must be a list of messages")
    if not messages:
        raise InvalidInput.field(f"{prefix}messages", "must hold at least one message")
    for number, message in enumerate(messages):
        _check_message(message, f"{prefix}messages[{number}]")
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
            raise InvalidInput.field(f"{prefix}tools", "must be a list of objects")
        if len(tools) > MAX_TOOLS:
            raise InvalidInput.field(f"{prefix}tools", f"must hold at most {MAX_TOOLS} tools")
        for number, tool in enumerate(tools):
            _check_tool(tool, f"{prefix}tools[{number}]")
    for name in _COUNTS:
        value = body.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InvalidInput.field(f"{prefix}{name}", "must be an integer of at least 1")
    for name, (low, high) in _NUMBERS.items():
        value = body.get(name)
        if value is not None and (not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high):
            raise InvalidInput.field(f"{prefix}{name}", f"must be a number from {low:g} to {high:g}")
    choice = body.get("tool_choice")
    if choice is not None and not isinstance(choice, str | dict):
        raise InvalidInput.field(f"{prefix}tool_choice", "must be a string or an object")
    for name in ("response_format", "stream_options", "metadata"):
        value = body.get(name)
        if value is not None and not isinstance(value, dict):
            raise InvalidInput.field(f"{prefix}{name}", "must be an object")


def _check_message(message: Any, where: str) -> None:
    if not isinstance(message, dict):
        raise InvalidInput.field(where, "must be an object")
    role = message.get("role")
    if not isinstance(role, str) or role not in ROLES:
        raise InvalidInput.field(f"{where}.role", f"must be one of {', '.join(sorted(ROLES))}")
    content = message.get("content")
    if not isinstance(content, str | list | None):
        raise InvalidInput.field(f"{where}.content", "must be a string or a list of parts")
    if isinstance(content, list) and not all(isinstance(part, dict) for part in content):
        raise InvalidInput.field(f"{where}.content", "must be a list of objects")
    if content is None and role != "assistant":
        raise InvalidInput.field(f"{where}.content", "is required")
    calls = message.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls)):
        raise InvalidInput.field(f"{where}.tool_calls", "must be a list of objects")
    if role == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise InvalidInput.field(f"{where}.tool_call_id", "is required in a message of role tool")


def _check_tool(tool: Mapping[str, Any], where: str) -> None:
    if tool.get("type", "function") != "function":
        return
    function = tool.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidInput.field(f"{where}.function", "must be an object with a name")
    if not isinstance(function.get("parameters"), Mapping | None):
        raise InvalidInput.field(f"{where}.function.parameters", "must be a JSON Schema object")


def check_texts(texts: Sequence[str], where: str) -> None:
    """Texts to embed: 1 to 512, none empty. Raises InvalidInput."""
    if not texts:
        raise InvalidInput.field(where, "must hold at least one text")
    if len(texts) > MAX_TEXTS:
        raise InvalidInput.field(where, f"must hold at most {MAX_TEXTS} texts")
    for number, text in enumerate(texts):
        if not text:
            raise InvalidInput.field(f"{where}[{number}]", "must not be empty")
