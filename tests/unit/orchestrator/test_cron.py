"""Cron expressions against a walk minute by minute, and the days on which clocks change."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.schedules.cron import Cron, instant
from services.orchestrator.schedules.records import ScheduleRef, Timing, due_of

MINUTE = timedelta(minutes=1)
# Clocks change here: by an hour at night, by half an hour, at midnight, over a whole day.
ZONES = {
    "UTC": datetime(2025, 3, 1, tzinfo=UTC), "Europe/Berlin": datetime(2025, 3, 29, tzinfo=UTC),
    "America/New_York": datetime(2025, 11, 1, tzinfo=UTC), "Australia/Lord_Howe": datetime(2025, 4, 4, tzinfo=UTC),
    "America/Sao_Paulo": datetime(2018, 11, 3, tzinfo=UTC), "Asia/Beirut": datetime(2024, 3, 30, tzinfo=UTC),
    "Pacific/Apia": datetime(2011, 12, 29, tzinfo=UTC), "Europe/Dublin": datetime(2025, 10, 25, tzinfo=UTC),
}  # fmt: skip
WALK = timedelta(days=4)


def walked(cron: Cron, zone: ZoneInfo, since: datetime, until: datetime) -> list[datetime]:
    """The ticks after `since`, found by looking at every minute and at what clocks showed before it."""
    found, now = [], since - timedelta(days=2)
    # Later than all local times that were there when the walk began; what is shown again below this mark is shown the second time.
    mark = now.astimezone(zone).replace(tzinfo=None)
    while now <= until:
        local = now.astimezone(zone).replace(tzinfo=None)
        if len(cron.hours) == 24:
            fires = matches(cron, local)
        else:
            # All local times that are reached at this minute for the first time: one, none, or those of a gap as well.
            fires, missing = False, mark + MINUTE
            while missing <= local:
                fires = fires or matches(cron, missing)
                missing += MINUTE
        mark = max(mark, local)
        if fires and now > since:
            found.append(now)
        now += MINUTE
    return found


def matches(cron: Cron, local: datetime) -> bool:
    return local.minute in cron.minutes and local.hour in cron.hours and cron.on(local.date())


def field(low: int, high: int) -> st.SearchStrategy[str]:
    value = st.integers(low, high)
    ranges = st.tuples(value, value).map(lambda pair: f"{min(pair)}-{max(pair)}")
    steps = st.tuples(ranges, st.integers(1, 9)).map(lambda pair: f"{pair[0]}/{pair[1]}")
    part = st.one_of(value.map(str), ranges, steps, st.integers(1, high).map(lambda n: f"*/{n}"))
    return st.one_of(st.just("*"), st.lists(part, min_size=1, max_size=3).map(",".join))


expressions = st.tuples(field(0, 59), field(0, 23), field(1, 31), st.just("*"), field(0, 7)).map(" ".join)


@settings(max_examples=60, deadline=None)
@given(text=expressions, zone_name=st.sampled_from(sorted(ZONES)), offset=st.integers(0, 2 * 86_400))
def test_ticks_are_those_of_a_walk_over_every_minute(text, zone_name, offset):
    cron, zone = Cron.parse(text), ZoneInfo(zone_name)
    since = ZONES[zone_name] + timedelta(seconds=offset)
    until = since + timedelta(days=2)
    since_minute = since.replace(second=0)
    expected = [tick for tick in walked(cron, zone, since_minute, until) if tick > since]
    found, at = [], since
    while (at := cron.after(at, zone)) is not None and at <= until:
        found.append(at)
    assert found == expected


@pytest.mark.parametrize(
    ("text", "zone", "since", "expected"),
    [
        # Skipped: once, right after the gap, together with what falls there anyway.
        ("30 2 * * *", "Europe/Berlin", "2025-03-29T12:00", ["2025-03-30T01:00", "2025-03-31T00:30"]),
        ("*/20 2,3 * * *", "Europe/Berlin", "2025-03-30T00:00", ["2025-03-30T01:00", "2025-03-30T01:20"]),
        # Twice: once, the first time.
        ("30 2 * * *", "Europe/Berlin", "2025-10-25T12:00", ["2025-10-26T00:30", "2025-10-27T01:30"]),
        ("30 2 * * *", "Europe/Berlin", "2025-10-26T01:00", ["2025-10-27T01:30"]),
        # Every hour: by elapsed time.
        ("30 * * * *", "Europe/Berlin", "2025-03-30T00:00", ["2025-03-30T00:30", "2025-03-30T01:30"]),
        ("30 * * * *", "Europe/Berlin", "2025-10-26T00:00", ["2025-10-26T00:30", "2025-10-26T01:30", "2025-10-26T02:30"]),
        # A midnight that does not exist.
        ("@daily", "America/Sao_Paulo", "2018-11-03T12:00", ["2018-11-04T03:00", "2018-11-05T02:00"]),
        # Both days named: either is enough.
        ("0 0 13 * FRI", "UTC", "2025-06-07T00:00", ["2025-06-13T00:00", "2025-06-20T00:00"]),
        ("0 0 29 feb *", "UTC", "2096-03-01T00:00", ["2104-02-29T00:00"]),
        ("5/20 12 1-3,10 JAN-mar/2 *", "UTC", "2025-01-03T12:10", ["2025-01-03T12:25", "2025-01-03T12:45", "2025-01-10T12:05"]),
        ("0 9 * * 7", "UTC", "2025-06-01T08:00", ["2025-06-01T09:00", "2025-06-08T09:00"]),
    ],
)
def test_the_next_ticks(text, zone, since, expected):
    at, found = datetime.fromisoformat(since).replace(tzinfo=UTC), []
    for _ in expected:
        at = Cron.parse(text).after(at, ZoneInfo(zone))
        found.append(at.strftime("%Y-%m-%dT%H:%M"))
    assert found == expected


def test_what_never_comes_is_none():
    for text in ("0 0 31 2 *", "0 * 31 feb *", "0 0 30,31 2 *"):
        assert Cron.parse(text).after(datetime(2025, 1, 1, tzinfo=UTC), UTC) is None


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * * 8", "*/0 * * * *",
     "5-1 * * * *", "a * * * *", "1,,2 * * * *", "-1 * * * *", "* * * * mon-", "@reboot", "@", "*-5 * * * *", "\u0661 * * * *",
     "* * * * fri-mon", "* * L * *", "* * * * 5#2", "1" * 300 + " * * * *"],
)  # fmt: skip
def test_an_expression_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"\w"):
        Cron.parse(text)


def test_a_local_time_in_a_gap_is_the_moment_after_it():
    berlin = ZoneInfo("Europe/Berlin")
    for minute in (0, 1, 59):
        assert instant(datetime(2025, 3, 30, 2, minute), berlin) == datetime(2025, 3, 30, 1, tzinfo=UTC)  # noqa: DTZ001
    assert instant(datetime(2011, 12, 30, 15), ZoneInfo("Pacific/Apia")) == datetime(2011, 12, 30, 10, tzinfo=UTC)  # noqa: DTZ001


HOUR_MS = 3_600_000


def test_an_interval_counts_from_its_anchor_and_keeps_to_its_bounds():
    timing = Timing(every_ms=HOUR_MS, anchor_ms=500, start_ms=500, end_ms=3 * HOUR_MS)
    assert [timing.after(at) for at in (-5, 499, 500, HOUR_MS + 499, 2 * HOUR_MS + 500)] == [500, 500, HOUR_MS + 500, HOUR_MS + 500, 0]
    assert timing.last_until(500, HOUR_MS + 400) == 500
    assert timing.last_until(500, 10 * HOUR_MS) == 2 * HOUR_MS + 500


@settings(max_examples=40, deadline=None)
@given(text=expressions, hours=st.integers(0, 400), bound=st.integers(0, 100))
def test_the_last_tick_of_an_outage_is_the_last_of_all(text, hours, bound):
    start_ms = 1_740_000_000_000
    timing = Timing(cron=text, zone="Europe/Berlin", end_ms=start_ms + bound * HOUR_MS if bound > 50 else 0)
    first_ms = timing.after(start_ms)
    if not first_ms or first_ms > start_ms + hours * HOUR_MS:
        return
    last_ms = first_ms
    while 0 < (following := timing.after(last_ms)) <= start_ms + hours * HOUR_MS:
        last_ms = following
    assert timing.last_until(first_ms, start_ms + hours * HOUR_MS) == last_ms


def test_jitter_is_the_same_for_whoever_asks_and_spreads_schedules():
    timing = Timing(every_ms=60_000, jitter_ms=30_000)
    due = [due_of(ScheduleRef("acme", f"sch_{number}"), timing, 1_000) for number in range(50)]
    assert due == [due_of(ScheduleRef("acme", f"sch_{number}"), timing, 1_000) for number in range(50)]
    assert all(1_000 <= at < 31_000 for at in due)
    assert len(set(due)) > 40
