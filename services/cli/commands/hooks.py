"""`bulkhead hooks`."""

from pathlib import Path
from typing import Annotated

import typer

from services.cli.commands import completing
from services.cli.commands.options import DEFAULT_DATA_DIR, AsJson, DataDir, Yes

app = typer.Typer(help="Where others' systems send what starts runs: list, create, rotate, delete.", no_args_is_help=True)
HookId = Annotated[str, typer.Argument(help="Id of the hook.")]


@app.command("list")
def hooks_list(as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """All hooks of the tenant."""
    from services.cli import connection, hooks

    hooks.list_hooks(connection.find_connection(data_dir), as_json=as_json)


@app.command("create")
def hooks_create(
    agent: Annotated[str, typer.Argument(help="Name of the agent that answers.", autocompletion=completing.agents)],
    thread: Annotated[
        str, typer.Option(help="The thread of all its runs. Default: each has one of its own.", autocompletion=completing.threads)
    ] = "",
    instructions: Annotated[str, typer.Option(help="What the agent is told before each message.")] = "",
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    secret_file: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="File with a secret that the sender has already: whsec_ and base64.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a hook and print its secret, the only time that it is shown.

    Example: bulkhead hooks create assistant --instructions "Sort this ticket."
    """
    from services.cli import connection, hooks

    hooks.create_hook(
        connection.find_connection(data_dir), agent, thread=thread, instructions=instructions, description=description,
        secret_file=secret_file, as_json=as_json,
    )  # fmt: skip


@app.command("rotate")
def hooks_rotate(
    hook_id: HookId,
    overlap_hours: Annotated[
        float | None, typer.Option(min=0, max=168, help="How long the secrets until now are taken as well. Default: 24.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a new secret and print it. For the hook's maker."""
    from services.cli import connection, hooks

    hooks.rotate_secret(connection.find_connection(data_dir), hook_id, overlap_h=overlap_hours, as_json=as_json)


@app.command("delete")
def hooks_delete(
    hook_id: HookId,
    yes: Yes = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Remove a hook; what comes for it from then on is refused."""
    from services.cli import connection, hooks

    hooks.delete_hook(connection.find_connection(data_dir), hook_id, sure=yes, as_json=as_json)
