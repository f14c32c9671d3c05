"""What `make chaos` takes for missed."""

import pytest

from scripts.chaos import Absence, Strike, another_there, missed_by

KEPT = {
    "violations": {}, "logged_errors": {}, "takeover_p99_ms": 5000, "kills": 3, "kills_wanted": 3, "by_fault": {"kill": 3}, "runs": 9,
    "takeovers_beset": 0,
}  # fmt: skip


def test_promises_that_held_are_not_missed():
    without_kills = {**KEPT, "takeover_p99_ms": None, "by_fault": {"cut": 3}}
    all_beset = {**KEPT, "takeover_p99_ms": None, "takeovers_beset": 2}
    assert missed_by(KEPT) == missed_by(without_kills) == missed_by(all_beset) == []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ({"violations": {"A5": 2}}, "A5: 2 times"),
        ({"logged_errors": {"write_failed: x": 1}}, "write_failed"),
        ({"takeover_p99_ms": 5001}, "5001 ms"),
        ({"takeover_p99_ms": None}, "no takeover"),
        ({"takeover_p99_ms": None, "takeovers_beset": 20, "by_fault": {"kill": 20}}, "no takeover"),
        ({"kills": 2}, "only 2 strikes of 3"),
        ({"runs": 0}, "no run"),
    ],
)
def test_each_that_did_not_hold_is_named(found, told):
    (missed,) = missed_by({**KEPT, **found})
    assert told in missed


@pytest.mark.parametrize(
    ("absences", "there"),
    [
        ([], True),
        ([Absence("b", 0, 999)], True),
        ([Absence("b", 0, 999), Absence("c", 4001, 5000)], True),
        ([Absence("b", 900, 1000)], True),
        ([Absence("b", 900, 1000), Absence("c", 3999, 5000)], False),
        ([Absence("b", 3000), Absence("c", 2000, 2100)], False),
        # The killed one comes back soon, and is nobody else.
        ([Absence("a", 1000, 1100), Absence("b", 3000), Absence("c", 2000)], False),
    ],
)
def test_a_takeover_counts_where_another_replica_was_there_all_the_time(absences, there):
    assert another_there({"a", "b", "c"}, absences, Strike(1000, "kill", 1, "a"), 4000) is there
