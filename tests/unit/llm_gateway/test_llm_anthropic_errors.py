"""Errors of the Messages API: the class of each, by status, inside a success, and as an event of a stream."""

import orjson
import pytest

from services.llm_gateway.adapters.anthropic import AnthropicDialect
from services.llm_gateway.failures import FailureClass, UpstreamFault

START = b'event: message_start\ndata: {"type":"message_start","message":{"id":"msg_1","model":"m","usage":{}}}\n\n'
BLOCK = b'data: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":"a"}}\n\n'
CLASSES = [
    (400, "invalid_request_error", "messages: bad", FailureClass.CALLER_FAULT),
    (400, "invalid_request_error", "prompt is too long: 210000 tokens > 200000 maximum", FailureClass.CONTEXT_WINDOW),
    (400, "invalid_request_error", "input length and `max_tokens` exceed context limit: 1 + 2 > 2", FailureClass.CONTEXT_WINDOW),
    (400, "invalid_request_error", "Your credit balance is too low to access the API", FailureClass.QUOTA),
    (400, "invalid_request_error", "You have reached your specified API usage limits", FailureClass.QUOTA),
    (400, "invalid_request_error", "Output blocked by content filtering policy", FailureClass.CONTENT_POLICY),
    (400, "invalid_request_error", "This model does not support assistant message prefill.", FailureClass.UNFIT),
    (401, "authentication_error", "invalid x-api-key", FailureClass.CREDENTIAL),
    (402, "billing_error", "pay", FailureClass.QUOTA),
    (403, "permission_error", "no", FailureClass.CREDENTIAL),
    (403, "forbidden", "Request not allowed", FailureClass.REGION),
    (404, "not_found_error", "model: claude-0", FailureClass.MODEL_GONE),
    (413, "request_too_large", "too large", FailureClass.CALLER_FAULT),
    (429, "rate_limit_error", "This request would exceed your organization's rate limit", FailureClass.RATE_LIMITED),
    (500, "api_error", "Internal server error", FailureClass.TRANSIENT),
    (504, "timeout_error", "timed out", FailureClass.TRANSIENT),
    (529, "overloaded_error", "Overloaded", FailureClass.TRANSIENT),
]


@pytest.mark.parametrize(("status", "kind", "words", "wanted"), CLASSES)
def test_errors_have_the_same_class_by_status_in_a_body_and_in_a_stream(status, kind, words, wanted):
    body = {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req_1"}
    dialect = AnthropicDialect()
    failure = dialect.failure(status, orjson.dumps(body), {"retry-after": "7"})
    assert failure.failure_class is wanted
    assert (failure.status, failure.message, failure.retry_after_s) == (status, words, 7.0)
    if kind == "forbidden":
        return
    with pytest.raises(UpstreamFault) as caught:
        dialect.read_answer(orjson.dumps(body))
    assert caught.value.failure.failure_class is wanted
    for before in (b"", START, START + BLOCK):
        with pytest.raises(UpstreamFault) as caught:
            dialect.reader().feed(before + b"event: error\ndata: " + orjson.dumps(body) + b"\n\n")
        assert caught.value.failure.failure_class is wanted


def test_errors_without_a_body():
    assert AnthropicDialect().failure(529, b"", {}).failure_class is FailureClass.TRANSIENT
    assert AnthropicDialect().failure(502, b"<html>", {}).failure_class is FailureClass.TRANSIENT
