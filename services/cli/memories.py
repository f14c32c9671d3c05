"""`bulkhead memories`: what agents remember about the calling user."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.cli.client import ask, segment
from services.cli.connection import Connection
from services.cli.rendering import brief, note, print_answer, print_list, print_thing, when
from services.cli.terminal import confirm

TITLES = ("MEMORY", "KIND", "TEXT", "IMPORTANCE", "MADE", "EXPIRES", "THREAD")


def list_memories(connection: Connection, *, limit: int, as_json: bool = False) -> None:
    """The newest memories. Raises CommandFailure."""
    print_list(ask(connection, lambda api: api.listed("/v1/memories", limit)), TITLES, _row, "no memories yet", as_json)


def search_memories(connection: Connection, query: str, *, limit: int, as_json: bool = False) -> None:
    """The memories that fit a query, best first; what kept the search from being a whole one is told on stderr. Raises CommandFailure."""
    answer = ask(connection, lambda api: api.post("/v1/memories/search", {"query": query, "limit": limit}))
    print_list(answer["data"], TITLES, _row, "nothing fits", as_json)
    for warning in answer["warnings"]:
        note(f"! {warning.get('user_message') or warning['code']}")


def show_memory(connection: Connection, memory_id: str, *, as_json: bool = False) -> None:
    """One memory, as JSON. Raises CommandFailure."""
    print_thing(ask(connection, lambda api: api.get(_path(memory_id))), as_json)


def add_memory(
    connection: Connection, text: str, *, kind: str, importance: float, expires_at: str | None = None, as_json: bool = False
) -> None:
    """Keeps a memory and prints its id; of a near-duplicate, the id of the one that is there. Raises CommandFailure."""
    body = {"text": text, "kind": kind, "importance": importance} | ({"expires_at": expires_at} if expires_at else {})
    memory = ask(connection, lambda api: api.post("/v1/memories", body))
    print_answer(memory, memory["memory_id"], as_json)


def delete_memory(connection: Connection, memory_id: str, *, sure: bool = False, as_json: bool = False) -> None:
    """Deletes a memory; unless `sure`, after it was confirmed. Raises CommandFailure."""
    if not sure:
        confirm(f"delete {memory_id}?")
    ask(connection, lambda api: api.delete(_path(memory_id)))
    print_answer({"memory_id": memory_id, "deleted": True}, f"{memory_id}: deleted", as_json)


def _path(memory_id: str) -> str:
    return f"/v1/memories/{segment(memory_id)}"


def _row(one: Mapping[str, Any]) -> Sequence[Any]:
    """A memory as TITLES."""
    about = (f"{one['importance']:.2f}", when(one["created_at"]), when(one["expires_at"]), one["session_id"])
    return one["memory_id"], one["kind"], brief(one["text"]), *about
