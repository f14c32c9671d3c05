"""Readers side by side, one writer alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Barrier:
    """While Milvus Lite flushes, rows are for a moment neither in its memory table nor in a segment; readers wait that long."""

    def __init__(self) -> None:
        self._readers = 0
        self._closed = False
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def reading(self, patience_s: float) -> AsyncIterator[None]:
        """Waits while the barrier is closed, but no longer than `patience_s`: an answer that may miss a row beats none."""
        if self._closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(patience_s), self._changed:
                    await self._changed.wait_for(lambda: not self._closed)
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            if self._closed and not self._readers:
                async with self._changed:
                    self._changed.notify_all()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Keeps new readers out and waits for those inside. Callers must not overlap."""
        self._closed = True
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: not self._readers)
            yield
        finally:
            async with self._changed:
                self._closed = False
                self._changed.notify_all()
