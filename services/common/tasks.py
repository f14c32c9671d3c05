"""Tasks that end when they are told to, and others that do not before they are done."""

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

AGAIN_S = 0.2
T = TypeVar("T")


class Whole:
    """Work that comes to its end also where whoever waits for it is cancelled."""

    def __init__(self) -> None:
        # The loop alone holds tasks weakly.
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __call__(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            # Asked for here, as it may be that nobody else does: whoever left is not told of it.
            task.exception()


async def end(tasks: Iterable[asyncio.Task | None]) -> None:
    """Cancels tasks and waits for their end. What they raised is dropped; it has been told where it happened.

    redis-py swallows a cancellation that arrives while it connects or reads with a time limit, so one cancel may not be enough.
    """
    left = {task for task in tasks if task is not None and not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=AGAIN_S)
