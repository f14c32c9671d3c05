"""`bulkhead runs cancel --all` and `cancel-tool`: the ends of many runs, and of one tool call."""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

from services.cli.client import Api, ask, segment
from services.cli.connection import Connection
from services.cli.failure import LATER, UNREACHABLE, CommandFailure, InFlight
from services.cli.rendering import note, print_answer, print_json
from services.cli.terminal import confirm, printable

# A request ends after some seconds by itself; where one answers at once, the next need not come at once.
PAUSE_S = 0.2
UNENDED = ("queued", "running", "waiting")
RESUMABLE = (UNREACHABLE, LATER)


def cancel_runs(
    connection: Connection, wanted: Mapping[str, Any], *, reason: str = "", key: str = "", sure: bool = False, as_json: bool = False
) -> None:
    """Asks for the end of all runs of the caller that fit `wanted`, a filter as the API has it, empty for every run; unless `sure`, after
    it was confirmed. `key` is that of an operation that goes on; it has the filter and the reason that it had. Raises CommandFailure."""
    if not sure and not key:
        confirm(f"cancel {_words(wanted)}?")
    key = key or f"cli-{secrets.token_hex(16)}"
    body = {"filter": dict(wanted) or {"statuses": list(UNENDED)}, "reason": reason or "bulkhead runs cancel"}
    way_on = f"the same command with --key {key} goes on"
    try:
        ask(connection, lambda api: _cancel(api, body, key, as_json))
    except CommandFailure as failure:
        # Nothing was begun by what is refused for good. A call whose replica was lost is at work for some seconds still.
        resumable = failure.status in RESUMABLE or isinstance(failure, InFlight)
        raise type(failure)(f"{failure}; {way_on}" if resumable else str(failure)) from None
    except KeyboardInterrupt:
        note(way_on)
        raise


async def _cancel(api: Api, body: Mapping[str, Any], key: str, as_json: bool) -> None:
    told = False
    while True:
        answer = await api.post("/v1/runs/cancel", body, key=key)
        if as_json:
            print_json(answer)
        if answer["done"]:
            break
        if not told:
            note(f"it goes on under --key {key}")
            told = True
        if not as_json:
            note(f"{_count(answer['matched_count'])} so far")
        await asyncio.sleep(PAUSE_S)
    if not as_json:
        asked = answer["requested_count"]
        before = answer["matched_count"] - asked
        print(f"{_count(asked)} asked to end" + (f"; {before} had been asked before, or ended meanwhile" if before > 0 else ""))


def cancel_call(connection: Connection, run_id: str, call_id: str, how: Mapping[str, Any], *, as_json: bool = False) -> None:
    """Ends one tool call of a run at work; `how` is the continuation, with the result of `substitute`. Raises CommandFailure."""
    path = f"/v1/runs/{segment(run_id)}/tool-calls/{segment(call_id)}/cancel"
    answer = ask(connection, lambda api: api.post(path, how))
    print_answer(answer, f"{call_id}: asked to end, as command {answer['number']} of {run_id}", as_json)


def _count(runs: int) -> str:
    return f"{runs} run{'' if runs == 1 else 's'}"


def _words(wanted: Mapping[str, Any]) -> str:
    labels = [f"with {name}={value}" for name, value in (wanted.get("metadata") or {}).items()]
    named = [f"of {name.removesuffix('_id')} {wanted[name]}" for name in ("thread_id", "agent", "schedule_id") if wanted.get(name)]
    states = [f"that are {' or '.join(map(str, wanted['statuses']))}"] if wanted.get("statuses") else []
    return printable(" ".join(["all your runs", *named, *labels, *(states or ["that have not ended"])]))
