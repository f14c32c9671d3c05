"""Requests as messages to requests of the domain."""

from collections.abc import Callable, Container
from dataclasses import replace
from typing import Any

import orjson
from bulkhead.llm.v1 import llm_pb2

from services.common.errors import InvalidInput
from services.common.idempotency import MOST_KEY_CHARS
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.request_rules import MAX_TEXTS, check_request, check_texts, check_tokens
from services.llm_gateway.terms import CacheTerms, Terms

# Fields that have a place of their own in CompletionInput, or that a surface decides.
_RESERVED = frozenset({"model", "messages", "tools", "tool_choice", "temperature", "max_tokens", "response_format", "stream"})
_OF_MESSAGE = frozenset({"role", "content", "tool_calls", "tool_call_id", "name"})
_OF_CALL = frozenset({"id", "function"})
_OF_EMBEDDING = frozenset({"model", "input", "dimensions", "encoding_format"})
_OF_RANKING = frozenset({"model", "query", "documents", "top_n", "return_documents", "rank_fields"})
MAX_DOCUMENTS = 1_000


def json_of(raw: bytes, field: str, *kinds: type) -> Any:
    """The JSON of a field, of one of `kinds`. Raises InvalidInput that names it."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise InvalidInput.field(field, "is not valid JSON") from None
    if not isinstance(value, kinds):
        raise InvalidInput.field(field, "is JSON of the wrong type")
    return value


def extras_of(raw: bytes, field: str, reserved: Container[str]) -> dict[str, Any]:
    """The members of a JSON object, none of which is `reserved`. Raises InvalidInput."""
    if not raw:
        return {}
    extras: dict[str, Any] = json_of(raw, field, dict)
    for name in extras:
        if name in reserved:
            raise InvalidInput.field(field, f"must not hold {name[:64]}")
    return extras


def _json(raw: bytes, field: str, *kinds: type) -> Any:
    return json_of(raw, f"input.{field}", *kinds)


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
            stale_if_error_s=_seconds(asked.stale_if_error, f"{prefix}cache.stale_if_error") if asked.HasField("stale_if_error") else None,
        )
    if idempotency_key and not (len(idempotency_key) <= MOST_KEY_CHARS and idempotency_key.isprintable()):
        raise InvalidInput.field("idempotency_key", f"must be at most {MOST_KEY_CHARS} printable characters")
    if wanted.finish_unattended and not idempotency_key:
        raise InvalidInput.field(f"{prefix}finish_unattended", "needs an idempotency_key to come back with")
    return Terms(
        cache=cache,
        idempotency_key=idempotency_key,
        lingers=wanted.finish_unattended,
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


def chat_call(
    wanted: llm_pb2.CompletionInput, *, stream: bool, idempotency_key: str = "", opened: Callable[[Any], None] | None = None
) -> ChatCall:
    """The call that a CompletionInput asks for. Raises InvalidInput. Fields that are not set are not sent."""
    body = extras_of(wanted.extra_json, "input.extra_json", _RESERVED)
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
    check_request(body, prefix="input.")
    if stream:
        # The caller is a service of ours, which wants exact usage.
        body["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    elif body.get("stream_options") is not None:
        raise InvalidInput.field("input.stream_options", "is only allowed in a stream")
    terms = _chat_terms(wanted, idempotency_key)
    return ChatCall(wanted.model, body, run_id=wanted.run_id, thread_id=wanted.thread_id, terms=terms, opened=opened)


def _message(message: llm_pb2.Message, number: int) -> dict[str, Any]:
    where = f"messages[{number}]"
    made: dict[str, Any] = {"role": message.role}
    otherwise = message.tool_calls or message.refusal or message.reasoning or message.extra_json
    if message.content_json:
        made["content"] = _json(message.content_json, f"{where}.content_json", list)
    elif message.text or message.role != "assistant" or not otherwise:
        made["content"] = message.text
    else:
        made["content"] = None
    if message.tool_calls:
        made["tool_calls"] = [_call(call, f"{where}.tool_calls[{place}]") for place, call in enumerate(message.tool_calls)]
    if message.tool_call_id:
        made["tool_call_id"] = message.tool_call_id
    if message.name:
        made["name"] = message.name
    if message.refusal:
        made["refusal"] = message.refusal
    extras = extras_of(message.extra_json, f"input.{where}.extra_json", _OF_MESSAGE)
    if message.reasoning and "reasoning" not in extras:
        made["reasoning_content"] = message.reasoning
    return made | extras


def _call(call: llm_pb2.ToolCall, where: str) -> dict[str, Any]:
    extras = extras_of(call.extra_json, f"input.{where}.extra_json", _OF_CALL)
    made: dict[str, Any] = {"id": call.tool_call_id, "type": "function"}
    if extras.get("type", "function") == "function":
        made["function"] = {"name": call.name, "arguments": _text(call.arguments_json, where)}
    return made | extras


def _text(raw: bytes, field: str) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise InvalidInput.field(f"input.{field}", "is not UTF-8") from None


def _tool(tool: llm_pb2.ToolDefinition, number: int) -> dict[str, Any]:
    if tool.tool_json:
        whole: dict[str, Any] = _json(tool.tool_json, f"tools[{number}].tool_json", dict)
        return whole
    function: dict[str, Any] = {"name": tool.name}
    if tool.description:
        function["description"] = tool.description
    if tool.parameters_json:
        function["parameters"] = _json(tool.parameters_json, f"tools[{number}].parameters_json", dict)
    return {"type": "function", "function": function}


def embedding_body(wanted: llm_pb2.EmbedRequest) -> dict[str, Any]:
    """The request that an EmbedRequest asks for. Raises InvalidInput."""
    body = extras_of(wanted.extra_json, "extra_json", _OF_EMBEDDING)
    if wanted.token_lists:
        if wanted.texts:
            raise InvalidInput.field("token_lists", "stand in place of texts")
        if len(wanted.token_lists) > MAX_TEXTS or not all(entry.tokens for entry in wanted.token_lists):
            raise InvalidInput.field("token_lists", f"must hold at most {MAX_TEXTS} lists, none of them empty")
        body["input"] = [list(entry.tokens) for entry in wanted.token_lists]
        check_tokens(body["input"], "token_lists")
    else:
        body["input"] = list(wanted.texts)
        check_texts(body["input"], "texts")
    if not isinstance(body.get("user"), str | None):
        raise InvalidInput.field("extra_json.user", "must be a string")
    if wanted.dimensions < 0:
        raise InvalidInput.field("dimensions", "must not be negative")
    if wanted.dimensions:
        body["dimensions"] = wanted.dimensions
    return body


def ranking_body(wanted: llm_pb2.RerankRequest) -> dict[str, Any]:
    """The request that a RerankRequest asks for. Raises InvalidInput."""
    if not wanted.query:
        raise InvalidInput.field("query", "must not be empty")
    if not 1 <= len(wanted.documents) <= MAX_DOCUMENTS:
        raise InvalidInput.field("documents", f"must hold 1 to {MAX_DOCUMENTS} texts")
    for number, document in enumerate(wanted.documents):
        if not document:
            raise InvalidInput.field(f"documents[{number}]", "must not be empty")
    if wanted.top_n < 0:
        raise InvalidInput.field("top_n", "must not be negative")
    body = extras_of(wanted.extra_json, "extra_json", _OF_RANKING)
    body |= {"query": wanted.query, "documents": list(wanted.documents)}
    if wanted.top_n:
        body["top_n"] = wanted.top_n
    return body
