"""The command line: names, options and help. The work is imported by the command that does it, so that help is quick."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from services.cli.commands import (
    approvals,
    blobs,
    completing,
    erasures,
    feedback,
    hooks,
    keys,
    memories,
    runs,
    schedules,
    threads,
    webhooks,
)
from services.cli.commands.options import DEFAULT_DATA_DIR, Agent, AsJson, DataDir, ThreadId


class Commands(TyperGroup):
    """The commands, of which each may be read by one that stops reading."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named."""
        try:
            try:
                return super().invoke(ctx)
            finally:
                sys.stdout.flush()
        except BrokenPipeError:
            # The reader (`| head`) has what it wanted; at the end of the process nothing is left to be written.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None


app = typer.Typer(name="bulkhead", cls=Commands, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback()
def root() -> None:
    """Runs AI agents in production: durable turns, exact money, one trace."""


@app.command()
def up(
    only: Annotated[list[str] | None, typer.Option(help="Start this service alone, with the stores that it needs. Repeatable.")] = None,
    replicas: Annotated[list[str] | None, typer.Option(help="SERVICE=N, as orchestrator=2. Repeatable.")] = None,
    models: Annotated[Path | None, typer.Option(help="A models file in LiteLLM's shape, instead of the configured one.")] = None,
    port_base: Annotated[int | None, typer.Option(help="Sixteen ports in a row from here, instead of the fixed ones.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Start the stores, the simulator and the five services, and keep them running until Ctrl-C.

    Example: bulkhead up --only llm-gateway --port-base 20000 --json
    """
    from services.cli.up.run import Options, up

    options = Options(only=only or (), replicas=replicas or (), models=models, port_base=port_base, data_dir=data_dir, as_json=as_json)
    raise SystemExit(up(options))


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Markdown and text files, or folders of them.")],
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Give documents to the agents; a file ingested again replaces its version before."""
    from services.cli import connection, ingest

    raise SystemExit(ingest.ingest(connection.find_connection(data_dir), ingest.find_sources(paths), as_json=as_json))


@app.command()
def chat(
    message: Annotated[str | None, typer.Argument(help="What to say. Without it: a conversation.")] = None,
    thread: Annotated[
        str,
        typer.Option(help="Name of the thread; made at its first message. Default: a new one.", autocompletion=completing.threads),
    ] = "",
    agent: Agent = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Talk to an agent; the answer is streamed, tool calls and warnings are shown as they happen."""
    from services.cli import chat, connection

    conversation = chat.Conversation(connection.find_connection(data_dir), thread or chat.new_thread_id(), agent, as_json)
    raise SystemExit(chat.converse(conversation) if message is None else chat.say_once(conversation, message))


@app.command()
def replay(
    thread: ThreadId,
    speed: Annotated[
        float | None, typer.Option(min=0.01, max=1000, help="Paced: 1 as it was, 2 twice as fast. Default: all at once.")
    ] = None,
    as_test: Annotated[bool, typer.Option("--as-test", help="Print it as a regression test, for `bulkhead test`.")] = False,
    exact: Annotated[bool, typer.Option("--exact", help="With --as-test: arguments and answers must be the same.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Show everything that happened in a thread, in order, or make a regression test of it."""
    from services.cli import connection, replay
    from services.cli.failure import UsageProblem

    if (exact and not as_test) or (speed is not None and as_test):
        raise UsageProblem("--exact goes with --as-test, and --speed does not")
    if as_test:
        replay.print_as_test(connection.find_connection(data_dir), thread, exact=exact, as_json=as_json)
        return
    replay.replay(connection.find_connection(data_dir), thread, speed=speed, as_json=as_json)


@app.command("test")
def rehearse(
    files: Annotated[list[Path], typer.Argument(help="Test files, as `replay --as-test` writes them.")],
    agent: Annotated[str, typer.Option(help="Instead of the agents in the files.", autocompletion=completing.agents)] = "",
    decide: Annotated[bool, typer.Option("--decide", help="Answer approvals as the files say, for just the calls that they name.")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the threads of the tests, to look at.")] = False,
    timeout: Annotated[float, typer.Option(min=1, max=86_400, help="Seconds that a turn may take.")] = 300.0,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Have the conversations of test files on new threads, and say what differs. Tools are really called."""
    from services.cli import connection
    from services.cli.regression import running

    options = running.Options(agent=agent, decide=decide, keep=keep, timeout_s=timeout, as_json=as_json)
    raise SystemExit(running.run_tests(connection.find_connection(data_dir), files, options))


@app.command()
def doctor(as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Check the services, stores, ports and configuration, a row each with the way out."""
    from services.cli.doctor import examine

    raise SystemExit(examine(data_dir, as_json=as_json))


@app.command()
def quota(as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """What limits you, and how much of it is used."""
    from services.cli import connection, quota

    quota.show_quota(connection.find_connection(data_dir), as_json=as_json)


app.add_typer(runs.app, name="runs")
app.add_typer(threads.app, name="threads")
app.add_typer(approvals.app, name="approvals")
app.add_typer(schedules.app, name="schedules")
app.add_typer(memories.app, name="memories")
app.add_typer(webhooks.app, name="webhooks")
app.add_typer(hooks.app, name="hooks")
app.add_typer(feedback.app, name="feedback")
app.add_typer(blobs.app, name="blobs")
app.add_typer(erasures.app, name="erasures")
app.add_typer(keys.app, name="keys")
