"""Lists of what is due: whoever takes an entry puts off its date for a while, and says at the end when it is to be looked at again."""

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.store_base import StoreBase


class DueStore(StoreBase):
    """Calls of lua/due.lua, for stores whose library has it."""

    async def now_ms(self) -> int:
        """The store's clock."""
        seconds, micros = await self._ask(self._client.time())
        return int(seconds) * 1000 + int(micros) // 1000

    async def _take_due(self, key: str, most: int, again_in_s: float) -> tuple[int, list[str]]:
        """(their date from now on, which nobody else is given; references)."""
        at_ms, found = await self._ask(self._library.batched("due_take_v1", [key], [most, int(again_in_s * 1000)]))
        return int(at_ms), [text(reference) for reference in found]

    async def _leave_due(self, key: str, reference: str, at_ms: int, wait_s: float | None) -> None:
        """Has an entry that was taken with `at_ms` looked at again in `wait_s` (None: never), unless somebody asked for it meanwhile."""
        args = [reference, at_ms, "" if wait_s is None else int(wait_s * 1000)]
        await self._ask(self._library.batched("due_leave_v1", [key], args))
