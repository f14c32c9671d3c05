"""Endless work, some at a time: of what is due a part is looked at, and then the process waits, unless more is there."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from services.common.errors import Overloaded

log = structlog.get_logger("bulkhead.repeating")


async def repeat(what: str, once: Callable[[], Awaitable[int]], full: int, every_s: float) -> None:
    """Does `once` until cancelled, each `every_s`, and at once again where it has looked at `full`; a store that is away is tried
    again."""
    while True:
        found = 0
        try:
            found = await once()
        except Overloaded:
            log.debug("postponed", what=what)
        # Jitter keeps the replicas apart.
        await asyncio.sleep(0 if found == full else every_s * random.uniform(0.8, 1.2))  # noqa: S311
