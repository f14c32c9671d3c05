"""A refusal of the API as one line with the way out, and the status that a script can branch on."""

import json

import pytest

from services.cli.failure import CONFLICT, DENIED, FAILED, LATER, USAGE
from services.cli.problems import failure_of

URL = "http://gateway"


def problem(status, reason="", **members):
    body = {"status": status, "reason": reason, "detail": "It is so.", "retryable": False, "instance": "/v1/x", **members}
    return failure_of(status, json.dumps(body).encode(), url=URL, retry_after="")


@pytest.mark.parametrize(
    ("status", "reason", "exit_status"),
    [
        (400, "INVALID_INPUT", USAGE),
        (401, "INVALID_API_KEY", DENIED),
        (403, "NOT_AN_APPROVER", DENIED),
        (404, "RUN_NOT_FOUND", FAILED),
        (409, "THREAD_CHANGING", CONFLICT),
        (413, "BODY_TOO_LARGE", USAGE),
        (422, "INVALID_INPUT", USAGE),
        (429, "QUOTA_EXCEEDED", LATER),
        (429, "BUDGET_EXCEEDED", FAILED),
        (500, "INTERNAL", FAILED),
        (503, "OVERLOADED", LATER),
        (504, "DEADLINE_EXCEEDED", LATER),
    ],
)
def test_the_exit_status_says_what_can_be_done_about_it(status, reason, exit_status):
    assert problem(status, reason).status == exit_status


@pytest.mark.parametrize(
    ("members", "way_out"),
    [
        ({"status": 403, "reason": "SCOPE_MISSING", "missing_scopes": "runs:read, runs:write"}, "--scope runs:read --scope runs:write`"),
        ({"status": 404, "instance": "/v1/runs/r"}, "`bulkhead runs list`"),
        ({"status": 404, "instance": "/replay/t"}, "`bulkhead threads list`"),
        ({"status": 404, "instance": "/v1/hooks/h/secret"}, "`bulkhead hooks list`"),
        ({"status": 409, "reason": "RUN_ENDED", "thread_id": "t1"}, "`bulkhead chat --thread t1`"),
        ({"status": 409, "reason": "ALREADY_DECIDED", "decided_by": "bo", "verb": "reject"}, "bo was first, with reject"),
        ({"status": 410, "reason": "RESUME_GAP", "oldest_seq": 12}, "the log begins at 12"),
        ({"status": 429, "reason": "QUOTA_EXCEEDED", "retryable": True}, "try again in 7 s; `bulkhead quota`"),
        ({"status": 500, "reason": "INTERNAL", "error_id": "e1"}, "look for e1"),
        ({"status": 503, "reason": "OVERLOADED", "retryable": True}, "try again in 7 s"),
    ],
)
def test_the_way_out_is_named(members, way_out):
    body = {"detail": "It is so.", "trace_id": "abc", "instance": "/v1/x", **members}
    told = str(failure_of(members["status"], json.dumps(body).encode(), url=URL, retry_after="7"))
    assert told.startswith("It is so. → ")
    assert way_out in told
    assert "[trace abc]" in told
    assert told.count("\n") == 0


def test_a_way_out_whose_member_is_missing_is_left_out():
    assert str(problem(409, "RUN_ENDED")) == "It is so."


def test_each_wrong_field_is_named_once():
    errors = [{"field": "limit", "detail": "too small"}, {"field": "after", "detail": "no token"}]
    assert str(problem(400, "INVALID_INPUT", detail="limit: too small (and 1 more)", errors=errors)) == (
        "limit: too small (and 1 more) (after: no token)"
    )


@pytest.mark.parametrize("raw", [b"", b"<html>no</html>", b"[1]", b'"x"', b"\xff\xfe", b"null", b'{"errors": 5}', b'{"detail": {"a": 1}}'])
def test_answers_that_are_no_problems_are_one_line_too(raw):
    told = str(failure_of(502, raw, url=URL))
    assert told
    assert told.count("\n") == 0


def test_nothing_of_a_refusal_commands_the_terminal():
    told = str(problem(404, detail="a\x1b[31mb\r\nc\u202ed\x9b2J"))
    assert told == "a[31mb cd2J"
