"""Token buckets in Valkey: several at once, all or nothing, on the store's clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio as redis

from services.common.errors import QuotaExceeded
from services.common.valkey import UNAVAILABLE, Library, store_unavailable


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of `capacity` tokens that fills up once in `period_s` seconds. `policy` is its name for the caller."""

    key: str
    capacity: int
    period_s: float
    policy: str


class TokenBuckets:
    """Takes from buckets that share a hash tag."""

    def __init__(self, client: redis.Redis) -> None:
        self._library = Library(client, Path(__file__).with_name("buckets.lua"))

    async def take(self, buckets: Sequence[Bucket], amount: int = 1) -> list[int]:
        """Takes `amount` from every bucket or from none; answers what is left in each.

        Raises QuotaExceeded naming the first bucket that is short, with the time until it is not; Overloaded without a store.
        """
        if not buckets:
            return []
        args: list[object] = [amount]
        for bucket in buckets:
            args += [bucket.capacity, bucket.period_s]
        try:
            short, value, *rest = await self._library.batched("buckets_take_v1", [b.key for b in buckets], args)
        except UNAVAILABLE as error:
            raise store_unavailable() from error
        if short:
            bucket = buckets[short - 1]
            raise QuotaExceeded(
                f"the limit {bucket.policy} of {bucket.capacity} per {bucket.period_s:g} s is used up",
                retry_after_s=float(value) / 1000,
                metadata={"policy": bucket.policy, "limit": str(bucket.capacity), "period_s": f"{bucket.period_s:g}"},
            )
        return [int(value), *(int(v) for v in rest)]
