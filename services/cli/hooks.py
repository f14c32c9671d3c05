"""`bulkhead hooks`: where others' systems send signed messages, each of which starts a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.cli.client import ask, segment
from services.cli.connection import Connection
from services.cli.failure import UsageProblem
from services.cli.rendering import note, print_answer, print_json, print_list, when
from services.cli.terminal import confirm

TITLES = ("HOOK", "AGENT", "THREAD", "MADE", "DESCRIPTION")
HOUR_MS = 3_600_000


def list_hooks(connection: Connection, *, as_json: bool = False) -> None:
    """All of the tenant, oldest first. Raises CommandFailure."""
    print_list(ask(connection, lambda api: api.get("/v1/hooks"))["data"], TITLES, _row, "no hooks yet", as_json)


def create_hook(
    connection: Connection, agent: str, *, thread: str = "", instructions: str = "", description: str = "",
    secret_file: Path | None = None, as_json: bool = False,
) -> None:  # fmt: skip
    """Makes a hook and prints its secret, which no other answer has but that of rotating. `secret_file` has one that the sender brought:
    an argument would be seen by all who see the processes of the machine. Raises CommandFailure."""
    body = {"agent": agent, "instructions": instructions, "description": description}
    body |= {"thread_id": thread} if thread else {}
    body |= {"secret": _brought(secret_file)} if secret_file is not None else {}
    _secret(connection, ask(connection, lambda api: api.post("/v1/hooks", body)), as_json)


def rotate_secret(connection: Connection, hook_id: str, *, overlap_h: float | None = None, as_json: bool = False) -> None:
    """Makes a new secret and prints it. Raises CommandFailure."""
    body = {} if overlap_h is None else {"overlap_ms": int(overlap_h * HOUR_MS)}
    _secret(connection, ask(connection, lambda api: api.post(f"{_path(hook_id)}/secret", body)), as_json)


def delete_hook(connection: Connection, hook_id: str, *, sure: bool = False, as_json: bool = False) -> None:
    """Removes a hook; unless `sure`, after it was confirmed. Raises CommandFailure."""
    if not sure:
        confirm(f"delete {hook_id}? What comes for it from then on is refused.")
    ask(connection, lambda api: api.delete(_path(hook_id)))
    print_answer({"hook_id": hook_id, "deleted": True}, f"{hook_id}: deleted", as_json)


def _brought(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise UsageProblem(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        # Not what stands there: it is a secret.
        raise UsageProblem(f"{path} has no secret in it: whsec_ and base64, as text") from None


def _path(hook_id: str) -> str:
    return f"/v1/hooks/{segment(hook_id)}"


def _secret(connection: Connection, answer: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    until = f"; earlier ones are taken until {when(answer['earlier_secret_until'])}" if answer.get("earlier_secret_until") else ""
    note(f"{answer['hook_id']}: messages go to {connection.url}{answer['url']}{until}; the secret is not shown again")
    print(answer["secret"])


def _row(one: Mapping[str, Any]) -> Sequence[Any]:
    """A hook as TITLES."""
    return one["hook_id"], one["agent"], one["thread_id"] or "new ones", when(one["created_at"]), one["description"]
