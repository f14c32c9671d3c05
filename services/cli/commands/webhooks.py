"""`bulkhead webhooks`."""

from enum import StrEnum
from typing import Annotated

import typer

from services.cli.commands.options import DEFAULT_DATA_DIR, AsJson, DataDir, Limit, WebhookId, Yes

app = typer.Typer(help="Who is told of the ends of runs: list, show, create, rotate, deliveries, redeliver, delete.", no_args_is_help=True)


class EventType(StrEnum):
    """What an endpoint may be told of."""

    FINISHED = "run.finished"
    FAILED = "run.failed"
    CANCELLED = "run.cancelled"
    HANDED_OFF = "run.handed_off"


@app.command("list")
def webhooks_list(as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """All webhooks of the tenant."""
    from services.cli import connection, webhooks

    webhooks.list_webhooks(connection.find_connection(data_dir), as_json=as_json)


@app.command("show")
def webhooks_show(webhook_id: WebhookId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """One webhook, as JSON; with `--json` on one line."""
    from services.cli import connection, webhooks

    webhooks.show_webhook(connection.find_connection(data_dir), webhook_id, as_json=as_json)


@app.command("create")
def webhooks_create(
    url: Annotated[str, typer.Argument(help="Where to: https, of a public host.")],
    event: Annotated[list[EventType] | None, typer.Option(help="What to tell of. Repeatable. Default: every end of a run.")] = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a webhook and print its secret, the only time that it is shown."""
    from services.cli import connection, webhooks

    event_types = event or [EventType.FINISHED, EventType.FAILED, EventType.CANCELLED]
    found = connection.find_connection(data_dir)
    webhooks.create_webhook(found, url, event_types=event_types, description=description, as_json=as_json)


@app.command("rotate")
def webhooks_rotate(
    webhook_id: WebhookId,
    overlap_hours: Annotated[
        float | None, typer.Option(min=0, max=168, help="How long the secret until now signs as well. Default: 24.")
    ] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Make a new secret and print it."""
    from services.cli import connection, webhooks

    webhooks.rotate_secret(connection.find_connection(data_dir), webhook_id, overlap_h=overlap_hours, as_json=as_json)


@app.command("deliveries")
def webhooks_deliveries(webhook_id: WebhookId, limit: Limit = 20, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """What was sent to a webhook, and what came back."""
    from services.cli import connection, webhooks

    webhooks.list_deliveries(connection.find_connection(data_dir), webhook_id, limit=limit, as_json=as_json)


@app.command("redeliver")
def webhooks_redeliver(
    delivery_id: Annotated[str, typer.Argument(help="Id of the delivery.")], as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR
) -> None:
    """Send a message again at once."""
    from services.cli import connection, webhooks

    webhooks.redeliver(connection.find_connection(data_dir), delivery_id, as_json=as_json)


@app.command("delete")
def webhooks_delete(
    webhook_id: WebhookId,
    yes: Yes = False,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Remove a webhook with its log; what was not delivered is dropped."""
    from services.cli import connection, webhooks

    webhooks.delete_webhook(connection.find_connection(data_dir), webhook_id, sure=yes, as_json=as_json)
