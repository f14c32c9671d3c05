"""Errors of Gemini: bodies as the API sends them, and what is done about each."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.llm_gateway.adapters.gemini import GeminiDialect
from services.llm_gateway.failures import FailureClass

NAMES = [
    "error", "code", "status", "message", "details", "@type", "violations", "quotaId", "retryDelay", "reason",
    "metadata", "quota_limit", "fieldViolations", "field",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 600) | st.text(max_size=5),
    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.sampled_from(NAMES), s, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("status", "name", "message", "details", "expected", "waits_s"),
    [
        (429, "RESOURCE_EXHAUSTED", "Resource has been exhausted (e.g. check quota).", [], FailureClass.RATE_LIMITED, None),
        (
            429,
            "RESOURCE_EXHAUSTED",
            "You exceeded your current quota, please check your plan and billing details.",
            [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure",
                 "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier", "quotaValue": "10"}]},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "38.5s"},
            ],
            FailureClass.RATE_LIMITED,
            38.5,
        ),
        (
            429,
            "RESOURCE_EXHAUSTED",
            "You exceeded your current quota.",
            [
                {"@type": "type.googleapis.com/google.rpc.QuotaFailure",
                 "violations": [{"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}]},
                {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "20s"},
            ],
            FailureClass.QUOTA,
            20.0,
        ),
        (429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted.", [], FailureClass.QUOTA, None),
        (
            400,
            "INVALID_ARGUMENT",
            "The input token count (2551556) exceeds the maximum number of tokens allowed (1048576).",
            [],
            FailureClass.CONTEXT_WINDOW,
            None,
        ),
        (
            400,
            "INVALID_ARGUMENT",
            "API key not valid. Please pass a valid API key.",
            [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID", "domain": "googleapis.com"}],
            FailureClass.CREDENTIAL,
            None,
        ),
        (400, "INVALID_ARGUMENT", "API key expired. Please renew the API key.", [], FailureClass.CREDENTIAL, None),
        (400, "INVALID_ARGUMENT", "Invalid value at 'contents'.", [], FailureClass.CALLER_FAULT, None),
        (400, "FAILED_PRECONDITION", "User location is not supported for the API use.", [], FailureClass.REGION, None),
        (400, "FAILED_PRECONDITION", "Please enable billing on your project.", [], FailureClass.QUOTA, None),
        (401, "UNAUTHENTICATED", "Request had invalid authentication credentials.", [], FailureClass.CREDENTIAL, None),
        (403, "PERMISSION_DENIED", "Your API key was reported as leaked.", [], FailureClass.CREDENTIAL, None),
        (404, "NOT_FOUND", "models/gemini-0 is not found for API version v1beta", [], FailureClass.MODEL_GONE, None),
        (500, "INTERNAL", "An internal error has occurred.", [], FailureClass.TRANSIENT, None),
        (503, "UNAVAILABLE", "The model is overloaded.", [], FailureClass.TRANSIENT, None),
        (504, "DEADLINE_EXCEEDED", "Deadline expired before operation could complete.", [], FailureClass.TRANSIENT, None),
    ],
)  # fmt: skip
def test_the_class_decides_what_is_done(status, name, message, details, expected, waits_s):
    body = {"error": {"code": status, "message": message, "status": name, "details": details}}
    for wrapped in (body, [body]):  # without alt=sse a stream's error comes in a list
        failure = GeminiDialect().failure(status, orjson.dumps(wrapped), {})
        assert (failure.failure_class, failure.status, failure.retry_after_s) == (expected, status, waits_s)
        assert failure.message
        assert failure.code


def test_the_field_that_is_wrong_is_told():
    details = [{"@type": "type.googleapis.com/google.rpc.BadRequest", "fieldViolations": [{"field": "contents[0]", "description": "x"}]}]
    body = {"error": {"code": 400, "message": "wrong", "status": "INVALID_ARGUMENT", "details": details}}
    assert GeminiDialect().failure(400, orjson.dumps(body), {}).param == "contents[0]"


def test_bodies_of_proxies():
    assert GeminiDialect().failure(502, b"<html>", {"retry-after": "7"}).retry_after_s == 7
    assert GeminiDialect().failure(502, b"<html>", {}).failure_class is FailureClass.TRANSIENT
    assert GeminiDialect().failure(429, b"", {}).failure_class is FailureClass.RATE_LIMITED
    assert GeminiDialect().failure(200, b"{}", {}).failure_class is FailureClass.MALFORMED
    assert GeminiDialect().failure(400, b'{"error":"no"}', {}).failure_class is FailureClass.CALLER_FAULT


@given(JSON)
@settings(max_examples=300, deadline=None)
def test_any_json_is_some_failure(body):
    assert GeminiDialect().failure(400, orjson.dumps({"error": body}), {}).failure_class in FailureClass
    assert GeminiDialect().failure(200, orjson.dumps(body), {}).failure_class in FailureClass
