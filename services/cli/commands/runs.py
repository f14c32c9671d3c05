"""`bulkhead runs`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from services.cli.commands import completing
from services.cli.commands.options import DEFAULT_DATA_DIR, After, AsJson, DataDir, GoOn, Limit, NewName, OfThread, RunId

app = typer.Typer(help="The runs: list, show, watch, steer, stop, cancel, feedback, fork.", invoke_without_command=True)
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


@app.callback()
def runs(
    context: typer.Context,
    thread: OfThread = "",
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """The newest runs, as `runs list`; the other commands are about one."""
    context.obj = data_dir
    if context.invoked_subcommand is None:
        _list(data_dir, thread, limit, as_json)


@app.command("list")
def runs_list(
    context: typer.Context, thread: OfThread = "", limit: Limit = 20, as_json: AsJson = False, data_dir: OwnDataDir = None
) -> None:
    """The newest runs."""
    _list(data_dir or context.obj, thread, limit, as_json)


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
    run_id: RunId,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the run.")] = "",
    wait: Wait = False,
    as_json: AsJson = False,
    data_dir: OwnDataDir = None,
) -> None:
    """Ask for the end of a run."""
    from services.cli import connection, runs

    found = connection.find_connection(data_dir or context.obj)
    runs.cancel_run(found, run_id, reason=reason, wait=wait, as_json=as_json)


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


def _list(data_dir: Path, thread: str, limit: int, as_json: bool) -> None:
    from services.cli import connection, runs

    runs.list_runs(connection.find_connection(data_dir), limit=limit, thread=thread, as_json=as_json)
