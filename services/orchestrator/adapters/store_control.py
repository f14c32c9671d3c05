"""The half of the store through which others ask something of a run at work."""

from collections.abc import Sequence

import orjson

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.sealing import COMMAND
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import INBOX_CHANNEL, channel_of, inbox_key, tenant_keys, thread_keys
from services.orchestrator.records import Command, Draft, Posted, RunRef, Written


class ControllingStore(StoreBase):
    """ControlStore on Valkey."""

    async def post(self, ref: RunRef, kind: str, data: bytes, *, key: str = "", trace_id: str = "", events: Sequence[Draft] = ()) -> Posted:
        """As ControlStore.post."""
        (data,) = await self.sealing.seal(ref, [(COMMAND, data)])
        events = await self.sealing.drafts(ref, events)
        args = [ref.run_id, kind, data, key, trace_id, channel_of(ref), self._instance, INBOX_CHANNEL, ref.encode()]
        for event in events:
            args += (event.type, "1" if event.provisional else "0", event.data)
        return posted(await self._noted(ref, self._durable("run_post_v1", [*thread_keys(ref), inbox_key(ref)], args)))

    async def commands(self, ref: RunRef, after: int) -> list[Command]:
        """As ControlStore.commands."""
        found = await self._ask(self._client.hgetall(inbox_key(ref)))
        numbers = sorted(int(field) for field in found if not field.startswith(b"k:") and int(field) > after)
        return [await self._command(ref.tenant, number, found[b"%d" % number]) for number in numbers]

    async def posted(self, ref: RunRef, key: str) -> int:
        """As ControlStore.posted."""
        return int(await self._ask(self._client.hget(inbox_key(ref), f"k:{key}")) or 0)

    async def made_with(self, tenant: str, user: str, key: str) -> bool:
        """As ControlStore.made_with."""
        return bool(await self._ask(self._client.hexists(tenant_keys(tenant, "-", user, key)[2], "run")))

    async def at_work(self, ref: RunRef, user: str) -> str:
        """As ControlStore.at_work."""
        keys = thread_keys(ref)
        return text(await self._ask(self._library.batched("thread_busy_v1", [keys[0], keys[3]], [user])))

    async def cut_by(self, ref: RunRef) -> str:
        """As ControlStore.cut_by."""
        return text(await self._ask(self._client.hget(thread_keys(ref)[2], "cut")) or "")

    async def _command(self, tenant: str, number: int, entry: bytes) -> Command:
        kind, at_ms, data = entry.split(b" ", 2)
        opened = await self.sealing.open(tenant, COMMAND, data)
        return Command(number, kind.decode(), int(at_ms), orjson.loads(opened or b"{}"))

    async def unpark(self, ref: RunRef) -> bool:
        """As ControlStore.unpark."""
        return bool(await self._durable("run_unpark_v1", [thread_keys(ref)[2]], []))


def posted(answer: Sequence) -> Posted:
    """An answer of post_command."""
    verdict, number, status, first, last, now, woken = answer
    return Posted(text(verdict), int(number), text(status), Written(int(first), int(last), int(now), ""), bool(woken))
