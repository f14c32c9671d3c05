"""Anthropic's Messages API. Source: Claude API reference, Messages and Errors, version 2023-06-01."""

import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from services.llm_gateway.adapters.anthropic_request import request_of
from services.llm_gateway.adapters.anthropic_stream import MessagesReader
from services.llm_gateway.chat import Answer, malformed, parsed, request_json, text_of
from services.llm_gateway.failures import Failure, FailureClass, classify, error_of
from services.llm_gateway.messages_shape import BETAS, EXTRAS, JSON_TOOL, OWN_FIELDS, ending_of, message_of, openai_usage, unfit
from services.llm_gateway.ports import Attempt, Ranking, StreamReader, Vectors, WireRequest
from services.llm_gateway.retry_after import retry_after_s

API_BASE = "https://api.anthropic.com"
VERSION = "2023-06-01"
_PATH = "/v1/messages"
_AN_HOUR = b'"ttl":"1h"'

# Statuses that stand for the error types of streams, which have no status of their own.
_STATUS_OF: Mapping[str, int] = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_QUOTA_TEXT = re.compile(r"credit balance|usage limits?\b|spend limit", re.I)
_CONTEXT_TEXT = re.compile(r"prompt is too long|exceed context limit|input (?:is|length).{0,40}too long", re.I)
_POLICY_TEXT = re.compile(r"blocked by content filter", re.I)
_PREFILL_TEXT = re.compile(r"assistant message prefill", re.I)


class AnthropicDialect:
    """Translates between OpenAI's shape and the Messages API."""

    def chat(self, attempt: Attempt, *, stream: bool) -> WireRequest:
        """POST /v1/messages."""
        deployment = attempt.deployment
        made = request_of(deployment, attempt.body, stream=stream)
        body = request_json(made)
        prices = deployment.prices
        if _AN_HOUR in body and prices.known and not prices.free and not prices.cache_write_1h:
            # Nothing was reserved for its price, so the prefix is kept for the five minutes that were.
            body = orjson.dumps(_shorter(made))
        headers = {"anthropic-version": VERSION, **deployment.headers}
        extras = attempt.body.get(EXTRAS)
        if isinstance(extras, Mapping) and isinstance(betas := extras.get(BETAS), list):
            own = [beta.strip() for beta in headers.get("anthropic-beta", "").split(",") if beta.strip()]
            headers["anthropic-beta"] = ",".join(dict.fromkeys([*own, *(beta for beta in betas if isinstance(beta, str))]))
        # An OAuth token in extra_headers stands in place of the key.
        if deployment.api_key and "authorization" not in headers:
            headers["x-api-key"] = deployment.api_key
        return WireRequest(_url(deployment.api_base), headers, body)

    def read_answer(self, raw: bytes) -> Answer:
        """A whole message. Raises UpstreamFault."""
        message = parsed(raw, failure_of)
        blocks = message.get("content") if isinstance(message, dict) else None
        if not isinstance(blocks, list) or not all(isinstance(block, dict) for block in blocks):
            raise malformed("the body has no content")
        if not isinstance(message.get("stop_reason"), str):
            raise malformed("the message has no stop_reason")
        finish, more, own = ending_of(message)
        blocks, forced = _unforced(blocks)
        made = message_of(blocks, answer=True)
        if own:
            made[OWN_FIELDS] = {**made.get(OWN_FIELDS, {}), **own}
        if forced and finish == "tool_calls" and "tool_calls" not in made:
            finish = "stop"
        data: dict[str, Any] = {
            "id": text_of(message.get("id")),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": text_of(message.get("model")),
            "choices": [{"index": 0, "message": made, "finish_reason": finish, "logprobs": None, **more}],
        }
        usage = openai_usage(message.get("usage"))
        if usage is not None:
            data["usage"] = usage
        return Answer(orjson.dumps(data), data)

    def reader(self) -> StreamReader:
        """A reader of the event stream."""
        return MessagesReader(failure_of)

    def embed(self, attempt: Attempt) -> WireRequest:
        """There are no embeddings in this API. Raises UpstreamFault (UNFIT)."""
        raise unfit("this provider has no embeddings", "model")

    def read_vectors(self, raw: bytes) -> Vectors:
        """Never asked for."""
        raise malformed("this provider has no embeddings")

    def rerank(self, attempt: Attempt) -> WireRequest:
        """There is no ranking in this API. Raises UpstreamFault (UNFIT)."""
        raise unfit("this provider ranks nothing", "model")

    def read_ranking(self, raw: bytes) -> Ranking:
        """Never asked for."""
        raise malformed("this provider ranks nothing")

    def failure(self, status: int, body: bytes, headers: Mapping[str, str]) -> Failure:
        """What an answer of another status means."""
        return failure_of(error_of(body) or {}, status, retry_after_s(headers, time.time()))


def failure_of(error: Mapping[str, Any], status: int = 200, retry_after: float | None = None) -> Failure:
    """The failure that an error object means; status 200 is an error inside a success or a stream."""
    kind = text_of(error.get("type"))
    if status < 300:
        status = _STATUS_OF.get(kind, 500)
    details = error.get("details")
    code = text_of(details.get("error_code")) if isinstance(details, Mapping) else ""
    found = classify(status, error, retry_after)
    failure_class = _class(kind, status, text_of(error.get("message")), found.failure_class)
    return replace(found, failure_class=failure_class, code="" if failure_class is FailureClass.UNFIT else (code or kind)[:64])


def _class(kind: str, status: int, message: str, found: FailureClass) -> FailureClass:
    if status < 500 and _QUOTA_TEXT.search(message) and kind != "rate_limit_error":
        return FailureClass.QUOTA
    match kind:
        case "overloaded_error" | "api_error" | "timeout_error":
            return FailureClass.TRANSIENT
        case "rate_limit_error":
            return FailureClass.RATE_LIMITED
        case "billing_error":
            return FailureClass.QUOTA
        case "authentication_error" | "permission_error":
            return FailureClass.CREDENTIAL
        case "not_found_error":
            return FailureClass.MODEL_GONE
        case "forbidden":
            # What callers from unsupported countries get: "Request not allowed".
            return FailureClass.REGION
        case "request_too_large":
            return FailureClass.CALLER_FAULT
        case "invalid_request_error":
            if _CONTEXT_TEXT.search(message):
                return FailureClass.CONTEXT_WINDOW
            if _POLICY_TEXT.search(message):
                return FailureClass.CONTENT_POLICY
            if _PREFILL_TEXT.search(message):
                return FailureClass.UNFIT
    return found


def _unforced(blocks: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], bool]:
    """The call of the tool that stands for structured output becomes the text that it holds."""
    answers = [block for block in blocks if block.get("type") == "tool_use" and block.get("name") == JSON_TOOL]
    if not answers:
        return blocks, False
    text = orjson.dumps(answers[0].get("input") or {}).decode()
    others = [block for block in blocks if block not in answers and block.get("type") != "text"]
    calls = [block for block in others if block.get("type") == "tool_use"]
    return [*(block for block in others if block not in calls), {"type": "text", "text": text}, *calls], True


def _shorter(value: Any) -> Any:
    """A request whose cache hints ask for the usual five minutes; what tools are called with stays as it is."""
    if isinstance(value, list):
        return [_shorter(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    return {
        key: {name: hint for name, hint in inner.items() if name != "ttl"}
        if key == "cache_control" and isinstance(inner, dict)
        else inner
        if key in ("input", "input_schema")
        else _shorter(inner)
        for key, inner in value.items()
    }


def _url(base: str) -> str:
    """A base may be the host, end with /v1, or be the whole address, as LiteLLM takes it."""
    base = base.rstrip("/") or API_BASE
    if base.endswith(_PATH):
        return base
    return base + _PATH.removeprefix("/v1") if base.endswith("/v1") else base + _PATH
