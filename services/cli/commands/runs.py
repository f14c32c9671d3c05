"""`bulkhead runs`."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.cli.commands import completing
from services.cli.commands.options import DEFAULT_DATA_DIR, After, AsJson, DataDir, GoOn, Label, Limit, NewName, OfThread, RunId, Yes

app = typer.Typer(help="The runs: list, show, watch, plan, steer, stop, cancel, cancel-tool, feedback, fork.", invoke_without_command=True)
OwnDataDir = Annotated[Path | None, typer.Option("--data-dir", help="As of `runs`.")]
Wait = Annotated[bool, typer.Option("--wait", help="Answer when it has ended.")]


class Thumbs(StrEnum):
    """Good or bad."""

    UP = "up"
    DOWN = "down"


class Signal(StrEnum):
    """What somebody did with an answer."""

    REGENERATE = "regenerate"
    EDIT = "edit"
    COPY = "copy"
    ABANDON = "abandon"
    CORRECTION = "correction"
    DWELL = "dwell"
    SCROLL = "scroll"


class Unended(StrEnum):
    """How a run stands that has not ended."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"


class Status(StrEnum):
    """How a run stands."""

    QUEUED = "queued"
    RUNNING = "running"
    WAITING = "waiting"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Continuation(StrEnum):
    """How a run goes on without a tool call."""

    SKIP = "skip"
    FAIL = "fail"
    RETRY = "retry"
    SUBSTITUTE = "substitute"


@app.callback()
def runs(
    context: typer.Context,
    thread: OfThread = "",
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """The newest runs, as `runs list`; the other commands are about one."""
    from services.cli.failure import UsageProblem

    context.obj = data_dir
    if context.invoked_subcommand is None:
        _list(data_dir, thread, limit, as_json)
        return
    # A command that did without them would do more than was asked for, as `runs --thread t cancel --all`.
    for option, name in (("--thread", "thread"), ("--limit", "limit"), ("--json", "as_json")):
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageProblem(f"{option} must stand behind the command: bulkhead runs {context.invoked_subcommand} {option}")


@app.command("list")
def runs_list(
    context: typer.Context,
    thread: OfThread = "",
    status: Annotated[list[Status] | None, typer.Option(help="Only those that stand so. Repeatable.")] = None,
    agent: Annotated[str, typer.Option(help="Only those of this agent.", autocompletion=completing.agents)] = "",
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """The newest runs, of all or of those that are asked for."""
    _list(data_dir or context.obj, thread, limit, as_json, status or (), agent)


@app.command("show")
def runs_show(context: typer.Context, run_id: RunId, as_json: AsJson = False, data_dir: OwnDataDir = None) -> None:
    """Everything about one run, as JSON; with `--json` on one line."""
    from services.cli import connection, runs

    runs.show_run(connection.find_connection(data_dir or context.obj), run_id, as_json=as_json)


@app.command("watch")
def runs_watch(
    context: typer.Context,
    run_id: Annotated[
        str | None, typer.Argument(help="Id of the run. Without it: the newest runs, on a terminal.", autocompletion=completing.runs)
    ] = None,
    after: After = None,
    thread: OfThread = "",
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """Follow a run to its end: exit status 0 when it finished. Without one, the newest runs as they change. Ctrl-C leaves them at work."""
    from services.cli import connection, watching
    from services.cli.failure import UsageProblem

    found = connection.find_connection(data_dir or context.obj)
    if run_id is not None:
        raise SystemExit(watching.watch_run(found, run_id, after=after or 0, as_json=as_json))
    if as_json or after is not None:
        raise UsageProblem("--json and --after need the id of a run")
    watching.watch_runs(found, limit=limit, thread=thread)


@app.command("cancel")
def runs_cancel(
    context: typer.Context,
    run_id: Annotated[str | None, typer.Argument(help="Id of the run, unless --all.", autocompletion=completing.runs)] = None,
    every: Annotated[bool, typer.Option("--all", help="All your runs that have not ended and fit the options.")] = False,
    thread: Annotated[str, typer.Option(help="With --all: of this thread.", autocompletion=completing.threads)] = "",
    agent: Annotated[str, typer.Option(help="With --all: of this agent.", autocompletion=completing.agents)] = "",
    label: Label = None,
    status: Annotated[list[Unended] | None, typer.Option(help="With --all: that stand so. Repeatable.")] = None,
    schedule: Annotated[str, typer.Option(help="With --all: that it has started.", autocompletion=completing.schedules)] = "",
    key: Annotated[str, typer.Option(help="With --all: go on with the cancelling of this key.")] = "",
    reason: Annotated[str, typer.Option(help="Why; it is kept with the run.")] = "",
    wait: Wait = False,
    yes: Yes = False,
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """Ask for the end of a run, or of many.

    Example: bulkhead runs cancel --all --agent assistant --status queued
    """
    from services.cli import cancelling, connection, runs
    from services.cli.failure import UsageProblem
    from services.cli.threads import labels

    named = {"thread_id": thread, "agent": agent, "metadata": labels(label or []), "statuses": status or [], "schedule_id": schedule}
    wanted = {name: value for name, value in named.items() if value}
    if (run_id is None) != every:
        raise UsageProblem("name one run, or say --all")
    if run_id is not None and (wanted or key):
        raise UsageProblem("--thread, --agent, --label, --status, --schedule and --key go with --all")
    if every and wait:
        raise UsageProblem("--wait goes with the id of a run")
    found = connection.find_connection(data_dir or context.obj)
    if run_id is None:
        cancelling.cancel_runs(found, wanted, reason=reason, key=key, sure=yes, as_json=as_json)
    else:
        runs.cancel_run(found, run_id, reason=reason, wait=wait, as_json=as_json)


@app.command("cancel-tool")
def runs_cancel_tool(
    context: typer.Context,
    run_id: RunId,
    call_id: Annotated[str, typer.Argument(help="Id of the tool call.", autocompletion=completing.calls)],
    how: Annotated[Continuation, typer.Argument(help="How the run goes on without it.")],
    result: Annotated[str | None, typer.Option(help="With substitute: what the model is given, as JSON.")] = None,
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """End one tool call of a run at work: its model is told (skip), the run fails (fail), it is made again where that is safe (retry),
    or has the result that you give (substitute).

    Example: bulkhead runs cancel-tool run_1 call_1_0 substitute --result '{"value": 42}'
    """
    from services.cli import approvals, cancelling, connection
    from services.cli.failure import UsageProblem

    if (how is Continuation.SUBSTITUTE) != (result is not None):
        raise UsageProblem("--result goes with `substitute`, and only with it")
    said = {"continuation": str(how)} | ({"result": approvals.from_json(result, "--result")} if result is not None else {})
    cancelling.cancel_call(connection.find_connection(data_dir or context.obj), run_id, call_id, said, as_json=as_json)


@app.command("plan")
def runs_plan(
    context: typer.Context,
    run_id: RunId,
    mark: Annotated[list[str] | None, typer.Option(help="NUMBER=STATUS: pending, in_progress, done or skipped. Repeatable.")] = None,
    title: Annotated[list[str] | None, typer.Option(help="NUMBER=TITLE. Repeatable.")] = None,
    remove: Annotated[list[int] | None, typer.Option(min=1, help="NUMBER of a step that goes. Repeatable.")] = None,
    add: Annotated[list[str] | None, typer.Option(help="Title of a step that comes behind the others. Repeatable.")] = None,
    steps: Annotated[str | None, typer.Option(help='Instead: the whole plan as JSON, [{"title": …, "status": …}, …].')] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Change nothing where another version stands by now.")] = None,
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """The plan of a run as it stands; with options, another in its place, which the run reads before its next step.

    Example: bulkhead runs plan run_1 --mark 2=skipped --add "Tell what is left out"
    """
    from services.cli import approvals, connection, plans
    from services.cli.failure import UsageProblem

    whole = approvals.from_json(steps, "--steps") if steps is not None else None
    if whole is not None and not (isinstance(whole, list) and all(isinstance(step, dict) for step in whole)):
        raise UsageProblem("--steps must be a list of objects with title and status")
    change = plans.Change(marks=mark or (), titles=title or (), removed=remove or (), added=add or (), steps=whole)
    found = connection.find_connection(data_dir or context.obj)
    if change:
        plans.change_plan(found, run_id, change, version=version, as_json=as_json)
    elif version is not None:
        raise UsageProblem("--version goes with a change")
    else:
        plans.show_plan(found, run_id, as_json=as_json)


@app.command("steer")
def runs_steer(
    context: typer.Context,
    run_id: RunId,
    message: Annotated[str, typer.Argument(help="What to tell it.")],
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """Say something to a run that has not ended; its model reads it before its next step.

    Example: bulkhead runs steer run_1 "only the year 2025"
    """
    from services.cli import connection, runs

    runs.steer_run(connection.find_connection(data_dir or context.obj), run_id, message, as_json=as_json)


@app.command("stop")
def runs_stop(context: typer.Context, run_id: RunId, wait: Wait = False, as_json: AsJson = False, data_dir: OwnDataDir = None) -> None:
    """Stop generating: the text so far is the answer, and the run succeeds with it.

    Example: bulkhead runs stop run_1 --wait
    """
    from services.cli import connection, runs

    runs.stop_run(connection.find_connection(data_dir or context.obj), run_id, wait=wait, as_json=as_json)


@app.command("feedback")
def runs_feedback(
    context: typer.Context,
    run_id: RunId,
    rating: Annotated[int | None, typer.Option(min=1, max=5, help="5 is best.")] = None,
    thumbs: Annotated[Thumbs | None, typer.Option(help="Good or bad.")] = None,
    text: Annotated[str | None, typer.Option(help="In words.")] = None,
    corrected: Annotated[str | None, typer.Option(help="What the answer should have been.")] = None,
    signal: Annotated[Signal | None, typer.Option(help="What the user did with the answer.")] = None,
    dwell: Annotated[int | None, typer.Option("--dwell-ms", min=1, help="With --signal dwell: for how long, in milliseconds.")] = None,
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """Tell what you think of a run, also after its end.

    Example: bulkhead runs feedback run_1 --thumbs down --text "the sum is wrong"
    """
    from services.cli import connection, runs
    from services.cli.failure import UsageProblem

    if not any((rating, thumbs, text, corrected, signal)):
        raise UsageProblem("give at least one of --rating, --thumbs, --text, --corrected and --signal")
    said = {"rating": rating, "thumbs": thumbs, "text": text, "corrected_answer": corrected, "signal": signal, "dwell_ms": dwell}
    runs.give_feedback(connection.find_connection(data_dir or context.obj), run_id, said, as_json=as_json)


@app.command("fork")
def runs_fork(
    context: typer.Context,
    run_id: RunId,
    step: Annotated[int | None, typer.Option(min=1, help="At the end of this step. Default: at the end of the run.")] = None,
    go_on: GoOn = False,
    name: NewName = "",
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """Make a thread that begins as this run's was then; its id goes to stdout."""
    from services.cli import connection, runs

    found = connection.find_connection(data_dir or context.obj)
    runs.fork_run(found, run_id, step=step, name=name, go_on=go_on, as_json=as_json)


def _list(data_dir: Path, thread: str, limit: int, as_json: bool, statuses: Sequence[Status] = (), agent: str = "") -> None:
    from services.cli import connection, runs

    found = connection.find_connection(data_dir)
    runs.list_runs(found, limit=limit, thread=thread, statuses=statuses, agent=agent, as_json=as_json)
