"""`bulkhead erasures`."""

from typing import Annotated

import typer

from services.cli.commands.options import DEFAULT_DATA_DIR, AsJson, DataDir

app = typer.Typer(help="Users who are to be forgotten: create, show, watch.", no_args_is_help=True)
ErasureId = Annotated[str, typer.Argument(help="Id of the erasure.")]


@app.command("create")
def erasures_create(
    user: Annotated[str, typer.Argument(help="Whom to forget: a user of your tenant.")],
    confirm: Annotated[str, typer.Option(help="The user's name again; without it, it is asked for.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Erase what all services hold of a user, and print the id of the erasure. It cannot be taken back.

    Example: bulkhead erasures create zoe --confirm zoe
    """
    from services.cli import connection, erasures

    erasures.create_erasure(connection.find_connection(data_dir), user, said=confirm, as_json=as_json)


@app.command("show")
def erasures_show(erasure_id: ErasureId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """The receipt of an erasure as far as it has come, as JSON; with `--json` on one line."""
    from services.cli import connection, erasures

    erasures.show_erasure(connection.find_connection(data_dir), erasure_id, as_json=as_json)


@app.command("watch")
def erasures_watch(erasure_id: ErasureId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Tell what each service has erased, until all have. Ctrl-C leaves it at work."""
    from services.cli import connection, erasures

    erasures.watch_erasure(connection.find_connection(data_dir), erasure_id, as_json=as_json)
