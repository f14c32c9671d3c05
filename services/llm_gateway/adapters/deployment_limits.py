"""What all replicas together ask of one deployment: its declared requests and tokens a minute, and what was used of late."""

import asyncio
from pathlib import Path

import redis.asyncio as redis
from redis.exceptions import RedisError

from services.common.tasks import end
from services.common.valkey import Library
from services.llm_gateway.adapters.store_breaker import StoreBreaker
from services.llm_gateway.registry import DeploymentLimits

STORE_TROUBLE = (RedisError, OSError)
# Beyond this many, what would be given back is forgotten: the buckets fill up by themselves within a minute.
MOST_PENDING = 10_000
# A store that did not answer is left alone for so long; then one call finds out.
PAUSE_S = 0.5


class ValkeyDeploymentLimits:
    """Token buckets in Valkey, and usage that is added up once a second.

    These limits spare the provider refusals that it would make anyway: while the store is slow (`timeout_s`) or away they do not hold.
    """

    def __init__(self, client: redis.Redis, *, timeout_s: float = 0.05, every_s: float = 1.0) -> None:
        self._library = Library(client, Path(__file__).with_name("deployment_limits.lua"))
        self._timeout_s = timeout_s
        self._every_s = every_s
        self._pending: list[tuple[str, tuple[int, int, int, int]]] = []
        self._giving: asyncio.Task | None = None
        self._unsent: dict[str, tuple[int, int]] = {}
        self._known: dict[str, tuple[int, int]] = {}
        self._breaker = StoreBreaker("limits of deployments", after=1, pause_s=PAUSE_S)
        self._task: asyncio.Task | None = None

    async def start(self) -> None:
        """Begins to add up usage with the other replicas."""
        self._task = asyncio.create_task(self._keep_in_touch(), name="deployment-usage")

    async def stop(self) -> None:
        """Ends the background work."""
        await end([self._task, self._giving])

    async def take(self, deployment_id: str, limits: DeploymentLimits, tokens: int) -> float:
        """Takes a request and its tokens, or nothing; answers 0, or seconds until it may be tried again."""
        if not self._breaker.admit():
            return 0.0
        args = (limits.requests_per_minute, limits.tokens_per_minute, 1, tokens)
        try:
            async with asyncio.timeout(self._timeout_s):
                wait_ms = await self._library.batched("deployment_take_v1", _buckets(deployment_id), args)
        except STORE_TROUBLE:
            self._breaker.failed()
            return 0.0
        self._breaker.succeeded()
        return wait_ms / 1000

    def give_back(self, deployment_id: str, limits: DeploymentLimits, requests: int, tokens: int) -> None:
        """Corrects what was taken, in the background; amounts below 0 are taken in addition."""
        if not requests and not tokens:
            return
        if len(self._pending) < MOST_PENDING:
            self._pending.append((deployment_id, (limits.requests_per_minute, limits.tokens_per_minute, requests, tokens)))
        if self._giving is None or self._giving.done():
            self._giving = asyncio.get_running_loop().create_task(self._give_all(), name="deployment-give")

    def count(self, deployment_id: str, tokens: int) -> None:
        """Adds one request and its tokens to the usage."""
        had_tokens, had_requests = self._unsent.get(deployment_id, (0, 0))
        self._unsent[deployment_id] = (had_tokens + tokens, had_requests + 1)

    def used(self, deployment_id: str) -> tuple[int, int]:
        """Tokens and requests of the last minute: those of all replicas as of a second ago, and this one's since."""
        tokens, requests = self._known.get(deployment_id, (0, 0))
        more_tokens, more_requests = self._unsent.get(deployment_id, (0, 0))
        return tokens + more_tokens, requests + more_requests

    async def _give_all(self) -> None:
        while self._pending:
            batch, self._pending = self._pending, []
            try:
                async with asyncio.timeout(self._timeout_s):
                    await asyncio.gather(*(self._library.batched("deployment_give_v1", _buckets(name), args) for name, args in batch))
            except STORE_TROUBLE:
                self._breaker.failed()

    async def _keep_in_touch(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            names = list({*self._unsent, *self._known})
            if not names:
                continue
            sent = [self._unsent.pop(name, (0, 0)) for name in names]
            try:
                async with asyncio.timeout(self._timeout_s):
                    calls = (self._library.batched("deployment_usage_v1", [_usage(n)], s) for n, s in zip(names, sent, strict=True))
                    totals = await asyncio.gather(*calls)
            except STORE_TROUBLE:
                self._breaker.failed()
                for name, (tokens, requests) in zip(names, sent, strict=True):
                    known_tokens, known_requests = self._known.get(name, (0, 0))
                    # As if it were spread evenly over the minute.
                    kept = 1 - self._every_s / 60
                    self._known[name] = (int(known_tokens * kept) + tokens, int(known_requests * kept) + requests)
                continue
            self._breaker.succeeded()
            for name, (tokens, requests) in zip(names, totals, strict=True):
                self._known[name] = (tokens, requests)
                if not requests:
                    del self._known[name]


def _buckets(deployment_id: str) -> list[str]:
    return [f"llm:{{d:{deployment_id}}}:requests", f"llm:{{d:{deployment_id}}}:tokens"]


def _usage(deployment_id: str) -> str:
    return f"llm:{{d:{deployment_id}}}:usage"
