"""The tool `current_time`."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field
from typing_extensions import TypedDict

from services.tool_executor.failures import ToolFailure
from services.tool_executor.tools import tool


class CurrentTime(TypedDict):
    """An instant in a time zone."""

    iso: str
    timezone: str
    weekday: str
    utc_offset: str
    unix_s: int


def _now() -> datetime:
    return datetime.now(UTC)


class Clock:
    """Tells the time; tests give it their own `now`."""

    def __init__(self, now: Callable[[], datetime] = _now) -> None:
        self._now = now

    @tool(version="1.0.0", read_only=True, open_world=False)
    async def current_time(self, timezone: Annotated[str, Field(max_length=64)] = "UTC") -> CurrentTime:
        """Tells the current date, time and weekday in a time zone.

        Args:
            timezone: IANA name of the time zone, for example UTC, Europe/Berlin or America/New_York.
        """
        try:
            # The one zone that needs no database.
            zone = UTC if timezone == "UTC" else ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            # ValueError for paths that leave the database, OSError for a folder of it such as "America".
            raise ToolFailure(
                "input.invalid", "That is no time zone. Use an IANA name such as UTC, Europe/Berlin or America/New_York."
            ) from error
        now = self._now().astimezone(zone)
        return {
            "iso": now.isoformat(timespec="seconds"),
            "timezone": timezone,
            "weekday": now.strftime("%A"),
            "utc_offset": now.strftime("%z")[:3] + ":" + now.strftime("%z")[3:5],
            "unix_s": int(now.timestamp()),
        }
