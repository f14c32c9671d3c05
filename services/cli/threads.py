"""`bulkhead threads`: conversations as a whole."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.cli.client import ask, segment
from services.cli.connection import Connection
from services.cli.failure import UsageProblem
from services.cli.rendering import note, print_answer, print_list, print_thing, when
from services.cli.runs import forked
from services.cli.terminal import confirm

TITLES = ("THREAD", "MADE", "EVENTS", "FORKED FROM", "EXPIRES", "LABELS")
DAY_MS = 86_400_000


def list_threads(connection: Connection, *, limit: int, as_json: bool = False) -> None:
    """The newest threads. Raises CommandFailure."""
    print_list(ask(connection, lambda api: api.listed("/v1/threads", limit)), TITLES, _row, "no threads yet", as_json)


def _row(one: Mapping[str, Any]) -> Sequence[Any]:
    """A thread as TITLES."""
    about = (when(one["created_at"]), one["last_seq"], one["parent_thread_id"], when(one["expires_at"]))
    return one["thread_id"], *about, " ".join(f"{name}={value}" for name, value in one["metadata"].items())


def show_thread(connection: Connection, thread_id: str, *, whole: bool = False, as_json: bool = False) -> None:
    """One thread as JSON; with `whole` as it stands, with its runs and approvals. Raises CommandFailure."""
    path = f"/v1/threads/{segment(thread_id)}" + ("/snapshot" if whole else "")
    print_thing(ask(connection, lambda api: api.get(path)), as_json)


def create_thread(
    connection: Connection, *, name: str = "", labels: Mapping[str, str], days: float | None = None, as_json: bool = False
) -> None:
    """Makes a thread and prints its id; one of that name that is there stays as it is. Raises CommandFailure."""
    body: dict[str, Any] = {"metadata": dict(labels)}
    if name:
        body["thread_id"] = name
    if days is not None:
        body["ttl_ms"] = int(days * DAY_MS)
    thread = ask(connection, lambda api: api.post("/v1/threads", body))
    print_answer(thread, thread["thread_id"], as_json)


def fork_thread(
    connection: Connection, thread_id: str, *, at: Mapping[str, Any], name: str = "", go_on: bool = False, as_json: bool = False
) -> None:
    """Makes a thread that begins as this one was at a checkpoint. Raises CommandFailure."""
    body = {"at": dict(at), "continue_run": go_on} | ({"thread_id": name} if name else {})
    forked(ask(connection, lambda api: api.post(f"/v1/threads/{segment(thread_id)}/fork", body)), as_json)


def roll_back(connection: Connection, thread_id: str, *, to: Mapping[str, Any], as_json: bool = False) -> None:
    """Takes back what came behind a checkpoint. Raises CommandFailure."""
    path = f"/v1/threads/{segment(thread_id)}/rollback"
    answer = ask(connection, lambda api: api.post(path, {"to": dict(to)}))
    print_answer(answer, f"{thread_id}: rolled back, told by event {answer['seq']}", as_json)


def delete_thread(connection: Connection, thread_id: str, *, sure: bool = False, as_json: bool = False) -> None:
    """Deletes a thread with its runs; unless `sure`, after it was confirmed. Raises CommandFailure."""
    if not sure:
        confirm(f"delete {thread_id} with its log and its runs?")
    answer = ask(connection, lambda api: api.delete(f"/v1/threads/{segment(thread_id)}"))
    whole = answer is None or bool(answer.get("completed"))
    print_answer({"thread_id": thread_id, "completed": whole}, f"{thread_id}: deleted", as_json)
    if not whole and not as_json:
        note("nobody sees it any more; the rest of it follows by itself")


def checkpoint(*, seq: int | None, run: str, step: int | None, beginning: bool) -> dict[str, Any]:
    """A checkpoint as the API has it; empty where none is named: the last one. Raises UsageProblem."""
    if (seq is not None) + bool(run) + beginning > 1:
        raise UsageProblem("name the checkpoint by one of --seq, --run and --beginning")
    if step is not None and not run:
        raise UsageProblem("--step needs --run")
    named = {"seq": seq, "run_id": run or None, "step": step, "beginning": beginning or None}
    return {name: value for name, value in named.items() if value is not None}


def labels(pairs: list[str]) -> dict[str, str]:
    """NAME=VALUE pairs. Raises UsageProblem."""
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise UsageProblem(f"--label {pair}: must be NAME=VALUE")
        found[name] = value
    return found
