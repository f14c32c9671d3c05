"""A process that dies between its work and saying that it is done."""

import asyncio
from typing import Any


class Dying:
    """An idempotency store whose process dies before it can say that the work is done."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def begin(self, *args: Any, **rest: Any) -> Any:
        """With a claim that somebody else may take at once."""
        return await self._store.begin(*args, **rest, lease_s=0.001)

    async def finish(self, *args: Any) -> None:
        """Never."""
        raise asyncio.CancelledError
