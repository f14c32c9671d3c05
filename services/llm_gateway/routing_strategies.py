"""Which deployment of a group comes next, among those that may be asked.

The names are LiteLLM's. Each strategy gets two lanes or more and answers one of them; it is pure but for `chance`.
"""

import math
import random
import time
import zlib
from collections.abc import Callable, Mapping, Sequence

from services.llm_gateway.fair_queue import FairQueue
from services.llm_gateway.registry import Deployment

DEFAULT_STRATEGY = "least-busy"
# A latency that is older says nothing; its deployment is asked again to find out.
STALE_LATENCY_S = 60.0
# Deployments whose latency is within this share of the best are equally good (LiteLLM's lowest_latency_buffer).
LATENCY_BUFFER = 0.1
# The deployment that knows a conversation is kept while it is not busier than this: so many calls, or so many times the calls, of
# the least busy one.
AFFINITY_FACTOR = 2.0
AFFINITY_SLACK = 4
_MASK = (1 << 64) - 1


class Lane:
    """One deployment as this process sees it. `latency_s` is smoothed, 0 where none is known; times are on `time.monotonic()`.

    `used_tokens` and `used_requests` are those of the last minute, over all replicas as far as that is known.
    """

    __slots__ = (
        "deployment", "free_since", "in_flight", "interval_s", "key", "latency_at", "latency_s", "metered", "queue", "saturated_until",
        "used_requests", "used_tokens",
    )  # fmt: skip

    def __init__(self, deployment: Deployment, queue: FairQueue) -> None:
        self.deployment = deployment
        self.queue = queue
        self.in_flight = 0
        self.latency_s = 0.0
        self.latency_at = 0.0
        self.saturated_until = 0.0
        # Smoothed time between two calls that ended, and when the last one did.
        self.interval_s = 0.0
        self.free_since = 0.0
        self.metered = False
        self.used_tokens = 0
        self.used_requests = 0
        self.key = zlib.crc32(deployment.id.encode()) * 0x9E3779B97F4A7C15 & _MASK

    @property
    def full(self) -> bool:
        """Whether as many calls are in flight as the deployment takes."""
        parallel = self.deployment.limits.parallel
        return bool(parallel) and self.in_flight >= parallel


Strategy = Callable[[Sequence[Lane], random.Random], Lane]


def simple_shuffle(lanes: Sequence[Lane], chance: random.Random) -> Lane:
    """By weight, at random."""
    point = chance.random() * sum([lane.deployment.weight for lane in lanes])
    for lane in lanes:
        point -= lane.deployment.weight
        if point < 0:
            return lane
    return lanes[-1]


def least_busy(lanes: Sequence[Lane], chance: random.Random) -> Lane:
    """The better of two drawn by weight (the power of two choices, Mitzenmacher 2001): less work in flight, in calls times latency."""
    first = simple_shuffle(lanes, chance)
    others = [lane for lane in lanes if lane is not first]
    second = others[0] if len(others) == 1 else simple_shuffle(others, chance)
    busy_first = (first.in_flight + 1) / first.deployment.weight
    busy_second = (second.in_flight + 1) / second.deployment.weight
    if first.latency_s and second.latency_s:
        busy_first *= first.latency_s
        busy_second *= second.latency_s
    return second if busy_second < busy_first else first


def lowest_latency(lanes: Sequence[Lane], chance: random.Random) -> Lane:
    """The fastest of late, or one of those that are about as fast. What is not known is found out by one call at a time."""
    now = time.monotonic()
    known = [lane for lane in lanes if lane.latency_s and now - lane.latency_at < STALE_LATENCY_S]
    if len(known) < len(lanes):
        unknown = [lane for lane in lanes if lane not in known and not lane.in_flight]
        if unknown:
            return simple_shuffle(unknown, chance)
    if not known:
        return least_busy(lanes, chance)
    bound = min(lane.latency_s for lane in known) * (1 + LATENCY_BUFFER)
    return simple_shuffle([lane for lane in known if lane.latency_s <= bound], chance)


def least_used(lanes: Sequence[Lane], chance: random.Random) -> Lane:
    """The smallest share of its declared limits used in the last minute; where one declares none, the fewest tokens by weight."""
    for lane in lanes:
        lane.metered = True
    limits = [lane.deployment.limits for lane in lanes]
    if all(limit.tokens_per_minute or limit.requests_per_minute for limit in limits):
        shares = [
            max(
                lane.used_tokens / limit.tokens_per_minute if limit.tokens_per_minute else 0.0,
                lane.used_requests / limit.requests_per_minute if limit.requests_per_minute else 0.0,
            )
            for lane, limit in zip(lanes, limits, strict=True)
        ]
    else:
        shares = [lane.used_tokens / lane.deployment.weight for lane in lanes]
    lowest = min(shares)
    best = [lane for lane, share in zip(lanes, shares, strict=True) if share <= lowest]
    return best[0] if len(best) == 1 else least_busy(best, chance)


def lowest_cost(lanes: Sequence[Lane], chance: random.Random) -> Lane:
    """The lowest price of a token in and a token out; what has no known price comes last."""
    best = cheapest(lanes)
    return best[0] if len(best) == 1 else least_busy(best, chance)


def cheapest(lanes: Sequence[Lane]) -> list[Lane]:
    """The lanes that share the lowest price."""
    prices = [
        prices.input + prices.output if prices.known else math.inf for prices in (lane.deployment.prices for lane in lanes)
    ]  # fmt: skip
    lowest = min(prices)
    return [lane for lane, price in zip(lanes, prices, strict=True) if price <= lowest]


STRATEGIES: Mapping[str, Strategy] = {
    "least-busy": least_busy,
    "simple-shuffle": simple_shuffle,
    "latency-based-routing": lowest_latency,
    "usage-based-routing": least_used,
    "usage-based-routing-v2": least_used,
    "cost-based-routing": lowest_cost,
    "cost-based": lowest_cost,
}


def at_home(lanes: Sequence[Lane], affinity: str) -> Lane | None:
    """Where calls of this affinity belong, None when that lane is clearly busier than another.

    Weighted rendezvous hashing (Thaler and Ravishankar 1998): all replicas come to the same answer without talking to each other,
    and a deployment that comes or goes moves only its own share of the conversations.
    """
    seed = zlib.crc32(affinity.encode())
    best, home, least = -1.0, lanes[0], math.inf
    for lane in lanes:
        mixed = (lane.key ^ seed * 0xBF58476D1CE4E5B9 & _MASK) * 0x94D049BB133111EB & _MASK
        mixed = (mixed ^ mixed >> 31) * 0x9E3779B97F4A7C15 & _MASK
        score = -lane.deployment.weight / math.log((mixed >> 11) * 2.0**-53 + 2.0**-54)
        if score > best:
            best, home = score, lane
        busy = lane.in_flight / lane.deployment.weight
        if busy < least:
            least = busy
    own = home.in_flight / home.deployment.weight
    return home if own <= AFFINITY_FACTOR * least + AFFINITY_SLACK else None
