"""The half of the store that runs wait in: wake-ups for claimers, and what the sweeper looks at."""

import asyncio

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import SHARD, lookup_key, quoted, thread_keys
from services.orchestrator.records import RunRef

# How long a reservation may stay without a run before the sweeper gives it up; longer than accepting may take.
FORGET_AFTER_MS = 15_000


class QueueStore(StoreBase):
    """Slots, wake-ups and the sweeper's list."""

    async def wake(self, ref: RunRef, track: str, priority: float, look_in_s: float = 1.0) -> None:
        """As RunStore.wake."""
        keys = [f"work:{SHARD}:live", f"work:{SHARD}:ready:{track}"]
        await self._ask(self._library.batched("work_wake_v1", keys, [int(look_in_s * 1000), ref.encode(), priority]))

    async def next_ready(self, track: str, wait_s: float) -> RunRef | None:
        """As RunStore.next_ready."""
        answer = await self._ask(self._client.bzpopmin([f"work:{SHARD}:ready:{track}"], timeout=wait_s))
        return RunRef.decode(text(answer[1])) if answer else None

    async def note(self, ref: RunRef, look_in_s: float, *, sooner: bool = False) -> None:
        """As RunStore.note."""
        args = [int(look_in_s * 1000), ref.encode(), *(["LT"] if sooner else [])]
        await self._ask(self._library.batched("work_note_v1", [f"work:{SHARD}:live"], args))

    async def due(self, most: int, again_in_s: float) -> list[RunRef]:
        """As RunStore.due."""
        found = await self._ask(self._library.call("work_due_v1", [f"work:{SHARD}:live"], [most, int(again_in_s * 1000)]))
        return [RunRef.decode(text(reference)) for reference in found]

    async def settle(self, ref: RunRef) -> None:
        """As RunStore.settle."""
        forget = self._ask(self._library.batched("work_settle_v1", [f"work:{SHARD}:live"], [ref.encode()]))
        await asyncio.gather(self.release_slot(ref), forget)

    async def release_slot(self, ref: RunRef) -> None:
        """As RunStore.release_slot."""
        await self._ask(self._library.batched("tenant_release_v1", [f"tn:{{{quoted(ref.tenant)}}}:slots"], [ref.run_id]))

    async def forget(self, ref: RunRef) -> bool:
        """As RunStore.forget."""
        keys = [lookup_key(ref.tenant, ref.run_id), f"tn:{{{quoted(ref.tenant)}}}:slots"]
        if not int(await self._ask(self._library.call("tenant_forget_v1", keys, [ref.run_id, FORGET_AFTER_MS, ref.thread_id]))):
            return False
        await self._ask(self._client.zrem(f"work:{SHARD}:live", ref.encode()))
        return True

    async def inspect(self, ref: RunRef) -> tuple[str, int, str, int, int, int, str]:
        """As RunStore.inspect."""
        keys = thread_keys(ref)
        answer = await self._ask(self._library.batched("run_inspect_v1", [keys[2], keys[3], keys[4]], [ref.run_id]))
        state, left, track, queued, schema, created, head = answer
        return text(state), int(left), text(track), int(queued), int(schema), int(created), text(head)
