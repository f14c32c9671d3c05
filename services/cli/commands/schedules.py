"""`bulkhead schedules`."""

from enum import StrEnum
from typing import Annotated

import typer

from services.cli.commands import completing
from services.cli.commands.options import DEFAULT_DATA_DIR, Agent, AsJson, DataDir, Label, Limit, ScheduleId, Yes

app = typer.Typer(help="Runs that start by the clock: list, show, create, update, pause, resume, ticks, delete.", no_args_is_help=True)

MOST_MINUTES = 10 * 365 * 24 * 60


class Overlap(StrEnum):
    """What a tick does while the run of an earlier one is at work."""

    SKIP = "skip"
    QUEUE = "queue"
    CANCEL = "cancel"


class CatchUp(StrEnum):
    """What becomes of ticks that nobody was there for."""

    NONE = "none"
    LAST = "last"


@app.command("list")
def schedules_list(limit: Limit = 20, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Your newest schedules."""
    from services.cli import connection, schedules

    schedules.list_schedules(connection.find_connection(data_dir), limit=limit, as_json=as_json)


@app.command("show")
def schedules_show(schedule_id: ScheduleId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """One schedule, as JSON; with `--json` on one line."""
    from services.cli import connection, schedules

    schedules.show_schedule(connection.find_connection(data_dir), schedule_id, as_json=as_json)


@app.command("create")
def schedules_create(
    message: Annotated[str, typer.Argument(help="What each run is asked.")],
    cron: Annotated[str, typer.Option(help="When: five fields, as '0 9 * * MON-FRI', or @hourly and the like.")] = "",
    every_minutes: Annotated[
        float | None, typer.Option(min=0.001, max=MOST_MINUTES, help="Instead of --cron: every so many minutes.")
    ] = None,
    time_zone: Annotated[str, typer.Option(help="Of --cron, as Europe/Lisbon. Default: UTC.")] = "",
    start_at: Annotated[str, typer.Option(help="No tick before it: RFC 3339 with a time zone.")] = "",
    end_at: Annotated[str, typer.Option(help="No tick after it.")] = "",
    jitter_seconds: Annotated[float | None, typer.Option(min=0, max=3600, help="A run starts up to this much after its tick.")] = None,
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    agent: Agent = "",
    thread: Annotated[str, typer.Option(help="All runs into this thread.", autocompletion=completing.threads)] = "",
    one_thread: Annotated[bool, typer.Option("--one-thread", help="All runs into one new thread. Default: a thread for each.")] = False,
    overlap: Annotated[Overlap | None, typer.Option(help="While the run of an earlier tick is at work. Default: skip.")] = None,
    catch_up: Annotated[CatchUp | None, typer.Option(help="Ticks that nobody was there for. Default: none.")] = None,
    label: Label = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a schedule and print its id. Its runs are yours.

    Example: bulkhead schedules create "What is new?" --cron "0 9 * * MON-FRI" --time-zone Europe/Lisbon
    """
    from services.cli import connection, schedules
    from services.cli.threads import labels

    when = schedules.timing(
        cron=cron, every_minutes=every_minutes, time_zone=time_zone, start_at=start_at, end_at=end_at, jitter_seconds=jitter_seconds
    )
    definition = {
        "timing": when, "input": message, "name": name, "agent": agent, "thread_id": thread, "metadata": labels(label or []),
        "thread_policy": "one" if thread or one_thread else None, "overlap_policy": overlap, "catch_up_policy": catch_up,
    }  # fmt: skip
    schedules.create_schedule(connection.find_connection(data_dir), definition, as_json=as_json)


@app.command("update")
def schedules_update(
    schedule_id: ScheduleId,
    message: Annotated[str | None, typer.Option(help="What each run is asked.")] = None,
    cron: Annotated[str, typer.Option(help="When, instead of the times until now.")] = "",
    every_minutes: Annotated[float | None, typer.Option(min=0.001, max=MOST_MINUTES, help="The same, every so many minutes.")] = None,
    time_zone: Annotated[str, typer.Option(help="Of cron, as Europe/Lisbon.")] = "",
    start_at: Annotated[str | None, typer.Option(help="No tick before it: RFC 3339 with a time zone; '' for none.")] = None,
    end_at: Annotated[str | None, typer.Option(help="No tick after it; '' for none.")] = None,
    jitter_seconds: Annotated[float | None, typer.Option(min=0, max=3600, help="A run starts up to this much after its tick.")] = None,
    name: Annotated[str | None, typer.Option(help="What it is for; '' for nothing.")] = None,
    agent: Annotated[str, typer.Option(help="Who answers.", autocompletion=completing.agents)] = "",
    thread: Annotated[str, typer.Option(help="All runs into this thread.", autocompletion=completing.threads)] = "",
    one_thread: Annotated[bool, typer.Option("--one-thread", help="All runs into one new thread.")] = False,
    new_threads: Annotated[bool, typer.Option("--new-threads", help="A thread for each run.")] = False,
    overlap: Annotated[Overlap | None, typer.Option(help="While the run of an earlier tick is at work.")] = None,
    catch_up: Annotated[CatchUp | None, typer.Option(help="Ticks that nobody was there for.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, in place of all labels until now. Repeatable; '' for none.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Change nothing where the schedule has another version by now.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Change what the options name; all else stays. Its runs are yours from then on.

    Example: bulkhead schedules update sched_1 --cron "30 7 * * *" --overlap queue
    """
    from services.cli import connection, schedules
    from services.cli.failure import UsageProblem
    from services.cli.threads import labels

    if bool(thread) + one_thread + new_threads > 1:
        raise UsageProblem("name one of --thread, --one-thread and --new-threads")
    if cron and every_minutes is not None:
        raise UsageProblem("name one of --cron and --every-minutes")
    policy = "new" if new_threads else "one" if thread or one_thread else None
    named = {
        "input": message, "name": name, "agent": agent or None, "thread_policy": policy, "thread_id": thread or None,
        "overlap_policy": overlap, "catch_up_policy": catch_up,
        "metadata": None if label is None else labels([pair for pair in label if pair]),
    }  # fmt: skip
    when = schedules.TimingChange(cron, every_minutes, time_zone, start_at, end_at, jitter_seconds)
    found = connection.find_connection(data_dir)
    schedules.update_schedule(found, schedule_id, named, when, version=version, as_json=as_json)


@app.command("pause")
def schedules_pause(schedule_id: ScheduleId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Have a schedule fire no more until it is resumed."""
    from services.cli import connection, schedules

    schedules.pause_schedule(connection.find_connection(data_dir), schedule_id, as_json=as_json)


@app.command("resume")
def schedules_resume(schedule_id: ScheduleId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Have a paused schedule fire again, from its next tick on; those that passed are not made up."""
    from services.cli import connection, schedules

    schedules.resume_schedule(connection.find_connection(data_dir), schedule_id, as_json=as_json)


@app.command("ticks")
def schedules_ticks(schedule_id: ScheduleId, limit: Limit = 20, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """What came of the last ticks, with the runs that they made."""
    from services.cli import connection, schedules

    schedules.list_ticks(connection.find_connection(data_dir), schedule_id, limit=limit, as_json=as_json)


@app.command("delete")
def schedules_delete(schedule_id: ScheduleId, yes: Yes = False, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Remove a schedule with its log of ticks; runs that it made go on."""
    from services.cli import connection, schedules

    schedules.delete_schedule(connection.find_connection(data_dir), schedule_id, sure=yes, as_json=as_json)
