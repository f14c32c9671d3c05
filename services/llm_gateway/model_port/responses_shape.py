"""Response objects and their items, as OpenAI's Responses API shapes them."""

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.common.errors import BulkheadError, Overloaded, QuotaExceeded
from services.llm_gateway.chat import arguments_text, text_of
from services.llm_gateway.model_port.responses_reasoning import sealed
from services.llm_gateway.model_port.responses_request import told_tools
from services.llm_gateway.money import Usage

SEALED = "reasoning.encrypted_content"
INCOMPLETE: Mapping[str, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
# What a response repeats of its request.
_REPEATED = ("instructions", "max_output_tokens", "max_tool_calls", "temperature", "top_p", "top_logprobs", "user", "prompt_cache_key",
             "safety_identifier", "service_tier")  # fmt: skip


def new_id(kind: str) -> str:
    """A fresh id: `resp`, `msg`, `fc` or `rs`."""
    return f"{kind}_{uuid.uuid4().hex}"


@dataclass(frozen=True, slots=True)
class Frame:
    """What all response objects of one request share."""

    id: str
    created_at: int
    asked: Mapping[str, Any]

    @classmethod
    def of(cls, asked: Mapping[str, Any]) -> "Frame":
        """The frame for a request."""
        return cls(new_id("resp"), int(time.time()), asked)

    @property
    def seals(self) -> bool:
        """Whether the caller wants to send the thinking back."""
        return SEALED in (self.asked.get("include") or ())

    def response(self, status: str, model: str, output: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """A response object with its items."""
        asked = self.asked
        text = asked.get("text") or {}
        reasoning = asked.get("reasoning") or {}
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": None,
            **{name: asked.get(name) for name in _REPEATED},
            "metadata": asked.get("metadata") or {},
            "model": model,
            "output": output,
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "store": False,
            "text": {**text, "format": text.get("format") or {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": told_tools(asked.get("tools") or ()),
            "truncation": "disabled",
            "usage": None,
            **more,
        }

    def ended(
        self, finish_reason: str, model: str, output: list[dict[str, Any]], usage: Mapping[str, Any] | None, charged: Usage
    ) -> dict[str, Any]:
        """The response of an answer that has come to its end: completed, or incomplete with the reason."""
        reason = INCOMPLETE.get(finish_reason)
        return self.response(
            "incomplete" if reason else "completed",
            model,
            output,
            incomplete_details={"reason": reason} if reason else None,
            usage=told_usage(usage, charged),
            completed_at=None if reason else int(time.time()),
        )

    def failed(self, model: str, output: list[dict[str, Any]], error: BulkheadError) -> dict[str, Any]:
        """The response of an answer that broke off."""
        return self.response("failed", model, output, error={"code": _code(error), "message": error.message})


def _code(error: BulkheadError) -> str:
    """One of the few codes that OpenAI has for a response that failed."""
    if isinstance(error, QuotaExceeded | Overloaded):
        return "rate_limit_exceeded"
    return "invalid_prompt" if error.http_status == 400 else "server_error"


def told_usage(usage: Mapping[str, Any] | None, charged: Usage) -> dict[str, Any]:
    """The provider's usage; without one, what the call was charged with."""
    if usage is None:
        usage = {
            "prompt_tokens": charged.input,
            "completion_tokens": charged.output,
            "prompt_tokens_details": {"cached_tokens": charged.cached_input, "cache_creation_tokens": charged.cache_write},
            "completion_tokens_details": {"reasoning_tokens": charged.reasoning},
        }
    read, written = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    prompt, completion = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    cache_write = _count(prompt, "cache_creation_tokens") or _count(prompt, "cache_write_tokens")
    return {
        "input_tokens": read,
        "input_tokens_details": {"cached_tokens": _count(prompt, "cached_tokens"), "cache_write_tokens": cache_write},
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": _count(completion, "reasoning_tokens")},
        "total_tokens": read + written,
    }


def _count(holder: Any, name: str) -> int:
    value = holder.get(name) if isinstance(holder, Mapping) else None
    return value if isinstance(value, int) and value > 0 else 0


def text_part(text: str, logprobs: Any = None) -> dict[str, Any]:
    """A part of a message's content."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs or []}


def refusal_part(text: str) -> dict[str, Any]:
    """The same, for what the model would not do."""
    return {"type": "refusal", "refusal": text}


def message_item(item_id: str, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    """A message of the model."""
    return {"id": item_id, "type": "message", "status": status, "role": "assistant", "content": content}


def call_item(item_id: str, status: str, call_id: str, name: str, arguments: str, extra: Any = None) -> dict[str, Any]:
    """A function call. `extra` is what its provider needs back with it."""
    made = {"id": item_id, "type": "function_call", "status": status, "call_id": call_id, "name": name, "arguments": arguments}
    return {**made, "extra_content": extra} if extra else made


def reasoning_item(item_id: str, text: str, seal: str | None) -> dict[str, Any]:
    """What the model thought, as far as its provider tells."""
    summary = [{"type": "summary_text", "text": text}] if text else []
    made: dict[str, Any] = {"id": item_id, "type": "reasoning", "summary": summary}
    return {**made, "encrypted_content": seal} if seal else made


def items_of(frame: Frame, choice: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The output items of one choice of a chat completion."""
    message = choice["message"]
    status = "incomplete" if choice.get("finish_reason") in INCOMPLETE else "completed"
    found = []
    thought, blocks = thought_of(message), message.get("thinking_blocks")
    seal = sealed(blocks) if frame.seals and isinstance(blocks, list) and blocks else None
    if thought or seal:
        found.append(reasoning_item(new_id("rs"), thought, seal))
    content = []
    if text := _text(message.get("content")):
        logprobs = choice.get("logprobs")
        content.append(text_part(text, logprobs.get("content") if isinstance(logprobs, Mapping) else None))
    if refusal := text_of(message.get("refusal")):
        content.append(refusal_part(refusal))
    calls = message.get("tool_calls") or ()
    if content or not calls:
        made = message_item(new_id("msg"), status, content or [text_part("")])
        found.append({**made, "extra_content": message["extra_content"]} if message.get("extra_content") else made)
    for call in calls:
        function = call.get("function") or {}
        name, arguments = text_of(function.get("name")), arguments_text(function.get("arguments"))
        found.append(call_item(new_id("fc"), status, text_of(call.get("id")) or new_id("call"), name, arguments, call.get("extra_content")))
    return found


def thought_of(holder: Mapping[str, Any]) -> str:
    """What a message or a delta tells of the thinking: newer vLLM and OpenRouter call it `reasoning`."""
    return text_of(holder.get("reasoning_content")) or text_of(holder.get("reasoning"))


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(text_of(part.get("text")) for part in content if isinstance(part, Mapping))
    return text_of(content)
