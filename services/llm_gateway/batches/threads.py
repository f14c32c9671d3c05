"""Threads for what blocks on a disk. They are nobody else's: a folder on a network that hangs must not hold up name look-ups."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
MOST_THREADS = 16


class DiskThreads:
    """Runs functions in threads of its own."""

    def __init__(self, most: int = MOST_THREADS) -> None:
        self._executor = ThreadPoolExecutor(most, thread_name_prefix="disk")

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        """The value of `function`. A cancelled caller waits for the thread: it may still use what the caller is about to close."""
        work = asyncio.get_running_loop().run_in_executor(self._executor, function, *arguments)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            if not work.cancelled():
                work.exception()
            raise

    def stop(self) -> None:
        """Takes nothing more; what runs is not waited for."""
        self._executor.shutdown(wait=False, cancel_futures=True)
