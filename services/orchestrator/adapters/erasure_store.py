"""Erasures in Valkey, and the deletion of what a user's runs and threads left there."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any

import orjson
import redis.asyncio as redis

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.store_due import DueStore
from services.orchestrator.adapters.store_keys import (
    ENDED,
    LIVE,
    RESULTS,
    THREADS,
    approvals_keys,
    deliveries_key,
    delivery_key,
    endpoints_key,
    erasing_key,
    feedback_key,
    listed_key,
    lookup_key,
    message_key,
    messages_key,
    quoted,
    tenant_prefix,
    thread_keys,
)
from services.orchestrator.erasure_records import PARTS, ErasureRecord, ErasureRef, Part
from services.orchestrator.records import RunRef
from services.orchestrator.webhooks.records import HANDED_OFF, message_id_of

DUE = "erasures:{e0}:due"
# Whether files of the store are to be written anew.
FILES = "erasures:{e0}:files"
# A receipt is a proof that somebody may ask for long after.
KEPT = timedelta(days=3 * 365)
# How long a key that joined another erasure is answered with that one.
JOINED_KEPT = timedelta(hours=24)
AT_ONCE = 500
SCANNED = 1_000


class ValkeyErasures(DueStore):
    """ErasureStore on Valkey."""

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0) -> None:
        """As StoreBase."""
        super().__init__(client, instance, replicas, ("erasure", "due"))

    async def begin(self, ref: ErasureRef, user: str, digest: str, print_: str) -> tuple[str, str]:
        """As ErasureStore.begin."""
        keys = [erasing_key(ref.tenant), _record_key(ref)]
        joined_ms = int(JOINED_KEPT.total_seconds() * 1000)
        verdict, standing = await self._durable("erasure_begin_v1", keys, [user, ref.erasure_id, digest, print_, joined_ms, *PARTS])
        return text(verdict), text(standing)

    async def record(self, ref: ErasureRef) -> ErasureRecord | None:
        """As ErasureStore.record."""
        found = await self._ask(self._client.hgetall(_record_key(ref)))
        # Of an id that joined another erasure there is no record of its own.
        if not found or b"joined" in found:
            return None
        parts = {name: _part(found, name) for name in PARTS}
        return ErasureRecord(
            ref, found.get(b"user", b"").decode(), found[b"digest"].decode(), int(found[b"created_ms"]), int(found[b"done_ms"]), parts
        )

    async def tell(self, ref: ErasureRef, name: str, part: Part, *, done: bool) -> None:
        """As ErasureStore.tell."""
        told = orjson.dumps({"attempts": part.attempts, "reason": part.reason, "erased": dict(part.erased)})
        await self._durable("erasure_part_v1", [_record_key(ref)], [name, told, "1" if done else "0"])

    async def finish(self, ref: ErasureRef, user: str) -> None:
        """As ErasureStore.finish."""
        keys = [erasing_key(ref.tenant), _record_key(ref), *_lists(ref.tenant, user)]
        await self._durable("erasure_finish_v1", keys, [user, ref.erasure_id, int(KEPT.total_seconds() * 1000)])

    async def note(self, ref: ErasureRef, wait_s: float) -> None:
        """As ErasureStore.note."""
        await self._durable("erasure_note_v1", [DUE], [int(wait_s * 1000), ref.encode()])

    async def settle(self, ref: ErasureRef) -> None:
        """As ErasureStore.settle."""
        await self._ask(self._client.zrem(DUE, ref.encode()))

    async def due(self, most: int, again_in_s: float) -> list[ErasureRef]:
        """As ErasureStore.due."""
        _, found = await self._take_due(DUE, most, again_in_s)
        return [ErasureRef.decode(reference) for reference in found]

    async def want_files(self, settled_s: float) -> None:
        """As ErasureStore.want_files."""
        await self._durable("erasure_want_files_v1", [FILES], [int(settled_s * 1000)])

    async def take_files(self, again_s: float, least_s: float) -> int:
        """As FilesWanted.take_files."""
        args = [int(again_s * 1000), int(least_s * 1000)]
        return int(await self._ask(self._library.batched("erasure_take_files_v1", [FILES], args)))

    async def done_files(self, at_ms: int) -> None:
        """As FilesWanted.done_files."""
        await self._ask(self._library.batched("erasure_done_files_v1", [FILES], [at_ms]))

    async def runs(self, tenant: str, user: str) -> list[RunRef]:
        """As ErasureStore.runs."""
        found = await self._ask(self._client.zrange(_lists(tenant, user)[0], 0, -1))
        return [RunRef(tenant, *text(member).split("/")) for member in found]

    async def threads(self, tenant: str, user: str) -> list[str]:
        """As ErasureStore.threads."""
        listed = {text(member) for member in await self._ask(self._client.zrange(_lists(tenant, user)[1], 0, -1))}
        return sorted(listed | {ref.thread_id for ref in await self.runs(tenant, user)})

    async def unquiet(self, refs: Sequence[RunRef]) -> tuple[list[RunRef], int]:
        """As ErasureStore.unquiet."""
        still_open, busy = [], 0
        for some in _some(refs):
            # First who is still in the sweeper's list: whoever has left it is settled, and settled for good.
            live = await self._ask(self._client.zmscore(LIVE, [ref.encode() for ref in some]))
            states = await self._each([("erasure_quiet_v1", [thread_keys(ref)[2], thread_keys(ref)[4]], [ref.run_id]) for ref in some])
            for ref, noted, state in zip(some, live, states, strict=True):
                if text(state) == "open":
                    still_open.append(ref)
                elif noted is not None or text(state) == "sending":
                    busy += 1
        return still_open, busy

    async def delete_runs(self, refs: Sequence[RunRef]) -> None:
        """As ErasureStore.delete_runs."""
        if not refs:
            return
        tenant = refs[0].tenant
        # Of a version before this one, which lists no messages of users.
        await self._unsend(tenant, [message_id_of(ref, *kind) for ref in refs for kind in ((), (HANDED_OFF,))])
        for some in _some(refs):
            pipeline = self._client.pipeline(transaction=False)
            pipeline.unlink(*(lookup_key(tenant, ref.run_id) for ref in some))
            for noted in (ENDED, RESULTS):
                pipeline.zrem(noted, *(ref.encode() for ref in some))
            await self._ask(pipeline.execute())
        threads = {ref.thread_id for ref in refs}
        for key in (feedback_key(tenant), *approvals_keys(tenant)):
            async for members in self._scanned(key):
                if gone := [member for member in members if text(member).replace("/", " ").partition(" ")[0] in threads]:
                    await self._ask(self._client.zrem(key, *gone))

    async def delete_messages(self, tenant: str, user: str) -> None:
        """As ErasureStore.delete_messages."""
        key = messages_key(tenant, user)
        await self._unsend(tenant, [text(message) for message in await self._ask(self._client.zrange(key, 0, -1))])
        await self._ask(self._client.unlink(key))

    async def _unsend(self, tenant: str, messages: Sequence[str]) -> None:
        endpoints = [text(name) for name in await self._ask(self._client.hkeys(endpoints_key(tenant)))]
        for some in _some(messages):
            keys = [message_key(tenant, message) for message in some]
            keys += [delivery_key(tenant, message, endpoint) for message in some for endpoint in endpoints]
            pipeline = self._client.pipeline(transaction=False)
            pipeline.unlink(*keys)
            for endpoint in endpoints:
                pipeline.zrem(deliveries_key(tenant, endpoint), *some)
            await self._ask(pipeline.execute())

    async def delete_threads(self, tenant: str, threads: Sequence[str]) -> bool:
        """As ErasureStore.delete_threads."""
        if not threads:
            return True
        found: dict[str, set[str]] = {thread: set() for thread in threads}
        # What other parts keep of a thread stands under its name too; one pass over the store finds all of it for all threads.
        cursor = 0
        while True:
            cursor, keys = await self._ask(self._client.scan(cursor, match=f"t:{{{quoted(tenant)}/*", count=SCANNED))
            for key in map(text, keys):
                thread = key.partition("/")[2].partition("}")[0]
                if thread in found:
                    found[thread].add(key)
            if not cursor:
                break
        # Runs that a fork brought along stand in no list of the user, but with those that have ended. While a key tells of them.
        copied = [RunRef(tenant, thread, run).encode() for thread, keys in found.items() for key in keys for run in _runs_of(key)]
        for some in _some(copied):
            for noted in (ENDED, RESULTS):
                await self._ask(self._client.zrem(noted, *some))
        calls: list[tuple[str, Sequence[str], Sequence[Any]]] = []
        for thread, keys in found.items():
            _, _, _, pending, _, _, runs = thread_keys(RunRef(tenant, thread, "-"))
            # Lua hands so many values on at once and no more; the line and the list go last.
            rest = sorted(keys - {pending, runs})
            calls += [("erasure_thread_v1", [pending, *some], []) for some in _some(rest)]
            calls.append(("erasure_thread_v1", [pending, runs], []))
        done = all(int(done) for done in await self._each(calls))
        for some in _some(threads):
            await self._ask(self._client.zrem(THREADS, *(RunRef(tenant, thread, "-").encode() for thread in some)))
        return done

    async def _each(self, calls: Sequence[tuple[str, Sequence[str], Sequence[Any]]]) -> list[Any]:
        answers: list[Any] = []
        for some in _some(calls):
            answers += await asyncio.gather(*(self._ask(self._library.batched(*call)) for call in some))
        return answers

    async def _scanned(self, key: str) -> AsyncIterator[list[bytes]]:
        cursor = 0
        while True:
            cursor, found = await self._ask(self._client.zscan(key, cursor, count=SCANNED))
            if found:
                yield [member for member, _ in found]
            if not cursor:
                return


def _some(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """`items` in parts that go to the store at once."""
    return (items[first : first + AT_ONCE] for first in range(0, len(items), AT_ONCE))


def _runs_of(key: str) -> tuple[str, ...]:
    """Which run a key of a thread may be of: of its record, or of what stands beside that."""
    run = key.partition("}:run:")[2]
    return (run, run.rpartition(":")[0]) if run else ()


def _record_key(ref: ErasureRef) -> str:
    return f"{tenant_prefix(ref.tenant)}:erasure:{ref.erasure_id}"


def _lists(tenant: str, user: str) -> list[str]:
    return [listed_key(tenant, "runs", user), listed_key(tenant, "threads", user)]


def _part(found: Mapping[bytes, bytes], name: str) -> Part:
    raw = found.get(f"part:{name}".encode())
    told = orjson.loads(raw) if raw else {}
    return Part(
        told.get("attempts", 0), told.get("reason", ""), told.get("erased", {}), int(found.get(f"done:{name}".encode(), 0))
    )  # fmt: skip
