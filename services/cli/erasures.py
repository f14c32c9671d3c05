"""`bulkhead erasures`: all that is held of a user goes, in every service."""

import asyncio
from collections.abc import Mapping
from typing import Any

from services.cli.client import Api, ask, segment
from services.cli.connection import Connection
from services.cli.failure import Interrupted, Later, Unreachable
from services.cli.rendering import note, one_line, print_answer, print_json, print_thing, when
from services.cli.terminal import confirm_by_name

LOOK_EVERY_S = 2.0
# Looks in a row that nobody answers, before the watch is given up: 20 s of a gateway that is away.
MOST_UNANSWERED = 10


def create_erasure(connection: Connection, user: str, *, said: str = "", as_json: bool = False) -> None:
    """Has a user forgotten and prints the id of the erasure, after the name was said again. Raises CommandFailure."""
    question = f"Erase all that Bulkhead holds of the user {user}, API keys included? It cannot be taken back."
    confirm_by_name(question, user, said)
    begun = ask(connection, lambda api: api.post("/v1/erasures", {"user": user}))
    print_answer(begun, begun["erasure_id"], as_json)
    if not as_json and begun["state"] != "done":
        note(f"it goes on by itself: `bulkhead erasures watch {begun['erasure_id']}`")


def show_erasure(connection: Connection, erasure_id: str, *, as_json: bool = False) -> None:
    """The receipt as far as it has come, as JSON. Raises CommandFailure."""
    print_thing(ask(connection, lambda api: api.get(_path(erasure_id))), as_json)


def watch_erasure(connection: Connection, erasure_id: str, *, as_json: bool = False) -> None:
    """Tells what each service has done until all have; Ctrl-C leaves the erasure at work. Raises CommandFailure."""
    ask(connection, lambda api: _watch(api, erasure_id, as_json))


async def _watch(api: Api, erasure_id: str, as_json: bool) -> None:
    told: dict[str, str] = {}
    seen: Any = None
    unanswered = 0
    while True:
        try:
            receipt = await api.get(_path(erasure_id))
        except (Unreachable, Later) as failure:
            unanswered += 1
            # Before the first answer nobody knows whether there is such an erasure: that failure is the user's to see.
            if seen is None:
                raise
            if unanswered > MOST_UNANSWERED:
                raise Interrupted(f"{failure}; the erasure goes on: `bulkhead erasures watch {erasure_id}`") from None
        else:
            unanswered = 0
            if as_json and receipt != seen:
                print_json(receipt)
            elif not as_json:
                _tell(receipt, told)
            seen = receipt
            if receipt["state"] == "done":
                return
        await asyncio.sleep(LOOK_EVERY_S)


def _tell(receipt: Mapping[str, Any], told: dict[str, str]) -> None:
    """Prints what has changed since `told`."""
    for part in receipt["parts"]:
        line = _line(part)
        if told.get(part["service"]) != line:
            told[part["service"]] = line
            print(one_line(line), flush=True)
    if receipt["state"] == "done":
        print(one_line(f"{receipt['erasure_id']}: done at {when(receipt['done_at'])} UTC"), flush=True)


def _line(part: Mapping[str, Any]) -> str:
    if part["state"] == "done":
        gone = ", ".join(f"{count} {kind}" for kind, count in part["erased"].items() if count)
        return f"{part['service']}: done, {gone or 'nothing there'}"
    why = f", {part['last_reason']}" if part["last_reason"] else ""
    return f"{part['service']}: {part['state']}{why}"


def _path(erasure_id: str) -> str:
    return f"/v1/erasures/{segment(erasure_id)}"
