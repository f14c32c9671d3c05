"""`bulkhead blobs`."""

from typing import Annotated

import typer

from services.cli.commands import completing
from services.cli.commands.options import DEFAULT_DATA_DIR, AsJson, DataDir, Yes

app = typer.Typer(help="Files that agents are given and make: upload, show, download, link, delete.", no_args_is_help=True)
# As long as the API takes.
MOST_LIFETIME_S = 7 * 86_400
BlobId = Annotated[str, typer.Argument(help="Id of the blob.")]


@app.command("upload")
def blobs_upload(
    path: Annotated[str, typer.Argument(help="The file; - is stdin.")],
    name: Annotated[str, typer.Option(help="What it is called. Default: as the file.")] = "",
    mime_type: Annotated[str, typer.Option("--type", help="What it is, as image/png. Default: as the ending of the name says.")] = "",
    thread: Annotated[str, typer.Option(help="It belongs to this thread, and goes with it.", autocompletion=completing.threads)] = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Keep a file and print the id of the blob.

    Example: bulkhead blobs upload chart.png --thread support-4711
    """
    from services.cli import blobs, connection

    found = connection.find_connection(data_dir)
    blobs.upload_blob(found, path, name=name, mime_type=mime_type, thread=thread, as_json=as_json)


@app.command("show")
def blobs_show(blob_id: BlobId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """What is known of a blob, as JSON; with `--json` on one line."""
    from services.cli import blobs, connection

    blobs.show_blob(connection.find_connection(data_dir), blob_id, as_json=as_json)


@app.command("download")
def blobs_download(
    blob_id: BlobId,
    output: Annotated[str, typer.Option("--output", "-o", help="Where to; - is stdout. Default: a file of its name, here.")] = "",
    force: Annotated[bool, typer.Option("--force", help="Also over a file that is there.")] = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Write the bytes of a blob to a file, and print its path."""
    from services.cli import blobs, connection

    blobs.download_blob(connection.find_connection(data_dir), blob_id, output=output, force=force, as_json=as_json)


@app.command("link")
def blobs_link(
    blob_id: BlobId,
    lifetime_seconds: Annotated[
        float | None, typer.Option(min=1, max=MOST_LIFETIME_S, help="How long it leads there. Default: as the service says.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Print a URL by which anybody has the blob for a while, without a key."""
    from services.cli import blobs, connection

    blobs.link_blob(connection.find_connection(data_dir), blob_id, lifetime_s=lifetime_seconds, as_json=as_json)


@app.command("delete")
def blobs_delete(blob_id: BlobId, yes: Yes = False, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Delete a blob; links to it lead nowhere then."""
    from services.cli import blobs, connection

    blobs.delete_blob(connection.find_connection(data_dir), blob_id, sure=yes, as_json=as_json)
