"""`bulkhead threads`: conversations as a whole."""

from collections.abc import Mapping
from typing import Any

from services.cli.client import ask, segment
from services.cli.connection import Connection
from services.cli.failure import UsageProblem
from services.cli.rendering import note, print_json, print_json_lines, print_table, print_thing, when
from services.cli.runs import forked
from services.cli.terminal import confirm

TITLES = ("THREAD", "MADE", "EVENTS", "FORKED FROM", "EXPIRES", "LABELS")
DAY_MS = 86_400_000


def list_threads(connection: Connection, *, limit: int, as_json: bool = False) -> None:
    """The newest threads. Raises CommandFailure."""
    threads = ask(connection, lambda api: api.listed("/v1/threads", limit))
    if as_json:
        print_json_lines(threads)
        return
    rows = (
        (
            one["thread_id"], when(one["created_at"]), one["last_seq"], one["parent_thread_id"], when(one["expires_at"]),
            " ".join(f"{name}={value}" for name, value in one["metadata"].items()),
        )
        for one in threads
    )  # fmt: skip
    print_table(TITLES, rows, "no threads yet")


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
    if as_json:
        print_json(thread)
    else:
        print(thread["thread_id"])


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
    if as_json:
        print_json(answer)
    else:
        print(f"{thread_id}: rolled back, told by event {answer['seq']}")


def delete_thread(connection: Connection, thread_id: str, *, sure: bool = False, as_json: bool = False) -> None:
    """Deletes a thread with its runs; unless `sure`, after it was confirmed. Raises CommandFailure."""
    if not sure:
        confirm(f"delete {thread_id} with its log and its runs?")
    answer = ask(connection, lambda api: api.delete(f"/v1/threads/{segment(thread_id)}"))
    whole = answer is None or bool(answer.get("completed"))
    if as_json:
        print_json({"thread_id": thread_id, "completed": whole})
        return
    print(f"{thread_id}: deleted")
    if not whole:
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
