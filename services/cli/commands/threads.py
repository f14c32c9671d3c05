"""`bulkhead threads`."""

from typing import Annotated

import typer

from services.cli.commands import completing
from services.cli.commands.options import DEFAULT_DATA_DIR, After, AsJson, DataDir, GoOn, Label, Limit, NewName, ThreadId, Yes

app = typer.Typer(help="Conversations: list, show, snapshot, create, watch, fork, rollback, delete.", no_args_is_help=True)
# As long as the API takes.
MOST_DAYS = 3_650
Seq = Annotated[int | None, typer.Option(min=1, help="The checkpoint: the event of this number.")]
Run = Annotated[str, typer.Option(help="The checkpoint: the end of this run.", autocompletion=completing.runs)]
Step = Annotated[int | None, typer.Option(min=1, help="With --run: the end of this step of it.")]
Beginning = Annotated[bool, typer.Option("--beginning", help="The checkpoint: before the first event.")]


@app.command("list")
def threads_list(limit: Limit = 20, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """The newest threads."""
    from services.cli import connection, threads

    threads.list_threads(connection.find_connection(data_dir), limit=limit, as_json=as_json)


@app.command("show")
def threads_show(thread_id: ThreadId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """One thread, as JSON; with `--json` on one line."""
    from services.cli import connection, threads

    threads.show_thread(connection.find_connection(data_dir), thread_id, as_json=as_json)


@app.command("snapshot")
def threads_snapshot(thread_id: ThreadId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """One thread as it stands, with its runs, what they were asked, and what they wait for."""
    from services.cli import connection, threads

    threads.show_thread(connection.find_connection(data_dir), thread_id, whole=True, as_json=as_json)


@app.command("create")
def threads_create(
    name: NewName = "",
    label: Label = None,
    days: Annotated[float | None, typer.Option(min=0.001, max=MOST_DAYS, help="Deleted when it had no new run for so long.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a thread and print its id; a run makes one that is not there by itself."""
    from services.cli import connection, threads

    found = connection.find_connection(data_dir)
    threads.create_thread(found, name=name, labels=threads.labels(label or []), days=days, as_json=as_json)


@app.command("watch")
def threads_watch(thread_id: ThreadId, after: After = None, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Follow all runs of a thread until Ctrl-C; what was before is shown with `--after 0`."""
    from services.cli import connection, watching

    watching.watch_thread(connection.find_connection(data_dir), thread_id, after=after, as_json=as_json)


@app.command("fork")
def threads_fork(
    thread_id: ThreadId,
    seq: Seq = None,
    run: Run = "",
    step: Step = None,
    beginning: Beginning = False,
    go_on: GoOn = False,
    name: NewName = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a thread that begins as this one was at a checkpoint; without one it is a copy."""
    from services.cli import connection, threads

    at = threads.checkpoint(seq=seq, run=run, step=step, beginning=beginning)
    threads.fork_thread(connection.find_connection(data_dir), thread_id, at=at, name=name, go_on=go_on, as_json=as_json)


@app.command("rollback")
def threads_rollback(
    thread_id: ThreadId,
    seq: Seq = None,
    run: Run = "",
    step: Step = None,
    beginning: Beginning = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Take back what came behind a checkpoint; it stays in the log. Runs at work are cancelled."""
    from services.cli import connection, threads
    from services.cli.failure import UsageProblem

    to = threads.checkpoint(seq=seq, run=run, step=step, beginning=beginning)
    if not to:
        raise UsageProblem("name the checkpoint: --seq, --run or --beginning")
    threads.roll_back(connection.find_connection(data_dir), thread_id, to=to, as_json=as_json)


@app.command("delete")
def threads_delete(
    thread_id: ThreadId,
    yes: Yes = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Delete a thread with its log, its runs and its memory of the conversation."""
    from services.cli import connection, threads

    threads.delete_thread(connection.find_connection(data_dir), thread_id, sure=yes, as_json=as_json)
