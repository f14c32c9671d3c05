"""CompletionInput to an OpenAI request and back."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
from bulkhead.common.v1 import common_pb2
from bulkhead.llm.v1 import llm_pb2

from services.common.errors import InvalidInput
from services.llm_gateway.chat import ChatCall, Chunk, index_of, text_of
from services.llm_gateway.money import Usage
from services.llm_gateway.request_rules import check_request
from services.llm_gateway.results import Notice, Outcome
from services.llm_gateway.terms import CacheTerms, Terms

MAX_IDEMPOTENCY_KEY = 255
# Fields that have a place of their own in CompletionInput, or that a surface decides.
_RESERVED = frozenset(
    {"model", "messages", "tools", "tool_choice", "temperature", "max_tokens", "response_format", "stream", "stream_options", "n"}
)


def _json(raw: bytes, field: str, *kinds: type) -> Any:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidInput.field(f"input.{field}", "is not valid JSON") from None
    if not isinstance(value, kinds):
        raise InvalidInput.field(f"input.{field}", "is JSON of the wrong type")
    return value


def terms_of(wanted: Any, idempotency_key: str = "", prefix: str = "") -> Terms:
    """What a CompletionInput, EmbedRequest or RerankRequest asks of the gateway itself. Raises InvalidInput that names the field
    after `prefix`.
    """
    cache = CacheTerms()
    if wanted.HasField("cache"):
        asked = wanted.cache
        if not 0.0 <= asked.importance <= 1.0:
            raise InvalidInput.field(f"{prefix}cache.importance", "must be a number from 0 to 1")
        cache = CacheTerms(
            read=not asked.no_cache,
            write=not asked.no_store,
            max_age_s=_seconds(asked.max_age, f"{prefix}cache.max_age") if asked.HasField("max_age") else None,
            ttl_s=_seconds(asked.ttl, f"{prefix}cache.ttl") if asked.HasField("ttl") else None,
            semantic=asked.semantic,
            importance=asked.importance,
        )
    if len(idempotency_key) > MAX_IDEMPOTENCY_KEY:
        raise InvalidInput.field("idempotency_key", f"must be at most {MAX_IDEMPOTENCY_KEY} characters")
    return Terms(
        cache=cache,
        idempotency_key=idempotency_key,
        run_budget_microusd=_money(wanted, "run_budget_microusd"),
        max_cost_microusd=_money(wanted, "max_cost_microusd"),
    )


def _money(message: Any, name: str) -> int | None:
    """An optional amount. Raises InvalidInput below zero, and for the budget of a run that is not named."""
    if not message.HasField(name):
        return None
    amount: int = getattr(message, name)
    if amount < 0:
        raise InvalidInput.field(name, "must not be negative")
    if name == "run_budget_microusd" and not message.run_id:
        raise InvalidInput.field(name, "needs the run_id that it is the budget of")
    return amount


def _seconds(duration: Any, where: str) -> float:
    seconds = duration.ToNanoseconds() / 1e9
    if seconds < 0:
        raise InvalidInput.field(where, "must not be negative")
    return seconds


def _chat_terms(wanted: llm_pb2.CompletionInput, idempotency_key: str) -> Terms:
    terms = terms_of(wanted, idempotency_key, "input.")
    if wanted.low_priority or wanted.arm:
        terms = replace(terms, low_priority=wanted.low_priority, arm=wanted.arm)
    return terms


def chat_call(wanted: llm_pb2.CompletionInput, *, stream: bool, idempotency_key: str = "") -> ChatCall:
    """The call that a CompletionInput asks for. Raises InvalidInput. Fields that are not set are not sent."""
    body: dict[str, Any] = {}
    if wanted.extra_json:
        body.update(_json(wanted.extra_json, "extra_json", dict))
        for name in body.keys() & _RESERVED:
            raise InvalidInput.field("input.extra_json", f"must not hold {name}")
    body["messages"] = [_message(message, number) for number, message in enumerate(wanted.messages)]
    if wanted.tools:
        body["tools"] = [_tool(tool, number) for number, tool in enumerate(wanted.tools)]
    if wanted.tool_choice_json:
        body["tool_choice"] = _json(wanted.tool_choice_json, "tool_choice_json", str, dict)
    if wanted.response_format_json:
        body["response_format"] = _json(wanted.response_format_json, "response_format_json", dict)
    if wanted.HasField("temperature"):
        body["temperature"] = wanted.temperature
    if wanted.HasField("max_tokens"):
        body["max_tokens"] = wanted.max_tokens
    if stream:
        # The caller is a service of ours, which wants exact usage.
        body["stream_options"] = {"include_usage": True}
    check_request(body, prefix="input.")
    return ChatCall(wanted.model, body, run_id=wanted.run_id, thread_id=wanted.thread_id, terms=_chat_terms(wanted, idempotency_key))


def _message(message: llm_pb2.Message, number: int) -> dict[str, Any]:
    made: dict[str, Any] = {"role": message.role}
    if message.content_json:
        made["content"] = _json(message.content_json, f"messages[{number}].content_json", list)
    elif message.text or not message.tool_calls:
        made["content"] = message.text
    else:
        made["content"] = None
    if message.tool_calls:
        made["tool_calls"] = [
            {
                "id": call.tool_call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": _text(call.arguments_json, f"messages[{number}].tool_calls")},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    if message.name:
        made["name"] = message.name
    return made


def _text(raw: bytes, field: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidInput.field(f"input.{field}", "is not UTF-8") from None


def _tool(tool: llm_pb2.ToolDefinition, number: int) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        function["parameters"] = _json(tool.parameters_json, f"tools[{number}].parameters_json", dict)
    return {"type": "function", "function": function}


def message_of(text: str, calls: list[dict[str, str]]) -> llm_pb2.Message:
    """An assistant message; `calls` as {id, name, arguments}."""
    made = llm_pb2.Message(role="assistant", text=text)
    for call in calls:
        made.tool_calls.add(tool_call_id=call["id"], name=call["name"], arguments_json=call["arguments"].encode())
    return made


def answer_message(message: dict[str, Any]) -> llm_pb2.Message:
    """The message of a whole completion."""
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function") or {}
        name, arguments = text_of(function.get("name")), text_of(function.get("arguments"))
        calls.append({"id": text_of(call.get("id")), "name": name, "arguments": arguments})
    content = message.get("content")
    made = message_of(content if isinstance(content, str) else "", calls)
    if isinstance(content, list):
        made.content_json = orjson.dumps(content)
    return made


def delta_events(chunks: list[Chunk]) -> list[llm_pb2.StreamCompleteResponse]:
    """Deltas of one network read; texts that follow each other become one event."""
    events: list[llm_pb2.StreamCompleteResponse] = []
    texts: list[str] = []

    def flush() -> None:
        if texts:
            events.append(llm_pb2.StreamCompleteResponse(text_delta=llm_pb2.TextDelta(text="".join(texts))))
            texts.clear()

    for chunk in chunks:
        if chunk.text:
            texts.append(chunk.text)
        for call in chunk.tool_calls:
            flush()
            function = call.get("function") or {}
            delta = llm_pb2.ToolCallDelta(
                index=index_of(call),
                tool_call_id=text_of(call.get("id")),
                name=text_of(function.get("name")),
                arguments_fragment=text_of(function.get("arguments")),
            )
            events.append(llm_pb2.StreamCompleteResponse(tool_call_delta=delta))
    flush()
    return events


def warning_of(notice: Notice) -> common_pb2.Warning:
    """A notice as the warning that travels to the user."""
    return common_pb2.Warning(
        code=notice.code, fallback=notice.fallback, user_message=notice.message, attributes_json=orjson.dumps(dict(notice.attributes))
    )


def usage_message(usage: Usage, model_calls: int = 1) -> common_pb2.Usage:
    """Usage with its cost in micro-USD."""
    return common_pb2.Usage(
        input_tokens=usage.input,
        output_tokens=usage.output,
        cached_input_tokens=usage.cached_input,
        reasoning_tokens=usage.reasoning,
        cost_microusd=usage.cost_microusd,
        estimated=usage.estimated,
        model_calls=model_calls,
    )


def outcome_message(outcome: Outcome, notices: Sequence[Notice]) -> llm_pb2.CompletionOutcome:
    """How a completion came about."""
    return llm_pb2.CompletionOutcome(
        finish_reason=outcome.finish_reason,
        model=outcome.deployment.group,
        provider_model=outcome.provider_model,
        provider=outcome.deployment.provider,
        deployment_id=outcome.deployment.id,
        response_id=outcome.response_id,
        usage=usage_message(outcome.usage),
        attempts=outcome.attempts,
        fallbacks=outcome.fallbacks,
        retries=outcome.retries,
        cached=outcome.cached,
        routing_json=orjson.dumps(dict(outcome.routing)) if outcome.routing else b"",
        warnings=[warning_of(notice) for notice in notices],
    )
