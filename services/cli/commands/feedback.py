"""`bulkhead feedback`."""

from typing import Annotated

import typer

from services.cli.commands import completing
from services.cli.commands.options import DEFAULT_DATA_DIR, AsJson, DataDir, Limit

app = typer.Typer(help="What users think of runs: list. `runs feedback` tells what you think of one.", no_args_is_help=True)


@app.callback()
def feedback() -> None:
    """What users think of runs."""


@app.command("list")
def feedback_list(
    run: Annotated[str, typer.Option("--run", help="On this run alone.", autocompletion=completing.runs)] = "",
    agent: Annotated[str, typer.Option(help="On runs of this agent alone.", autocompletion=completing.agents)] = "",
    since: Annotated[str, typer.Option(help="Recorded then or later: RFC 3339 with a time zone.")] = "",
    limit: Limit = 20,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """The newest feedback on runs of all users of the tenant; it takes the scope `admin`.

    Example: bulkhead feedback list --agent assistant --since 2026-01-01T00:00:00Z
    """
    from services.cli import connection, feedback

    found = connection.find_connection(data_dir)
    feedback.list_feedback(found, limit=limit, run=run, agent=agent, since=since, as_json=as_json)
