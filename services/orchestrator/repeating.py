"""Endless work, some at a time: of what is due a part is looked at, and then the process waits, unless more is there."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import structlog

from services.common.errors import BulkheadError, Overloaded

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


async def safely(what: str, look: Awaitable[object], postponing: type[BulkheadError] = BulkheadError, **about: str) -> None:
    """One look of many. An error that is `postponing` is logged as `<what>_postponed`, any other as `<what>_failed`."""
    try:
        await look
    except postponing as error:
        log.warning(f"{what}_postponed", reason=error.reason, **about)
    except Exception as error:
        # A defect with one must not keep the others from being looked at.
        log.error(f"{what}_failed", exc_info=error, **about)
