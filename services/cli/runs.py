"""`bulkhead runs`: what runs there are, one of them, a word to one at work, its end, what one thinks of it, and another way on."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from services.cli.client import Api, ask, segment
from services.cli.connection import Connection
from services.cli.rendering import brief, note, print_answer, print_json, print_list, print_thing, when

STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "queued": "dim", "waiting": "yellow"}
TITLES = ("RUN", "STATUS", "STARTED", "AGENT", "THREAD", "COST", "ANSWER")


def list_runs(
    connection: Connection, *, limit: int, thread: str = "", statuses: Sequence[str] = (), agent: str = "", as_json: bool = False
) -> None:
    """The newest runs, of one thread or of all, that stand so and are this agent's. Raises CommandFailure."""
    path = f"/v1/threads/{segment(thread)}/runs" if thread else "/v1/runs"
    found = ask(connection, lambda api: api.listed(path, limit, status=list(statuses), agent=agent or None))
    print_list(found, TITLES, row, "no such runs" if statuses or agent else "no runs yet", as_json)


def row(run: Mapping[str, Any]) -> Sequence[Any]:
    """A run as TITLES."""
    status = str(run.get("status"))
    answer = brief(run.get("output_text") or (run.get("error") or {}).get("message"))
    about = (when(run.get("created_at")), run.get("agent"), run["thread_id"], cost(run.get("usage")), answer)
    return run["run_id"], Text(status, style=STYLES.get(status, "")), *about


def show_run(connection: Connection, run_id: str, *, as_json: bool = False) -> None:
    """Everything about one run, as JSON. Raises CommandFailure."""
    print_thing(ask(connection, lambda api: api.get(f"/v1/runs/{segment(run_id)}")), as_json)


def cancel_run(connection: Connection, run_id: str, *, reason: str = "", wait: bool = False, as_json: bool = False) -> None:
    """Asks for the end of a run, and waits for it with `wait`; asking again changes nothing. Raises CommandFailure."""
    path, body = f"/v1/runs/{segment(run_id)}/cancel", {"reason": reason or "bulkhead runs cancel"}
    answer = ask(connection, lambda api: api.post(path, body, wait="true" if wait else None))
    run = answer.get("run")
    if run is None:
        text = "not there yet; it is cancelled when it comes"
    else:
        text = run["status"] + (", cancel requested" if run["cancel_requested"] and run["ended_at"] is None else "")
    print_answer(answer, f"{run_id}: {text}", as_json)


def steer_run(connection: Connection, run_id: str, text: str, *, as_json: bool = False) -> None:
    """Puts a user message into a run that has not ended. Raises CommandFailure."""
    answer = ask(connection, lambda api: api.post(f"/v1/runs/{segment(run_id)}/steer", {"text": text}))
    print_answer(answer, f"{run_id}: taken as message {answer['number']}, which its model reads before its next step", as_json)


def stop_run(connection: Connection, run_id: str, *, wait: bool = False, as_json: bool = False) -> None:
    """Has a run end with the text so far as its answer, and waits for that with `wait`. Raises CommandFailure."""
    answer = ask(connection, lambda api: api.post(f"/v1/runs/{segment(run_id)}/stop", wait="true" if wait else None))
    run = answer["run"]
    print_answer(answer, f"{run_id}: {run['status']}{', stop requested' if run['ended_at'] is None else ''}", as_json)


def give_feedback(connection: Connection, run_id: str, said: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Records what the user thinks of a run; of `said`, what is None is left out. Raises CommandFailure."""
    body = {"run_id": run_id} | {name: value for name, value in said.items() if value is not None}
    answer = ask(connection, lambda api: api.post("/v1/feedback", body))
    print_answer(answer, f"{run_id}: recorded as {answer['feedback_id']}, event {answer['seq']} of its thread", as_json)


def fork_run(
    connection: Connection, run_id: str, *, step: int | None = None, name: str = "", go_on: bool = False, as_json: bool = False
) -> None:
    """A thread that begins as that of the run was at the end of the run, or of one of its steps; with `go_on` also a run that goes on from
    there. Raises CommandFailure."""
    forked(ask(connection, lambda api: _fork(api, run_id, step, name, go_on)), as_json)


def forked(answer: Mapping[str, Any], as_json: bool) -> None:
    """Tells of a fork: the id of the new thread on stdout."""
    if as_json:
        print_json(answer)
        return
    thread, run = answer["thread"], answer.get("run")
    print(thread["thread_id"])
    note(f"forked from {thread.get('parent_thread_id')} at {thread.get('forked_at_seq')}")
    if run:
        note(f"it goes on as {run['run_id']}: `bulkhead runs watch {run['run_id']}`")


def cost(usage: Any) -> str:
    """As `$0.0012`; empty when nothing was spent."""
    spent = (usage or {}).get("cost_microusd") or 0
    return f"${spent / 1e6:.4f}" if spent else ""


async def _fork(api: Api, run_id: str, step: int | None, name: str, go_on: bool) -> Any:
    run = await api.get(f"/v1/runs/{segment(run_id)}")
    at = {"run_id": run_id} | ({"step": step} if step else {})
    body = {"at": at, "continue_run": go_on} | ({"thread_id": name} if name else {})
    return await api.post(f"/v1/threads/{segment(run['thread_id'])}/fork", body)
