"""Books reservations that nobody ended. Any number of replicas may sweep: the store lets each reservation end once."""

import asyncio
import random
import struct
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from opentelemetry.metrics import get_meter
from redis.exceptions import RedisError

from services.common.tasks import end
from services.common.valkey import Library
from services.common.valkey_replicas import refused
from services.llm_gateway.accounting.lines import lost
from services.llm_gateway.accounting.plans import NANO_PER_MICRO, RUN_KEPT_MS, UNLIMITED, Caps, Holder, prefix

# A tenant without reservations that nobody has named for so long is forgotten; ten times what a process names it after.
TENANT_KEPT_S = 600.0
# So late may the settlement of a lost reservation still correct it.
LOST_KEPT_MS = 24 * 3600 * 1000
SCANNED_AT_ONCE = 500
_RESERVATION = struct.Struct("<5d")
log = structlog.get_logger("bulkhead.purse")
_lost = get_meter("bulkhead.llm").create_counter(
    "bulkhead_purse_lost_total", description="Reservations that expired and were booked at their reserve."
)


class Sweeper:
    """Goes round the tenants every `every_s` seconds."""

    def __init__(
        self,
        library: Library,
        tenants: str,
        bounds: tuple[int, int, int],
        every_s: float,
        tell: Callable[[str, Sequence[Holder], Sequence[Sequence[int]]], None],
        tidy: Callable[[], None],
    ) -> None:
        """`tenants` is the key of their set, `bounds` are longest ledger, most report entries and ms a report is kept."""
        self._library = library
        self._client = library.client
        self._tenants = tenants
        self._bounds = bounds
        self._every_s = every_s
        self._tell = tell
        self._tidy = tidy
        self._task: asyncio.Task | None = None

    def start(self) -> None:
        """Starts the rounds."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="purse-sweeper")

    async def stop(self) -> None:
        """Ends the rounds."""
        await end((self._task,))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s * random.uniform(0.5, 1.5))  # noqa: S311 - replicas drift apart
            began = time.monotonic()
            try:
                await self.sweep()
            except (RedisError, OSError) as error:
                log.warning("purse_sweep_failed", error=type(error).__name__, away=refused(error), took_s=time.monotonic() - began)
            self._tidy()

    async def sweep(self) -> int:
        """One round; answers how many reservations were booked as lost. Raises redis errors."""
        seconds, micros = await self._client.time()
        now_ms = seconds * 1000 + micros // 1000
        booked = 0
        for name, announced in await self._client.zrange(self._tenants, 0, -1, withscores=True):
            tenant = name.decode() if isinstance(name, bytes) else name
            booked += await self._sweep(tenant, now_ms)
            if now_ms - announced > TENANT_KEPT_S * 1000 and not await self._client.exists(
                prefix(tenant) + "open", prefix(tenant) + "lost"
            ):
                await self._library.call("purse_retire_v1", [self._tenants], [tenant, int(announced)])
        return booked

    async def _sweep(self, tenant: str, now_ms: int) -> int:
        base, booked = prefix(tenant), 0
        async for id_, raw in self._client.hscan_iter(base + "open", count=SCANNED_AT_ONCE):
            expires, cost, tokens, _, _ = _RESERVATION.unpack_from(raw)
            if expires <= now_ms:
                booked += await self._lose(tenant, id_.decode(), raw[_RESERVATION.size :], int(cost), int(tokens))
        async for id_, raw in self._client.hscan_iter(base + "lost", count=SCANNED_AT_ONCE):
            if _RESERVATION.unpack_from(raw)[0] + LOST_KEPT_MS <= now_ms:
                await self._client.hdel(base + "lost", id_)
        return booked

    async def _lose(self, tenant: str, id_: str, about: bytes, cost: int, tokens: int) -> int:
        base = prefix(tenant)
        if cost < 0:
            # The mark of a call that was given up: nothing to book.
            await self._library.call("purse_lose_v1", [base + "open"], [id_])
            return 0
        found = lost(id_, about, cost, tokens)
        keys, limits, run_ms = found.keys, UNLIMITED * len(found.keys), 0
        if found.run_id and found.run_budget_microusd is not None:
            keys = [*keys, f"{base}run:{found.run_id}"]
            limits, run_ms = limits + Caps(total=found.run_budget_microusd * NANO_PER_MICRO).packed(), RUN_KEPT_MS
        lines, entries, kept_ms = self._bounds
        args: list[Any] = [
            id_, cost, tokens, limits, run_ms, found.line, lines, found.report, found.counts, entries, found.report_rest, kept_ms,
        ]  # fmt: skip
        fixed = [base + "open", base + "lost", base + "ledger", base + "alerts", base + "report:"]
        answer = await self._library.call("purse_lose_v1", [*fixed, *keys], args)
        if answer == 0:
            return 0
        _lost.add(1)
        log.warning("reservation_lost", tenant=tenant, ticket=id_, cost_nanousd=cost)
        if isinstance(answer, list):
            holders = [_named(key, base) for key in keys]
            self._tell(tenant, holders, answer)
        return 1


def _named(key: str, base: str) -> Holder:
    scope, _, id_ = key[len(base) :].partition(":")
    return Holder(scope, id_, key)
