"""`bulkhead approvals`: what runs ask of people, and what people decide."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from services.cli.client import ask, segments
from services.cli.connection import Connection
from services.cli.failure import UsageProblem
from services.cli.rendering import brief, json_text, note, print_answer, print_list, print_thing, when
from services.cli.terminal import confirm, somebody_is_there

STYLES = {"open": "yellow", "approved": "green", "rejected": "red"}
TITLES = ("APPROVAL", "STATE", "TOOL", "ARGUMENTS", "FOR", "ASKED", "EXPIRES")


def list_approvals(
    connection: Connection, *, limit: int, run: str = "", thread: str = "", state: str = "", decidable: bool = False, as_json: bool = False
) -> None:
    """The newest approvals that fit. Raises CommandFailure."""
    query = {"run_id": run or None, "thread_id": thread or None, "state": state or None, "decidable": "true" if decidable else None}
    approvals = ask(connection, lambda api: api.listed("/v1/approvals", limit, **query))
    print_list(approvals, TITLES, _row, "nothing waits for you" if decidable else "no approvals", as_json)


def _row(one: Mapping[str, Any]) -> Sequence[Any]:
    """An approval as TITLES."""
    state = Text(one["state"], style=STYLES.get(one["state"], "dim"))
    about = (one["tool"], brief(one["arguments"]), one["requester"], when(one["created_at"]), when(one["expires_at"]))
    return one["approval_id"], state, *about


def show_approval(connection: Connection, approval_id: str, *, as_json: bool = False) -> None:
    """Everything about one approval, as JSON. Raises CommandFailure."""
    print_thing(ask(connection, lambda api: api.get(_path(approval_id))), as_json)


def decide(connection: Connection, approval_id: str, decision: Mapping[str, Any], *, as_json: bool = False, sure: bool = True) -> None:
    """Decides an approval. Unless `sure`, what is approved is shown first and has to be confirmed where somebody sits at a terminal; the
    decision then holds for just that. Raises CommandFailure."""
    if not sure and somebody_is_there():
        decision = {**decision, "arguments_digest": _confirmed(ask(connection, lambda api: api.get(_path(approval_id))))}
    answer = ask(connection, lambda api: api.post(f"{_path(approval_id)}/decision", decision))
    print_answer(answer, f"{approval_id}: {answer['state']}", as_json)
    if answer["state"] == "open" and not as_json:
        note("somebody else has to decide as well" if decision["verb"] != "delegate" else "it is somebody else's now")


def from_json(text: str, option: str) -> Any:
    """The value that an option gives as JSON. Raises UsageProblem."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageProblem(f"{option} is no JSON: {error}") from None


def _confirmed(approval: Mapping[str, Any]) -> str:
    """The digest of the arguments that somebody has seen and confirmed."""
    note(f"{approval['tool']} for {approval['requester']}, in {approval['run_id']}:")
    note(json_text(approval["arguments"], indent=2))
    confirm("approve?")
    return str(approval["arguments_digest"])


def _path(approval_id: str) -> str:
    return f"/v1/approvals/{segments(approval_id)}"
