"""`bulkhead schedules`: runs that start by the clock, and what came of each tick."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from services.cli.client import Api, ask, segment
from services.cli.connection import Connection
from services.cli.failure import UsageProblem
from services.cli.rendering import brief, note, print_answer, print_list, print_thing, when
from services.cli.terminal import confirm

TITLES = ("SCHEDULE", "STATE", "NAME", "WHEN", "NEXT", "LAST", "AGENT", "INPUT")
TICKS = ("TICK", "RESULT", "RUN", "THREAD", "REASON", "DECIDED")
STYLES = {"active": "green", "paused": "yellow", "ended": "dim", "fired": "green", "skipped": "dim", "missed": "yellow", "refused": "red"}
SECOND_MS, MINUTE_MS = 1_000, 60_000


def list_schedules(connection: Connection, *, limit: int, as_json: bool = False) -> None:
    """The newest schedules of the caller. Raises CommandFailure."""
    print_list(ask(connection, lambda api: api.listed("/v1/schedules", limit)), TITLES, _row, "no schedules yet", as_json)


def show_schedule(connection: Connection, schedule_id: str, *, as_json: bool = False) -> None:
    """One schedule, as JSON. Raises CommandFailure."""
    print_thing(ask(connection, lambda api: api.get(_path(schedule_id))), as_json)


def timing(
    *, cron: str, every_minutes: float | None, time_zone: str, start_at: str, end_at: str, jitter_seconds: float | None
) -> dict[str, Any]:
    """When a schedule fires, as the API has it. Raises UsageProblem."""
    if bool(cron) == (every_minutes is not None):
        raise UsageProblem("name one of --cron and --every-minutes")
    if time_zone and not cron:
        raise UsageProblem("--time-zone goes with --cron")
    named = {
        "cron": cron or None,
        "interval_ms": None if every_minutes is None else round(every_minutes * MINUTE_MS),
        "time_zone": time_zone or None,
        "start_at": start_at or None,
        "end_at": end_at or None,
        "jitter_ms": None if jitter_seconds is None else round(jitter_seconds * SECOND_MS),
    }
    return {name: value for name, value in named.items() if value is not None}


def create_schedule(connection: Connection, definition: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Makes a schedule and prints its id; of `definition`, what is None or empty is left out. Raises CommandFailure."""
    body = {name: value for name, value in definition.items() if value}
    made = ask(connection, lambda api: api.post("/v1/schedules", body))
    print_answer(made, made["schedule_id"], as_json)
    if not as_json:
        note(_fires(made))


@dataclass(frozen=True, slots=True)
class TimingChange:
    """What is to be different of when a schedule fires. '' and None stay, but '' takes `start_at` or `end_at` away."""

    cron: str = ""
    every_minutes: float | None = None
    time_zone: str = ""
    start_at: str | None = None
    end_at: str | None = None
    jitter_seconds: float | None = None

    def __bool__(self) -> bool:
        return self != TimingChange()

    def of(self, before: Mapping[str, Any]) -> dict[str, Any]:
        """The timing that comes of one that the API has told. Raises UsageProblem."""
        cron, minutes, told_ms = before["cron"], self.every_minutes, before["interval_ms"]
        if self.cron or minutes is not None:
            cron, told_ms = self.cron, None if minutes is None else round(minutes * MINUTE_MS)
        if self.time_zone and not cron:
            raise UsageProblem("--time-zone goes with cron, and this schedule fires every so many minutes")
        jitter_ms = before["jitter_ms"] if self.jitter_seconds is None else round(self.jitter_seconds * SECOND_MS)
        made = {
            "cron": cron or None, "interval_ms": told_ms, "time_zone": (self.time_zone or before["time_zone"]) if cron else None,
            "start_at": before["start_at"] if self.start_at is None else self.start_at,
            "end_at": before["end_at"] if self.end_at is None else self.end_at, "jitter_ms": jitter_ms,
        }  # fmt: skip
        return {name: value for name, value in made.items() if value}


def update_schedule(
    connection: Connection,
    schedule_id: str,
    named: Mapping[str, Any],
    when: TimingChange,
    *,
    version: int | None = None,
    as_json: bool = False,
) -> None:
    """Changes what is not None in `named`, and `when` it fires. The API replaces a timing as a whole, so the one that stands is looked at
    first, and nothing is changed where somebody else was faster. Raises CommandFailure."""
    changes = {name: value for name, value in named.items() if value is not None}
    if not changes and not when:
        raise UsageProblem("name what is to change (see --help)")

    async def change(api: Api) -> Any:
        body: dict[str, Any] = {**changes} | ({"expected_version": version} if version is not None else {})
        if when:
            before = await api.get(_path(schedule_id))
            body = {"expected_version": before["version"]} | body | {"timing": when.of(before["timing"])}
        return await api.patch(_path(schedule_id), body)

    changed = ask(connection, change)
    print_answer(changed, f"{schedule_id}: changed, {_fires(changed)}", as_json)


def pause_schedule(connection: Connection, schedule_id: str, *, as_json: bool = False) -> None:
    """Has a schedule fire no more until it is resumed. Raises CommandFailure."""
    _turn(connection, schedule_id, "pause", as_json)


def resume_schedule(connection: Connection, schedule_id: str, *, as_json: bool = False) -> None:
    """Has a paused schedule fire from its next tick on. Raises CommandFailure."""
    _turn(connection, schedule_id, "resume", as_json)


def list_ticks(connection: Connection, schedule_id: str, *, limit: int, as_json: bool = False) -> None:
    """What came of the last ticks, newest first. Raises CommandFailure."""
    ticks = ask(connection, lambda api: api.listed(f"{_path(schedule_id)}/ticks", limit))
    print_list(ticks, TICKS, _tick_row, "no ticks yet", as_json)


def delete_schedule(connection: Connection, schedule_id: str, *, sure: bool = False, as_json: bool = False) -> None:
    """Removes a schedule with its log; unless `sure`, after it was confirmed. Raises CommandFailure."""
    if not sure:
        confirm(f"delete {schedule_id} with its log of ticks? Runs that it made go on.")
    ask(connection, lambda api: api.delete(_path(schedule_id)))
    print_answer({"schedule_id": schedule_id, "deleted": True}, f"{schedule_id}: deleted", as_json)


def _path(schedule_id: str) -> str:
    return f"/v1/schedules/{segment(schedule_id)}"


def _turn(connection: Connection, schedule_id: str, verb: str, as_json: bool) -> None:
    answer = ask(connection, lambda api: api.post(f"{_path(schedule_id)}/{verb}"))
    print_answer(answer, f"{schedule_id}: {_fires(answer)}", as_json)


def _fires(schedule: Mapping[str, Any]) -> str:
    return schedule["state"] + (f", next at {when(schedule['next_tick_at'])} UTC" if schedule["next_tick_at"] else "")


def _row(one: Mapping[str, Any]) -> Sequence[Any]:
    """A schedule as TITLES."""
    last = f"{one['last_tick']['result']} {when(one['last_tick']['tick_at'])}" if one["last_tick"] else ""
    about = (one["name"], _recurs(one["timing"]), when(one["next_tick_at"]), last, one["agent"], brief(one["input"][-1]["content"]))
    return one["schedule_id"], Text(one["state"], style=STYLES.get(one["state"], "")), *about


def _recurs(timing: Mapping[str, Any]) -> str:
    if timing["cron"]:
        return f"{timing['cron']} {timing['time_zone']}"
    return f"every {timing['interval_ms'] / MINUTE_MS:g} min"


def _tick_row(one: Mapping[str, Any]) -> Sequence[Any]:
    """A tick as TICKS."""
    about = (one["run_id"], one["thread_id"], one["reason"], when(one["decided_at"]))
    return when(one["tick_at"]), Text(one["result"], style=STYLES.get(one["result"], "")), *about
