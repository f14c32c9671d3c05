"""What `make chaos` takes for missed."""

import pytest

from scripts.chaos import missed_by

KEPT = {"violations": {}, "logged_errors": {}, "takeover_p99_ms": 5000}


def test_promises_that_held_are_not_missed():
    assert missed_by(KEPT) == missed_by({**KEPT, "takeover_p99_ms": None}) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"violations": {"A5": 2}}, "A5: 2 times"),
        ({"logged_errors": {"write_failed: x": 1}}, "write_failed"),
        ({"takeover_p99_ms": 5001}, "5001 ms"),
    ],
)
def test_each_that_did_not_hold_is_named(found, told):
    (missed,) = missed_by({**KEPT, **found})
    assert told in missed
