"""The half of the store through which others ask something of a run at work."""

from collections.abc import Sequence

import orjson

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import INBOX_CHANNEL, channel_of, inbox_key, thread_keys
from services.orchestrator.records import Command, Draft, Posted, RunRef, Written


class ControllingStore(StoreBase):
    """ControlStore on Valkey."""

    async def post(self, ref: RunRef, kind: str, data: bytes, *, key: str = "", trace_id: str = "", events: Sequence[Draft] = ()) -> Posted:
        """As ControlStore.post."""
        args = [ref.run_id, kind, data, key, trace_id, channel_of(ref), self._instance, INBOX_CHANNEL, ref.encode()]
        for event in events:
            args += (event.type, "1" if event.provisional else "0", event.data)
        return posted(await self._durable("run_post_v1", [*thread_keys(ref), inbox_key(ref)], args))

    async def commands(self, ref: RunRef, after: int) -> list[Command]:
        """As ControlStore.commands."""
        found = await self._ask(self._client.hgetall(inbox_key(ref)))
        numbers = sorted(int(field) for field in found if not field.startswith(b"k:") and int(field) > after)
        return [_command(number, found[b"%d" % number]) for number in numbers]

    async def unpark(self, ref: RunRef) -> bool:
        """As ControlStore.unpark."""
        return bool(await self._durable("run_unpark_v1", [thread_keys(ref)[2]], []))


def posted(answer: Sequence) -> Posted:
    """An answer of post_command."""
    verdict, number, status, first, last, now, woken = answer
    return Posted(text(verdict), int(number), text(status), Written(int(first), int(last), int(now), ""), bool(woken))


def _command(number: int, entry: bytes) -> Command:
    kind, at_ms, data = entry.split(b" ", 2)
    return Command(number, kind.decode(), int(at_ms), orjson.loads(data))
