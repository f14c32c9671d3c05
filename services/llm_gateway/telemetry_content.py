"""What spans tell of a request and its answer: parameters always, prompts and answers only where the operator wants them."""

from collections.abc import Iterable, Mapping
from typing import Any

import orjson
from opentelemetry.trace import Span

from services.common.logging import redact

# A span is no archive: longer content is cut, and backends refuse far longer attributes anyway.
MAX_CONTENT = 32 * 1024
_NUMBERS = {
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "top_k": "gen_ai.request.top_k",
    "frequency_penalty": "gen_ai.request.frequency_penalty",
    "presence_penalty": "gen_ai.request.presence_penalty",
    "seed": "gen_ai.request.seed",
    "max_tokens": "gen_ai.request.max_tokens",
    "max_completion_tokens": "gen_ai.request.max_tokens",
    "dimensions": "gen_ai.embeddings.dimension.count",
}


def request_attributes(body: Mapping[str, Any], *, latest: bool) -> dict[str, Any]:
    """`gen_ai.request.*` of an OpenAI request."""
    found: dict[str, Any] = {}
    for name, attribute in _NUMBERS.items():
        value = body.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[attribute] = value
    choices = body.get("n")
    if isinstance(choices, int) and choices > 1:
        found["gen_ai.request.choice.count"] = choices
    stop = body.get("stop")
    if stop:
        found["gen_ai.request.stop_sequences"] = [stop] if isinstance(stop, str) else [text for text in stop if isinstance(text, str)]
    if latest and body.get("stream"):
        found["gen_ai.request.stream"] = True
    form = body.get("response_format")
    if isinstance(form, Mapping) and form.get("type") in ("json_object", "json_schema"):
        found["gen_ai.output.type"] = "json"
    return found


def add_input(span: Span, body: Mapping[str, Any], *, latest: bool) -> None:
    """The prompt: messages as attributes, or in the previous names an event for each."""
    messages = [message for message in body.get("messages") or () if isinstance(message, Mapping)]
    if not latest:
        for message in messages:
            span.add_event(f"gen_ai.{message.get('role', 'user')}.message", {"content": _cut(_text(message.get("content")))})
        return
    system = [message for message in messages if message.get("role") in ("system", "developer")]
    if system:
        span.set_attribute("gen_ai.system_instructions", _json(part for message in system for part in _parts(message)))
    others = [{"role": str(m.get("role")), "parts": _parts(m)} for m in messages if m not in system]
    span.set_attribute("gen_ai.input.messages", _json(others))


def add_output(span: Span, text: str, tool_calls: Iterable[Mapping[str, Any]], finish_reason: str, *, latest: bool) -> None:
    """The answer; `tool_calls` as {id, name, arguments}."""
    calls = [{"type": "tool_call", "id": c.get("id"), "name": c.get("name"), "arguments": _parsed(c.get("arguments"))} for c in tool_calls]
    if not latest:
        span.add_event("gen_ai.choice", {"finish_reason": finish_reason, "message": _json([{"content": text, "tool_calls": calls}])})
        return
    parts = [*([{"type": "text", "content": text}] if text else []), *calls]
    span.set_attribute("gen_ai.output.messages", _json([{"role": "assistant", "parts": parts, "finish_reason": finish_reason}]))


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    if message.get("role") == "tool":
        return [{"type": "tool_call_response", "id": message.get("tool_call_id"), "response": _text(message.get("content"))}]
    parts: list[dict[str, Any]] = []
    if text := _text(message.get("content")):
        parts.append({"type": "text", "content": text})
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, Mapping):
            arguments = _parsed(function.get("arguments"))
            parts.append({"type": "tool_call", "id": call.get("id"), "name": function.get("name"), "arguments": arguments})
    return parts


def _text(value: Any) -> str:
    """Pictures and sounds are named by their kind: their bytes have no place in a span."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        return ""
    return " ".join(str(part["text"]) if "text" in part else f"[{part.get('type')}]" for part in value if isinstance(part, Mapping))


def _parsed(arguments: Any) -> Any:
    try:
        return orjson.loads(arguments) if isinstance(arguments, str) else arguments
    except orjson.JSONDecodeError:
        return arguments


def _json(value: Iterable[Any]) -> str:
    return _cut(orjson.dumps(list(value), default=str).decode())


def _cut(text: str) -> str:
    return redact(text[:MAX_CONTENT])
