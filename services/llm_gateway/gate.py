"""Which deployment is asked, and when: breakers, deployments' own limits, fair queues between tenants. Implements ports.Gate.

gate = DeploymentGate(breakers, limits, random.Random())
deployment = gate.pick(group.deployments, registry.routing_strategy, load)    # None: every breaker is open
permit = await gate.enter(deployment, load)                                   # UpstreamFault to try elsewhere, Overloaded
gate.leave(permit, None, latency_s=0.4, tokens=1200)                          # exactly once
"""

import asyncio
import math
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from services.common.breaker import BreakerPolicy, Breakers, Probe
from services.common.errors import Overloaded
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.fair_queue import FairQueue, Full, Waiter
from services.llm_gateway.ports import DeploymentState, Load, Permit
from services.llm_gateway.registry import Deployment, DeploymentLimits, Registry
from services.llm_gateway.routing_strategies import DEFAULT_STRATEGY, STRATEGIES, Lane, at_home, cheapest

# The provider was reached and said something of the request, not of itself.
ANSWERED = frozenset({FailureClass.CALLER_FAULT, FailureClass.CONTEXT_WINDOW, FailureClass.CONTENT_POLICY, FailureClass.UNFIT})
_SILENT = frozenset({FailureClass.TIMEOUT_FIRST_TOKEN, FailureClass.TIMEOUT_TOTAL})
# A timeout that came before this share of our own limit was the caller's deadline, and no fault of the deployment.
_OWN_LIMIT = 0.9
_COST_BASED = frozenset({"cost-based-routing", "cost-based"})
_SMOOTHING = 0.3


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Numbers of the gate. Times in seconds.

    A call waits for a place at a full deployment for at most `most_wait_s`, among at most `queue_per_tenant` calls of its tenant and
    `queue_total` in all. `tier_weights` share out the places; a tier that is not named weighs 1. The last three are the limits of
    attempts: a timeout that came sooner was the caller's own deadline and does not count against the deployment.
    """

    most_wait_s: float = 10.0
    queue_per_tenant: int = 100
    queue_total: int = 1000
    tier_weights: Mapping[str, float] = field(default_factory=lambda: {"free": 1.0, "pro": 2.0, "enterprise": 4.0})
    connect_s: float = 5.0
    first_token_s: float = 10.0
    reasoning_first_token_s: float = 60.0


class SharedLimits(Protocol):
    """Requests and tokens a minute of deployments over all replicas. Nothing here raises: without a store the limits do not hold."""

    async def take(self, deployment_id: str, limits: DeploymentLimits, tokens: int) -> float:
        """Takes a request and its tokens, or nothing; answers 0, or seconds until it may be tried again."""
        ...

    def give_back(self, deployment_id: str, limits: DeploymentLimits, requests: int, tokens: int) -> None:
        """Corrects what was taken; amounts below 0 are taken in addition. Does not wait."""
        ...

    def count(self, deployment_id: str, tokens: int) -> None:
        """Adds one request and its tokens to the usage."""
        ...

    def used(self, deployment_id: str) -> tuple[int, int]:
        """Tokens and requests of the last minute."""
        ...


class _Stay:
    """What a permit stands for."""

    __slots__ = ("entered_at", "lane", "probe", "taken")

    def __init__(self, lane: Lane, probe: Probe | None, entered_at: float, taken: int) -> None:
        self.lane = lane
        self.probe = probe
        self.entered_at = entered_at
        # Tokens taken from the deployment's bucket; -1 where it has none.
        self.taken = taken


def breaker_policy(registry: Registry, base: BreakerPolicy = BreakerPolicy()) -> BreakerPolicy:
    """`base` with what the configuration says: LiteLLM's allowed_fails are failures that do not open yet, cooldown_time the first pause."""
    if registry.allowed_fails is not None:
        most = registry.allowed_fails + 1
        base = replace(base, failures_in_row=most, least_calls=max(base.least_calls, most))
    if registry.cooldown_s:
        base = replace(base, first_open_s=registry.cooldown_s, longest_open_s=max(base.longest_open_s, registry.cooldown_s))
    return base


class DeploymentGate:
    """The gate of one process. Breakers and minute limits hold for all replicas, places and queues for this process."""

    def __init__(self, breakers: Breakers, limits: SharedLimits, chance: random.Random, settings: GateSettings = GateSettings()) -> None:
        self._breakers = breakers
        self._limits = limits
        self._chance = chance
        self._settings = settings
        self._lanes: dict[str, Lane] = {}

    def pick(self, candidates: Sequence[Deployment], strategy: str, load: Load) -> Deployment | None:
        """The next to ask; None when every candidate's breaker is open.

        Closed before full or saturated ones, then the lowest order, then one whose breaker is due for a probe, then where the
        conversation was before, then the strategy.
        """
        tripped = self._breakers.tripped
        if len(candidates) == 1:
            only = candidates[0]
            return only if not tripped or only.id not in tripped or self._breakers.due(only.id) else None
        if tripped:
            due = self._breakers.due
            candidates = [d for d in candidates if d.id not in tripped or due(d.id)]
            if not candidates:
                return None
        lanes = [self._lane(d) for d in candidates]
        free = [lane for lane in lanes if not lane.full and not (lane.saturated_until and self._saturated(lane))]
        if free:
            lanes = free
        lowest = min([lane.deployment.order for lane in lanes])
        lanes = [lane for lane in lanes if lane.deployment.order == lowest]
        if tripped:
            for lane in lanes:
                if lane.deployment.id in tripped:
                    self._breakers.hold(lane.deployment.id)
                    return lane.deployment
        if len(lanes) == 1:
            return lanes[0].deployment
        if load.affinity:
            home = at_home(cheapest(lanes) if strategy in _COST_BASED else lanes, load.affinity)
            if home is not None:
                return home.deployment
        chosen = STRATEGIES.get(strategy) or STRATEGIES[DEFAULT_STRATEGY]
        for lane in lanes:
            if lane.metered:
                lane.used_tokens, lane.used_requests = self._limits.used(lane.deployment.id)
        return chosen(lanes, self._chance).deployment

    def retry_after_s(self, candidates: Sequence[Deployment]) -> float:
        """Seconds until one of the candidates may be asked again."""
        return min((self._wait_s(d) for d in candidates), default=0.0)

    async def enter(self, deployment: Deployment, load: Load) -> Permit:
        """Waits for a place. Raises UpstreamFault (BREAKER_OPEN, SATURATED) to try elsewhere, Overloaded when the queue is full."""
        lane, limits = self._lane(deployment), deployment.limits
        probe = await self._probe(deployment) if deployment.id in self._breakers.tripped else None
        queued_s, taken = 0.0, -1
        try:
            if limits.parallel and (lane.in_flight >= limits.parallel or lane.queue):
                queued_s = await self._wait(lane, load, probing=probe is not None)
            else:
                lane.in_flight += 1
            if limits.requests_per_minute or limits.tokens_per_minute:
                taken = await self._take(lane, load)
        except BaseException:
            if probe is not None:
                self._breakers.settle(probe, failed=None)
            raise
        return Permit(deployment, probe is not None, queued_s, _Stay(lane, probe, time.monotonic(), taken))

    def leave(self, permit: Permit, failure: Failure | None, *, latency_s: float = 0.0, tokens: int = 0, cancelled: bool = False) -> None:
        """The attempt is over; called exactly once for each permit. `latency_s` is the time to the first token, or to the answer.

        A `cancelled` attempt says nothing about the deployment.
        """
        stay: _Stay = permit.token
        lane, deployment = stay.lane, permit.deployment
        self._vacate(lane)
        asked = failure is None or failure.asked
        if stay.taken >= 0:
            self._correct(deployment, stay.taken, failure, tokens, cancelled)
        if lane.metered and asked:
            self._limits.count(deployment.id, tokens)
        found = failure.failure_class if failure else None
        if cancelled or not asked:
            failed = None
        elif found is FailureClass.MODEL_GONE and deployment.pattern:
            failed = False  # the name is the caller's own word
        elif found is None or found in ANSWERED:
            failed = False
        else:
            failed = True if self._own_fault(deployment, found, stay) else None
        if failed is False and found is None and latency_s > 0:
            lane.latency_s += (_SMOOTHING if lane.latency_s else 1.0) * (latency_s - lane.latency_s)
            lane.latency_at = time.monotonic()
        if stay.probe is not None:
            self._breakers.settle(stay.probe, failed=failed, retry_after_s=failure.retry_after_s if failure else None)
        elif failed:
            self._breakers.failed(deployment.id, failure.retry_after_s if failure else None)
        elif failed is False and found is None:
            self._breakers.succeeded(deployment.id)

    def state(self, deployments: Iterable[Deployment]) -> list[DeploymentState]:
        """How these deployments do."""
        found = []
        for deployment in deployments:
            lane, health = self._lane(deployment), self._breakers.health(deployment.id)
            found.append(
                DeploymentState(
                    deployment.group,
                    deployment.id,
                    health.state,
                    health.retry_in_s,
                    lane.in_flight,
                    len(lane.queue),
                    lane.latency_s,
                    health.failure_rate,
                )
            )
        return found

    def follow(self, registry: Registry, base: BreakerPolicy = BreakerPolicy()) -> None:
        """Follows a new configuration: the breaker's numbers, and the deployments whose circuits are worth knowing."""
        self._breakers.policy = breaker_policy(registry, base)
        there = {d.id for group in (*registry.groups.values(), *registry.wildcards) for d in group.deployments}
        self._breakers.watch(sorted(there))
        for name in [n for n, lane in self._lanes.items() if n not in there and not lane.in_flight and not lane.queue]:
            del self._lanes[name]

    def _lane(self, deployment: Deployment) -> Lane:
        lane = self._lanes.get(deployment.id)
        if lane is None:
            queue = FairQueue(self._settings.queue_per_tenant, self._settings.queue_total)
            lane = self._lanes[deployment.id] = Lane(deployment, queue)
        elif lane.deployment is not deployment:
            lane.deployment = deployment
        return lane

    def _saturated(self, lane: Lane) -> bool:
        if lane.saturated_until > time.monotonic():
            return True
        lane.saturated_until = 0.0
        return False

    def _wait_s(self, deployment: Deployment) -> float:
        lane = self._lanes.get(deployment.id)
        saturated_s = lane.saturated_until - time.monotonic() if lane is not None and lane.saturated_until else 0.0
        return max(self._breakers.retry_after_s(deployment.id), saturated_s, 0.0)

    async def _probe(self, deployment: Deployment) -> Probe:
        probe = await self._breakers.probe(deployment.id)
        if probe is None:
            raise UpstreamFault(Failure(FailureClass.BREAKER_OPEN, retry_after_s=self._breakers.retry_after_s(deployment.id)))
        return probe

    async def _take(self, lane: Lane, load: Load) -> int:
        """The tokens taken from the deployment's minute; gives the place back when they are not there."""
        try:
            wait_s = await self._limits.take(lane.deployment.id, lane.deployment.limits, load.tokens)
        except BaseException:
            self._vacate(lane)
            raise
        if wait_s > 0:
            lane.saturated_until = time.monotonic() + wait_s
            self._vacate(lane)
            raise UpstreamFault(Failure(FailureClass.SATURATED, retry_after_s=wait_s))
        return load.tokens

    def _correct(self, deployment: Deployment, taken: int, failure: Failure | None, tokens: int, cancelled: bool) -> None:
        """Settles the deployment's minute. What a provider counted of a call that was cancelled unheard is not known: it stays taken."""
        if failure is not None and not failure.asked:
            self._limits.give_back(deployment.id, deployment.limits, 1, taken)
        elif tokens or (failure is not None and not cancelled):
            self._limits.give_back(deployment.id, deployment.limits, 0, taken - tokens)

    def _own_fault(self, deployment: Deployment, found: FailureClass, stay: _Stay) -> bool:
        settings, timeouts = self._settings, deployment.timeouts
        if found is FailureClass.TIMEOUT_CONNECT:
            limit_s = settings.connect_s
        elif found in _SILENT:
            default_s = settings.reasoning_first_token_s if deployment.reasoning else settings.first_token_s
            limit_s = min(timeouts.first_token_s or default_s, timeouts.total_s or math.inf)
        else:
            return True
        return time.monotonic() - stay.entered_at >= limit_s * _OWN_LIMIT

    async def _wait(self, lane: Lane, load: Load, *, probing: bool) -> float:
        """Waits in the queue and answers for how long; the place is the caller's when it returns."""
        loop, started = asyncio.get_running_loop(), time.monotonic()
        future: asyncio.Future[None] = loop.create_future()
        try:
            waiter, displaced = lane.queue.add(
                load.tenant,
                future,
                weight=self._settings.tier_weights.get(load.tier, 1.0),
                cost=load.cost_nanousd or load.tokens,
                low_priority=load.low_priority,
            )
        except Full as full:
            raise self._refused(lane, full.ahead) from None
        if displaced is not None and not displaced.ticket.done():
            displaced.ticket.set_exception(self._refused(lane, len(lane.queue)))
        wait_s = min(self._settings.most_wait_s, min(load.deadline, load.queue_until) - started)
        timer = loop.call_later(max(wait_s, 0.0), self._expire, lane, waiter)
        try:
            await future
        except BaseException:
            if not lane.queue.discard(waiter) and not future.cancelled() and future.exception() is None:
                # It was given a place in the moment in which its caller went away.
                self._vacate(lane)
            raise
        finally:
            timer.cancel()
        if not probing and lane.deployment.id in self._breakers.tripped:
            self._vacate(lane)
            raise UpstreamFault(Failure(FailureClass.BREAKER_OPEN, retry_after_s=self._breakers.retry_after_s(lane.deployment.id)))
        return time.monotonic() - started

    def _expire(self, lane: Lane, waiter: Waiter) -> None:
        if lane.queue.discard(waiter) and not waiter.ticket.done():
            waiter.ticket.set_exception(
                UpstreamFault(Failure(FailureClass.SATURATED, retry_after_s=self._expected_s(lane, len(lane.queue))))
            )

    def _refused(self, lane: Lane, ahead: int) -> Overloaded:
        return Overloaded(
            "too many calls wait for this model",
            reason="QUEUE_FULL",
            retry_after_s=self._expected_s(lane, ahead),
            metadata={"model": lane.deployment.group},
        )

    def _expected_s(self, lane: Lane, ahead: int) -> float:
        """How long so many calls take, from 1 to 60 s, by the pace of late."""
        pace_s = lane.interval_s or (lane.latency_s or 1.0) / max(lane.deployment.limits.parallel, 1)
        return float(min(max(math.ceil(ahead * pace_s), 1), 60))

    def _vacate(self, lane: Lane) -> None:
        """One place is free again; whoever is next gets it."""
        lane.in_flight -= 1
        queue = lane.queue
        if not queue:
            lane.free_since = 0.0
            return
        now = time.monotonic()
        if lane.free_since:
            pace_s = now - lane.free_since
            lane.interval_s += (_SMOOTHING if lane.interval_s else 1.0) * (pace_s - lane.interval_s)
        lane.free_since = now
        while queue and not lane.full:
            waiter = queue.pop()
            if waiter is not None and not waiter.ticket.done():
                lane.in_flight += 1
                waiter.ticket.set_result(None)
