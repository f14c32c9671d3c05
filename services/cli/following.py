"""The events of a log as they come, over as many connections as that takes."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from services.cli.client import Api
from services.cli.failure import Interrupted, Later, Unreachable

# Without an event in between, so 15 s of a gateway that is away.
RECONNECTS = 30
RECONNECT_EVERY_S = 0.5
# A stream that was open for so long was alive: the silence that ends one is shorter. Proxies end such as well, also where nothing happens.
HELD_S = 45.0


async def follow(
    api: Api,
    path: str,
    *,
    after: int = 0,
    query: Mapping[str, Any] | None = None,
    first: AsyncGenerator[dict[str, Any], None] | None = None,
) -> AsyncGenerator[dict[str, Any], None]:
    """The events of the log at `path` behind the number `after`, without end: who reads stops at the last one that is wanted. A stream that
    breaks or ends is taken up again where it ended, by Last-Event-ID. `first` is a stream to begin with that somebody opened already.
    Raises CommandFailure: what refuses the first connection, or that no later one held."""
    seen, left = after, RECONNECTS
    stream = first or api.events("GET", path, query=query, last_event_id=after)
    begun = False
    while True:
        opened, failure = time.monotonic(), None
        try:
            async with aclosing(stream) as events:
                async for event in events:
                    begun = True
                    seq = int(event.get("seq") or 0)
                    if seq and seq <= seen:
                        continue
                    seen, left = seq or seen, RECONNECTS
                    yield event
        except (Interrupted, Unreachable, Later) as broken:
            failure = broken
        if time.monotonic() - opened >= HELD_S:
            begun, left = True, RECONNECTS
        # An answer that broke off was one. Before any, nobody knows whether there is such a log, or such a run: that failure is the user's
        # to see.
        begun = begun or isinstance(failure, Interrupted)
        if failure is not None and not (begun and left):
            raise failure
        if not left:
            raise Interrupted(f"the stream of {path} ended again and again")
        left -= 1
        begun = True
        await asyncio.sleep(RECONNECT_EVERY_S)
        stream = api.events("GET", path, query=query, last_event_id=seen)
