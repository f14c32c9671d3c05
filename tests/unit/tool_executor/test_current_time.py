"""The tool current_time."""

from datetime import UTC, datetime

import pytest

from services.tool_executor.builtin.current_time import Clock
from services.tool_executor.failures import ToolFailure

clock = Clock(lambda: datetime(2026, 3, 29, 1, 30, 15, 999999, tzinfo=UTC))


@pytest.mark.parametrize(
    ("zone", "iso", "offset", "weekday"),
    [
        ("UTC", "2026-03-29T01:30:15+00:00", "+00:00", "Sunday"),
        ("Europe/Berlin", "2026-03-29T03:30:15+02:00", "+02:00", "Sunday"),
        ("America/New_York", "2026-03-28T21:30:15-04:00", "-04:00", "Saturday"),
        ("Asia/Kolkata", "2026-03-29T07:00:15+05:30", "+05:30", "Sunday"),
    ],
)
async def test_a_zone_has_its_own_time(zone, iso, offset, weekday):
    found = await clock.current_time(zone)
    assert found == {"iso": iso, "timezone": zone, "weekday": weekday, "utc_offset": offset, "unix_s": 1774747815}


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "America", "../../etc/passwd", "/etc/passwd", "Europe/Berlin\0", "ü"])
async def test_no_zone(zone):
    with pytest.raises(ToolFailure) as caught:
        await clock.current_time(zone)
    assert caught.value.code == "input.invalid"
