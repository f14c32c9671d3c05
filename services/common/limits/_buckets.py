"""Token buckets in Valkey: several at once, all or nothing, on the store's clock."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio as redis

from services.common.errors import QuotaExceeded
from services.common.valkey import Library
from services.common.valkey_replicas import asked


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of `capacity` tokens that fills up once in `period_s` seconds. `policy` is its name for the caller."""

    key: str
    capacity: int
    period_s: float
    policy: str


@dataclass(frozen=True, slots=True)
class Level:
    """What a bucket has: whole tokens, and the seconds until it has more, 0 where it is full. Where `short`, until it has enough."""

    left: int
    wait_s: float
    short: bool = False


class BucketsShort(QuotaExceeded):
    """Nothing was taken. `levels` are those of all buckets, in their order; metadata `policy` names the one that is short for longest."""

    levels: Sequence[Level] = ()


class TokenBuckets:
    """Takes from buckets that share a hash tag. What they count may be lost with a primary: nobody waits for replicas of it."""

    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._library = Library(client, Path(__file__).with_name("buckets.lua"))

    async def take(self, buckets: Sequence[Bucket], amount: int = 1, *, when_full: bool = False) -> list[Level]:
        """Takes `amount` from every bucket or from none; answers what is left in each. What goes on where the store's memory is full
        is counted there as well with `when_full`.

        Raises BucketsShort with the time until none is short any more; Overloaded without a store.
        """
        if not buckets:
            return []
        args: list[object] = [amount]
        for bucket in buckets:
            args += [bucket.capacity, bucket.period_s]
        function = "buckets_take_when_full_v1" if when_full else "buckets_take_v1"
        short, *found = await asked(self._client, self._library.batched(function, [b.key for b in buckets], args))
        pairs = [(int(left), float(wait) / 1000) for left, wait in zip(found[::2], found[1::2], strict=True)]
        if not short:
            return [Level(left, wait_s) for left, wait_s in pairs]
        levels = [Level(left, wait_s, left < amount) for left, wait_s in pairs]
        bucket = buckets[short - 1]
        policies = ", ".join(named.policy for named, level in zip(buckets, levels, strict=True) if level.short)
        refused = BucketsShort(
            f"the limit {bucket.policy} of {bucket.capacity} per {bucket.period_s:g} s is used up",
            retry_after_s=levels[short - 1].wait_s,
            metadata={
                "policy": bucket.policy, "limit": str(bucket.capacity), "period_s": f"{bucket.period_s:g}", "violated_policies": policies,
            },
        )  # fmt: skip
        refused.levels = levels
        raise refused
