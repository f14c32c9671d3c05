"""What `make chaos` takes for missed."""

import pytest

from scripts.chaos import missed_by

KEPT = {
    "violations": {}, "logged_errors": {}, "takeover_p99_ms": 5000, "kills": 3, "kills_wanted": 3, "by_fault": {"kill": 3}, "runs": 9,
}  # fmt: skip


def test_promises_that_held_are_not_missed():
    without_kills = {**KEPT, "takeover_p99_ms": None, "by_fault": {"cut": 3}}
    assert missed_by(KEPT) == missed_by(without_kills) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"violations": {"A5": 2}}, "A5: 2 times"),
        ({"logged_errors": {"write_failed: x": 1}}, "write_failed"),
        ({"takeover_p99_ms": 5001}, "5001 ms"),
        ({"takeover_p99_ms": None}, "no takeover"),
        ({"kills": 2}, "only 2 strikes of 3"),
        ({"runs": 0}, "no run"),
    ],
)
def test_each_that_did_not_hold_is_named(found, told):
    (missed,) = missed_by({**KEPT, **found})
    assert told in missed
