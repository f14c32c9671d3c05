"""What came back decides the class, and the class decides what may be tried."""

from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.failures import MOVES, FailureClass, Move, classify, error_of
from services.llm_gateway.retry_after import retry_after_s

NOW_S = 1_790_000_000.0


@pytest.mark.parametrize(
    ("status", "error", "expected"),
    [
        (500, None, "transient"),
        (502, None, "transient"),
        (503, {"type": "server_error"}, "transient"),
        (504, None, "transient"),
        (529, {"type": "overloaded_error"}, "transient"),
        (408, None, "transient"),
        (409, None, "transient"),
        (501, None, "unknown"),
        (429, None, "rate_limited"),
        (429, {"code": "rate_limit_exceeded"}, "rate_limited"),
        (429, {"code": "insufficient_quota", "type": "insufficient_quota"}, "quota"),
        (429, {"code": None, "type": "insufficient_quota"}, "quota"),
        (402, None, "quota"),
        (401, {"code": "invalid_api_key"}, "credential"),
        (401, None, "credential"),
        (403, None, "credential"),
        (403, {"code": "unsupported_country_region_territory"}, "region"),
        (404, {"code": "model_not_found"}, "model_gone"),
        (404, None, "model_gone"),
        (400, {"code": "context_length_exceeded"}, "context_window"),
        (400, {"message": "This model's maximum context length is 8192 tokens."}, "context_window"),
        (413, {"message": "prompt is too long: 210000 tokens > 200000 maximum"}, "context_window"),
        (400, {"code": "content_policy_violation"}, "content_policy"),
        (400, {"code": "content_filter"}, "content_policy"),
        (400, {"type": "invalid_request_error", "message": "Unknown parameter"}, "caller_fault"),
        (422, None, "caller_fault"),
        (413, None, "caller_fault"),
        (307, None, "unknown"),
        (204, None, "transient"),
        # An error inside a success.
        (200, {"type": "server_error"}, "transient"),
        (200, {"message": "no capacity"}, "transient"),
        (200, {"type": "invalid_request_error"}, "caller_fault"),
        (200, {"code": 429}, "rate_limited"),
        (200, {"code": 502, "message": "upstream"}, "transient"),
        (200, {"code": "rate_limit_exceeded"}, "rate_limited"),
        # A server's failure stays one, whatever it says about context.
        (500, {"message": "failed to build the context window"}, "transient"),
    ],
)
def test_classes(status, error, expected):
    assert classify(status, error).failure_class.value == expected


def test_every_class_has_its_move_and_a_callers_fault_stops():
    assert set(MOVES) == set(FailureClass)
    assert MOVES[FailureClass.CALLER_FAULT] is Move.STOP
    assert {c for c, move in MOVES.items() if move is Move.RETRY} == {FailureClass.TRANSIENT, FailureClass.RATE_LIMITED, FailureClass.CUT}


def test_a_message_is_short_and_without_secrets():
    failure = classify(401, {"message": "Incorrect API key provided: sk-abcdefghijklmnopqrstuvwx. " + "x" * 5000})
    assert "sk-abcdef" not in failure.message
    assert len(failure.message) <= 400


@given(
    st.integers(-1, 1000),
    st.none()
    | st.dictionaries(st.sampled_from(["code", "type", "message", "param"]), st.none() | st.integers() | st.text() | st.lists(st.text())),
)
def test_nothing_that_a_provider_says_breaks_the_classification(status, error):
    assert classify(status, error).failure_class in FailureClass


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"error": {"code": "x"}}', {"code": "x"}),
        (b'[{"error": {"code": "x"}}]', {"code": "x"}),
        (b'{"error": "text"}', {"message": "text"}),
        (b'{"error": null}', None),
        (b"<html>", None),
        (b"[]", None),
        (b"\xff", None),
    ],
)
def test_error_objects(body, expected):
    assert error_of(body) == expected


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": formatdate(NOW_S + 9, usegmt=True)}, 9.0),
        ({"retry-after": formatdate(NOW_S - 9, usegmt=True)}, 0.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"x-ms-retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"x-ratelimit-reset": "3"}, 3.0),
        ({"x-ratelimit-reset": str(NOW_S + 4)}, 4.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_forms_of_retry_after(headers, expected):
    assert retry_after_s(headers, NOW_S) == (pytest.approx(expected) if expected is not None else None)


@given(st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-ratelimit-reset"]), st.text()))
def test_no_header_breaks_the_wait(headers):
    wait = retry_after_s(headers, NOW_S)
    assert wait is None or 0 <= wait <= 24 * 3600
