"""Server-sent events, as the WHATWG HTML standard defines their parsing; only what our API sends."""

from collections.abc import AsyncIterable, AsyncIterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event; `id` and `event` are empty when the server sent none."""

    id: str
    event: str
    data: str


async def parse(chunks: AsyncIterable[bytes]) -> AsyncIterator[ServerSentEvent]:
    """Events out of the bytes of a body, however they are cut. Comments (heartbeats) are left out; so is an unfinished event."""
    rest = b""
    fields: dict[str, list[str]] = {}
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            text = line.rstrip(b"\r").decode("utf-8", errors="replace")
            if not text:
                if "data" in fields:
                    yield ServerSentEvent(_last(fields, "id"), _last(fields, "event"), "\n".join(fields["data"]))
                fields = {}
            elif not text.startswith(":"):
                name, _, value = text.partition(":")
                fields.setdefault(name, []).append(value.removeprefix(" "))


def _last(fields: dict[str, list[str]], name: str) -> str:
    return fields.get(name, [""])[-1]
