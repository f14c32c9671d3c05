"""From a request of OpenAI's Responses API to a chat completion. The gateway keeps no conversations: what needs one is refused by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.common.errors import InvalidInput
from services.llm_gateway.chat import text_of
from services.llm_gateway.model_port.responses_reasoning import unsealed
from services.llm_gateway.request_rules import MAX_TOOLS, check_request

# What asks for state, or for work that goes on behind the answer. None, False and empty values ask for nothing.
_STATEFUL = ("previous_response_id", "conversation", "background", "background_options", "prompt", "context_management", "moderation")
# Fields of chat completions, which this API says in another way or not at all.
_OF_CHAT: Mapping[str, str] = {
    "messages": "send them as input", "max_tokens": "say max_output_tokens", "max_completion_tokens": "say max_output_tokens",
    "response_format": "say text.format", "reasoning_effort": "say reasoning.effort", "n": "a response is one answer",
    "functions": "say tools", "function_call": "say tool_choice",
}  # fmt: skip
# Fields that a chat completion has under the same name.
_SHARED = (
    "temperature", "top_p", "parallel_tool_calls", "metadata", "user", "service_tier", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "prompt_cache_options", "extra_body",
)  # fmt: skip
_KNOWN = frozenset(
    {*_STATEFUL, *_SHARED, "model", "input", "instructions", "stream", "stream_options", "store", "tools", "tool_choice", "text",
     "reasoning", "max_output_tokens", "max_tool_calls", "top_logprobs", "include", "truncation"}
)  # fmt: skip
_ROLES = frozenset({"user", "assistant", "system", "developer"})
_MAX_ITEMS = 10_000


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat request that answers a Responses request. Raises InvalidInput that names the wrong or unsupported field."""
    for name in _STATEFUL:
        if body.get(name):
            raise _unsupported(name, "this gateway keeps no responses: send the whole conversation as input")
    for name, instead in _OF_CHAT.items():
        if body.get(name) is not None:
            raise _unsupported(name, f"it belongs to chat completions; {instead}")
    if body.get("truncation") not in (None, "disabled"):
        raise _unsupported("truncation", "the gateway shortens no input")
    # What is unknown to both APIs goes to the provider as it came.
    made = {name: value for name, value in body.items() if name not in _KNOWN}
    made |= {name: body[name] for name in _SHARED if body.get(name) is not None}
    made["messages"] = _messages(body)
    if (most := body.get("max_output_tokens")) is not None:
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most < 2**31:
            raise InvalidInput.field("max_output_tokens", "must be an integer from 1 to 2147483647")
        made["max_completion_tokens"] = most
    _add_tools(made, body)
    _add_text(made, body.get("text"))
    _add_reasoning(made, body.get("reasoning"))
    include = body.get("include") or ()
    if not isinstance(include, list | tuple):
        raise InvalidInput.field("include", "must be a list")
    top = body.get("top_logprobs")
    if top or "message.output_text.logprobs" in include:
        if not isinstance(top, int | None) or isinstance(top, bool) or not 0 <= (top or 0) <= 20:
            raise InvalidInput.field("top_logprobs", "must be an integer from 0 to 20")
        made["logprobs"] = True
        made["top_logprobs"] = top or 0
    streamed = body.get("stream")
    if not isinstance(streamed, bool | None):
        raise InvalidInput.field("stream", "must be a boolean")
    if not isinstance(body.get("store"), bool | None):
        raise InvalidInput.field("store", "must be a boolean")
    calls = body.get("max_tool_calls")
    if calls is not None and (not isinstance(calls, int) or isinstance(calls, bool) or calls < 1):
        raise InvalidInput.field("max_tool_calls", "must be an integer of at least 1")
    if not isinstance(body.get("stream_options"), Mapping | None):
        raise InvalidInput.field("stream_options", "must be an object")
    if streamed:
        made["stream"] = True
        made["stream_options"] = {"include_usage": True}
    check_request(made)
    return made


def _unsupported(field: str, why: str) -> InvalidInput:
    return InvalidInput(f"{field}: not supported: {why}", reason="UNSUPPORTED_PARAMETER", metadata={"param": field})


def _messages(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    instructions, given = body.get("instructions"), body.get("input")
    if not isinstance(instructions, str | None):
        raise InvalidInput.field("instructions", "must be a text")
    reader = _Items()
    if instructions:
        reader.messages.append({"role": "system", "content": instructions})
    if isinstance(given, str) and given:
        reader.messages.append({"role": "user", "content": given})
        return reader.messages
    if not isinstance(given, list) or not given:
        raise InvalidInput.field("input", "must be a text or a list of items, and not empty")
    if len(given) > _MAX_ITEMS:
        raise InvalidInput.field("input", f"must hold at most {_MAX_ITEMS} items")
    for number, item in enumerate(given):
        reader.add(item, f"input[{number}]")
    if reader.messages == [{"role": "system", "content": instructions}] or not reader.messages:
        raise InvalidInput.field("input", "must hold a message or the output of a function")
    return reader.messages


class _Items:
    """Turns items into messages; what one turn of the model said is joined to one message."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._turn: dict[str, Any] | None = None
        self._thinking: list[Any] = []

    def add(self, item: Any, where: str) -> None:
        """Adds one item. Raises InvalidInput."""
        if not isinstance(item, Mapping):
            raise InvalidInput.field(where, "must be an object")
        kind = item.get("type", "message")
        match kind:
            case "message":
                self._add_message(item, where)
            case "function_call":
                self._add_call(item, where)
            case "function_call_output":
                self._turn = None
                call_id = item.get("call_id")
                if not isinstance(call_id, str) or not call_id:
                    raise InvalidInput.field(f"{where}.call_id", "is required")
                content = _content(item.get("output"), f"{where}.output")
                self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
            case "reasoning":
                self._turn = None
                self._thinking = unsealed(item.get("encrypted_content"))
            case _:
                raise _unsupported(f"{where}.type", f"items of type {str(kind)[:64]!r} belong to tools or state that this gateway has not")

    def _model_turn(self) -> dict[str, Any]:
        if self._turn is None:
            self._turn = {"role": "assistant", "content": None}
            if self._thinking:
                self._turn["thinking_blocks"], self._thinking = self._thinking, []
            self.messages.append(self._turn)
        return self._turn

    def _add_message(self, item: Mapping[str, Any], where: str) -> None:
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise InvalidInput.field(f"{where}.role", f"must be one of {', '.join(sorted(_ROLES))}")
        content = _content(item.get("content"), f"{where}.content")
        if role != "assistant":
            self._turn = None
            self.messages.append({"role": role, "content": content})
            return
        if self._turn is not None and (self._turn["content"] is not None or "tool_calls" in self._turn):
            self._turn = None
        turn = self._model_turn()
        turn["content"] = content
        if extra := item.get("extra_content"):
            turn["extra_content"] = extra

    def _add_call(self, item: Mapping[str, Any], where: str) -> None:
        for name in ("call_id", "name", "arguments"):
            if not isinstance(item.get(name), str):
                raise InvalidInput.field(f"{where}.{name}", "is required")
        function = {"name": item["name"], "arguments": item["arguments"]}
        call = {"id": item["call_id"], "type": "function", "function": function}
        if extra := item.get("extra_content"):
            call["extra_content"] = extra
        self._model_turn().setdefault("tool_calls", []).append(call)


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidInput.field(where, "must be a text or a list of parts")
    parts = [_part(part, f"{where}[{number}]") for number, part in enumerate(content)]
    if all(set(part) == {"type", "text"} for part in parts) and len(parts) == 1:
        return parts[0]["text"]
    return parts


def _part(part: Any, where: str) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    match kind:
        case "input_text" | "output_text" | "text":
            if not isinstance(part.get("text"), str):
                raise InvalidInput.field(f"{where}.text", "must be a text")
            kept = {"cache_control": part["cache_control"]} if "cache_control" in part else {}
            return {"type": "text", "text": part["text"], **kept}
        case "refusal":
            return {"type": "refusal", "refusal": text_of(part.get("refusal"))}
        case "input_image":
            url = part.get("image_url")
            if not isinstance(url, str) or not url:
                raise _unsupported(f"{where}.image_url", "an image must come as a URL or a data: URL; the gateway stores no files for it")
            detail = {"detail": part["detail"]} if part.get("detail") else {}
            return {"type": "image_url", "image_url": {"url": url, **detail}}
        case "input_file":
            if not isinstance(part.get("file_data"), str):
                raise _unsupported(f"{where}.file_data", "a file must come as its data; the gateway fetches none")
            named = {"filename": part["filename"]} if part.get("filename") else {}
            return {"type": "file", "file": {"file_data": part["file_data"], **named}}
        case "input_audio" if isinstance(part.get("input_audio"), Mapping):
            return {"type": "input_audio", "input_audio": part["input_audio"]}
    raise InvalidInput.field(f"{where}.type", "must be input_text, output_text, refusal, input_image, input_file or input_audio")


def _add_tools(made: dict[str, Any], body: Mapping[str, Any]) -> None:
    tools = body.get("tools")
    if tools is not None:
        if not isinstance(tools, list):
            raise InvalidInput.field("tools", "must be a list")
        if len(tools) > MAX_TOOLS:
            raise InvalidInput.field("tools", f"must hold at most {MAX_TOOLS} tools")
        if tools:
            made["tools"] = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(tools)]
    choice = body.get("tool_choice")
    if choice is not None:
        made["tool_choice"] = _choice(choice)


def _tool(tool: Any, where: str) -> dict[str, Any]:
    kind = tool.get("type") if isinstance(tool, Mapping) else None
    if kind != "function":
        if not isinstance(kind, str):
            raise InvalidInput.field(f"{where}.type", "must be function")
        raise _unsupported(f"{where}.type", f"{kind[:64]!r} is a tool that OpenAI runs; this gateway offers the caller's functions only")
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        raise InvalidInput.field(f"{where}.name", "is required")
    if not isinstance(tool.get("parameters"), Mapping | None):
        raise InvalidInput.field(f"{where}.parameters", "must be a JSON Schema object")
    function = {name: tool[name] for name in ("name", "description", "parameters", "strict") if tool.get(name) is not None}
    kept = {"cache_control": tool["cache_control"]} if "cache_control" in tool else {}
    return {"type": "function", "function": function, **kept}


def _choice(choice: Any) -> str | dict[str, Any]:
    if isinstance(choice, str) and choice in ("none", "auto", "required"):
        return choice
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind == "function" and isinstance(choice.get("name"), str):
        return {"type": "function", "function": {"name": choice["name"]}}
    if kind == "allowed_tools" and isinstance(choice.get("tools"), list) and choice.get("mode") in ("auto", "required"):
        names = [tool.get("name") for tool in choice["tools"] if isinstance(tool, Mapping) and tool.get("type") == "function"]
        if len(names) == len(choice["tools"]) and all(isinstance(name, str) for name in names):
            tools = [{"type": "function", "function": {"name": name}} for name in names]
            return {"type": "allowed_tools", "allowed_tools": {"mode": choice["mode"], "tools": tools}}
    raise InvalidInput.field("tool_choice", "must be none, auto, required, one function, or allowed_tools of functions")


def _add_text(made: dict[str, Any], text: Any) -> None:
    if text is None:
        return
    if not isinstance(text, Mapping):
        raise InvalidInput.field("text", "must be an object")
    if text.get("verbosity") is not None:
        made["verbosity"] = text["verbosity"]
    wanted = text.get("format")
    if wanted is None:
        return
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_object":
        made["response_format"] = {"type": "json_object"}
    elif kind == "json_schema":
        if not isinstance(wanted.get("name"), str) or not isinstance(wanted.get("schema"), Mapping):
            raise InvalidInput.field("text.format", "needs a name and a schema")
        schema = {name: wanted[name] for name in ("name", "description", "schema", "strict") if wanted.get(name) is not None}
        made["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind != "text":
        raise InvalidInput.field("text.format.type", "must be text, json_object or json_schema")


def _add_reasoning(made: dict[str, Any], reasoning: Any) -> None:
    if reasoning is None:
        return
    if not isinstance(reasoning, Mapping):
        raise InvalidInput.field("reasoning", "must be an object")
    effort = reasoning.get("effort")
    if not isinstance(effort, str | None):
        raise InvalidInput.field("reasoning.effort", "must be a text")
    if effort is not None:
        made["reasoning_effort"] = effort


def told_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tools as a response repeats them: with every field that OpenAI's own have."""
    shown = []
    for tool in tools:
        strict, parameters = tool.get("strict"), tool.get("parameters")
        shown.append({**tool, "strict": strict, "parameters": parameters, "description": tool.get("description")})
    return shown
