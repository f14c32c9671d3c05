"""Cron expressions and their ticks in a time zone. Source: POSIX crontab and Vixie cron's names, steps and daylight-saving rules.

Local times where the clock changes:
- hours are named (`30 2 * * *`): a local time that is skipped is one tick at the first moment after the gap, together with any other
  that falls there; a local time that comes twice is one tick, the first time.
- every hour (`30 * * * *`): the ticks follow elapsed time. What is skipped does not exist, what comes twice is two.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo

MOST_CHARACTERS = 256
# A leap day may be eight years away (1896 to 1904, 2096 to 2104).
HORIZON = timedelta(days=10 * 366)
MINUTE = timedelta(minutes=1)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
NICKNAMES: Mapping[str, str] = {
    "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *", "@monthly": "0 0 1 * *", "@weekly": "0 0 * * 0", "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *", "@hourly": "0 * * * *",
}  # fmt: skip
_PART = re.compile(r"(?P<from>\*|\w+)(?:-(?P<to>\w+))?(?:/(?P<step>\d{1,4}))?")


@dataclass(frozen=True, slots=True)
class _Field:
    name: str
    lowest: int
    highest: int
    names: Sequence[str] = ()


_FIELDS = (
    _Field("minute", 0, 59), _Field("hour", 0, 23), _Field("day of month", 1, 31), _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 7, _DAYS),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cron:
    """When to fire, by local time; Sunday is 0. With days of the month and of the week both named, either is enough."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]

    @classmethod
    def parse(cls, text: str) -> "Cron":
        """Reads five fields, or a nickname such as @daily. Raises ValueError that says what is wrong."""
        if len(text) > MOST_CHARACTERS:
            raise ValueError(f"is longer than {MOST_CHARACTERS} characters")
        text = text.strip()
        if text.startswith("@"):
            if text.lower() not in NICKNAMES:
                raise ValueError(f"is none of {', '.join(NICKNAMES)}")
            text = NICKNAMES[text.lower()]
        parts = text.split()
        if len(parts) != len(_FIELDS):
            raise ValueError("must have five fields: minute, hour, day of month, month, day of week")
        minutes, hours, days, months, weekdays = (_values(field, part) for field, part in zip(_FIELDS, parts, strict=True))
        return cls(tuple(sorted(minutes)), tuple(sorted(hours)), frozenset(days), frozenset(months), frozenset(day % 7 for day in weekdays))

    def on(self, day: date) -> bool:
        """Whether it fires on this day at all."""
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        if len(self.days) == 31 or len(self.weekdays) == 7:
            return of_month and of_week
        return of_month or of_week

    def after(self, at: datetime, zone: tzinfo) -> datetime | None:
        """The first tick after `at` (aware), in UTC; None where there is none within ten years."""
        return self._elapsed(at, zone) if len(self.hours) == 24 else self._local(at, zone)

    def _local(self, at: datetime, zone: tzinfo) -> datetime | None:
        # Instants never fall while local times rise, so the first local time that lies after `at` is the answer. No local time
        # before that of `at` does.
        start = at.astimezone(zone).replace(tzinfo=None)
        for local in self._from(start):
            found = instant(local, zone)
            if found > at:
                return found
        return None

    def _from(self, start: datetime) -> Iterator[datetime]:
        day = start.date()
        for number in range(HORIZON.days):
            if self.on(day):
                for hour in self.hours:
                    if number == 0 and hour < start.hour:
                        continue
                    for minute in self.minutes:
                        yield datetime(day.year, day.month, day.day, hour, minute)  # noqa: DTZ001 - local, the zone comes after
            if day == date.max:
                return
            day += timedelta(days=1)

    def _elapsed(self, at: datetime, zone: tzinfo) -> datetime | None:
        now = at.astimezone(UTC).replace(second=0, microsecond=0) + MINUTE
        end = now + HORIZON
        while now < end:
            local = now.astimezone(zone)
            if not self.on(local.date()):
                midnight = datetime(local.year, local.month, local.day) + timedelta(days=1)  # noqa: DTZ001
                now = max(now + MINUTE, instant(midnight, zone))
                continue
            minute = next((m for m in self.minutes if m >= local.minute), 60)
            if minute == local.minute:
                return now
            # Not beyond a change of the clock, which moves minutes in zones of half hours.
            there = now + timedelta(minutes=minute - local.minute)
            if there.astimezone(zone).utcoffset() != local.utcoffset():
                there = now + MINUTE
            now = there
        return None


def instant(local: datetime, zone: tzinfo) -> datetime:
    """The moment, in UTC, at which clocks in `zone` first show `local` (naive); where they never do, the moment right after the gap."""
    first = local.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if first.astimezone(zone).replace(tzinfo=None) == local:
        return first
    # Within a gap: counted by the offset after it, the moment lies before the change; by the one before it, after the change.
    before, after = local.replace(tzinfo=zone, fold=1).astimezone(UTC), first
    old = before.astimezone(zone).utcoffset()
    while after - before > timedelta(seconds=1):
        middle = (before + (after - before) / 2).replace(microsecond=0)
        if middle.astimezone(zone).utcoffset() == old:
            before = middle
        else:
            after = middle
    return after


def _values(field: _Field, text: str) -> set[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"the {field.name} is not a list of values, ranges and steps")
        if match["from"] == "*":
            if match["to"]:
                raise ValueError(f"the {field.name} has a range that begins with *")
            first, last = field.lowest, min(field.highest, 6) if field.names is _DAYS else field.highest
        else:
            first = _value(field, match["from"])
            # A value with a step goes on to the end, as in Vixie cron.
            last = _value(field, match["to"]) if match["to"] else (field.highest if match["step"] else first)
        step = int(match["step"] or 1)
        if step < 1:
            raise ValueError(f"the {field.name} has a step of 0")
        if last < first:
            raise ValueError(f"the {field.name} has a range that ends before it begins")
        found.update(range(first, last + 1, step))
    return found


def _value(field: _Field, text: str) -> int:
    if text in field.names:
        return field.names.index(text) + field.lowest
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and field.lowest <= int(text) <= field.highest):
        raise ValueError(f"the {field.name} must be from {field.lowest} to {field.highest}")
    return int(text)
