"""Background tasks that end when they are told to."""

import asyncio
from collections.abc import Iterable

AGAIN_S = 0.2


async def end(tasks: Iterable[asyncio.Task | None]) -> None:
    """Cancels tasks and waits for their end. What they raised is dropped; it has been told where it happened.

    redis-py swallows a cancellation that arrives while it connects or reads with a time limit, so one cancel may not be enough.
    """
    left = {task for task in tasks if task is not None and not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
