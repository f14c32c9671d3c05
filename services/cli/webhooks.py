"""`bulkhead webhooks`: endpoints of the tenant that are told of the ends of runs, and what was delivered to them."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from services.cli.client import ask, segment
from services.cli.connection import Connection
from services.cli.rendering import note, print_answer, print_json, print_list, print_thing, when
from services.cli.terminal import confirm

TITLES = ("WEBHOOK", "URL", "TELLS OF", "MADE", "STATE")
DELIVERIES = ("DELIVERY", "STATUS", "TYPE", "RUN", "MADE", "TRIES", "LAST", "NEXT")
STYLES = {"delivered": "green", "failed": "red", "dropped": "red", "pending": "yellow"}
HOUR_MS = 3_600_000


def list_webhooks(connection: Connection, *, as_json: bool = False) -> None:
    """All of the tenant, oldest first. Raises CommandFailure."""
    print_list(ask(connection, lambda api: api.get("/v1/webhooks"))["data"], TITLES, _row, "no webhooks yet", as_json)


def show_webhook(connection: Connection, webhook_id: str, *, as_json: bool = False) -> None:
    """One endpoint, as JSON. Raises CommandFailure."""
    print_thing(ask(connection, lambda api: api.get(_path(webhook_id))), as_json)


def create_webhook(connection: Connection, url: str, *, event_types: Sequence[str], description: str = "", as_json: bool = False) -> None:
    """Makes an endpoint and prints its secret, which no other answer has but that of rotating. Raises CommandFailure."""
    body = {"url": url, "event_types": list(event_types), "description": description}
    _secret(ask(connection, lambda api: api.post("/v1/webhooks", body)), as_json)


def rotate_secret(connection: Connection, webhook_id: str, *, overlap_h: float | None = None, as_json: bool = False) -> None:
    """Makes a new secret and prints it. Raises CommandFailure."""
    body = {} if overlap_h is None else {"overlap_ms": int(overlap_h * HOUR_MS)}
    _secret(ask(connection, lambda api: api.post(f"{_path(webhook_id)}/rotate", body)), as_json)


def list_deliveries(connection: Connection, webhook_id: str, *, limit: int, as_json: bool = False) -> None:
    """What was sent to an endpoint, newest first. Raises CommandFailure."""
    deliveries = ask(connection, lambda api: api.listed(f"{_path(webhook_id)}/deliveries", limit))
    print_list(deliveries, DELIVERIES, _delivery_row, "nothing was sent yet", as_json)


def redeliver(connection: Connection, delivery_id: str, *, as_json: bool = False) -> None:
    """Sends a message again. Raises CommandFailure."""
    answer = ask(connection, lambda api: api.post(f"/v1/deliveries/{segment(delivery_id)}/redeliver"))
    print_answer(answer, f"{delivery_id}: {answer['status']}", as_json)


def delete_webhook(connection: Connection, webhook_id: str, *, sure: bool = False, as_json: bool = False) -> None:
    """Removes an endpoint with its log; unless `sure`, after it was confirmed. Raises CommandFailure."""
    if not sure:
        confirm(f"delete {webhook_id} with its log? What was not delivered is dropped.")
    ask(connection, lambda api: api.delete(_path(webhook_id)))
    print_answer({"webhook_id": webhook_id, "deleted": True}, f"{webhook_id}: deleted", as_json)


def _path(webhook_id: str) -> str:
    return f"/v1/webhooks/{segment(webhook_id)}"


def _secret(answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    until = f"; the one before signs as well until {when(answer['earlier_secret_until'])}" if answer.get("earlier_secret_until") else ""
    note(f"{answer['webhook_id']} → {answer['url']}{until}; the secret is not shown again")
    print(answer["secret"])


def _row(one: Mapping[str, Any]) -> Sequence[Any]:
    """A webhook as TITLES."""
    about = (one["url"], " ".join(one["event_types"]), when(one["created_at"]))
    return one["webhook_id"], *about, one["disabled_reason"] or "in service"


def _delivery_row(one: Mapping[str, Any]) -> Sequence[Any]:
    """A delivery as DELIVERIES."""
    last = one["attempts"][-1] if one["attempts"] else {}
    came = last.get("response_code") or last.get("error")
    about = (one["event_type"], one["run_id"], when(one["created_at"]), one["attempt_count"], came, when(one["next_attempt_at"]))
    return one["delivery_id"], Text(one["status"], style=STYLES.get(one["status"], "")), *about
