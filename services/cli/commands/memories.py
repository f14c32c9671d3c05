"""`bulkhead memories`."""

from enum import StrEnum
from typing import Annotated

import typer

from services.cli.commands.options import DEFAULT_DATA_DIR, AsJson, DataDir, Limit, MemoryId, Yes

app = typer.Typer(help="What agents remember about you: list, search, show, add, delete.", no_args_is_help=True)


class Kind(StrEnum):
    """What a memory is about."""

    FACT = "fact"
    EPISODE = "episode"


@app.command("list")
def memories_list(limit: Limit = 20, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """The newest memories."""
    from services.cli import connection, memories

    memories.list_memories(connection.find_connection(data_dir), limit=limit, as_json=as_json)


@app.command("search")
def memories_search(
    query: Annotated[str, typer.Argument(help="What they must be about.")],
    limit: Annotated[int, typer.Option(min=1, max=100, help="The best so many.")] = 10,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """The memories that fit a query, by meaning and by words, best first.

    Example: bulkhead memories search "my boat"
    """
    from services.cli import connection, memories

    memories.search_memories(connection.find_connection(data_dir), query, limit=limit, as_json=as_json)


@app.command("show")
def memories_show(memory_id: MemoryId, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """One memory, as JSON; with `--json` on one line."""
    from services.cli import connection, memories

    memories.show_memory(connection.find_connection(data_dir), memory_id, as_json=as_json)


@app.command("add")
def memories_add(
    text: Annotated[str, typer.Argument(help="What to remember.")],
    kind: Annotated[Kind, typer.Option(help="What it is: something that is so, or something that happened.")] = Kind.FACT,
    importance: Annotated[float, typer.Option(min=0.01, max=1, help="How much it counts when memories are chosen.")] = 0.5,
    expires_at: Annotated[str | None, typer.Option(help="Forgotten then: RFC 3339 with a time zone.")] = None,
    as_json: AsJson = False,
    data_dir: DataDir = DEFAULT_DATA_DIR,
) -> None:
    """Have something remembered and print the id of the memory.

    Example: bulkhead memories add "My boat is called Nebelkraehe."
    """
    from services.cli import connection, memories

    found = connection.find_connection(data_dir)
    memories.add_memory(found, text, kind=kind, importance=importance, expires_at=expires_at, as_json=as_json)


@app.command("delete")
def memories_delete(memory_id: MemoryId, yes: Yes = False, as_json: AsJson = False, data_dir: DataDir = DEFAULT_DATA_DIR) -> None:
    """Have a memory forgotten."""
    from services.cli import connection, memories

    memories.delete_memory(connection.find_connection(data_dir), memory_id, sure=yes, as_json=as_json)
