"""The one attempt loop. Unary and streaming, gRPC and HTTP, completions and embeddings: all of them walk a Course.

pick a deployment -> attempt -> classify -> retry with full jitter, rotate within the group, fall back round the ring, or stop
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from services.common.errors import BulkheadError, DeadlineExceeded, NotFound
from services.llm_gateway.failures import MOVES, NOBODY_ASKED, Failure, FailureClass, Move, UpstreamFault
from services.llm_gateway.hedging import Hedge, race
from services.llm_gateway.ports import Gate, Limits, Load
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.results import Notice
from services.llm_gateway.verdicts import error_of

# While another model is left, an answer that stays silent may use this share of what remains of the deadline.
HOP_SHARE = 0.6
# The same for the wait for a place at a deployment that is full: who waits for longer leaves the next model no time.
QUEUE_SHARE = 0.3
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers of the loop, from the settings. Times in seconds."""

    connect_s: float = 5.0
    first_token_s: float = 10.0
    reasoning_first_token_s: float = 60.0
    between_tokens_s: float = 10.0
    total_s: float = 120.0
    num_retries: int = 3
    max_attempts: int = 8
    retry_base_s: float = 1.0
    retry_cap_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Opened(Generic[T]):
    """A successful attempt."""

    deployment: Deployment
    result: T


class Observer(Protocol):
    """Hears of every turn of the loop, for logs, metrics and spans."""

    def retrying(self, deployment: Deployment, failure: Failure, wait_s: float, retry: int) -> None:
        """The model is asked again after `wait_s`."""

    def switching(self, start: Group, target: Group, failure: Failure) -> None:
        """Another model is asked."""

    def hedging(self, deployment: Deployment, other: Deployment, after_s: float) -> None:
        """A second deployment is asked as well, because the first has been silent for `after_s`."""

    def exhausted(self, tried: list[tuple[Deployment, Failure]]) -> None:
        """Nothing is left to ask."""


class Course:
    """The way of one call through the registry; it stays valid when a stream breaks off and has to be opened again."""

    def __init__(
        self,
        registry: Registry,
        start: Group,
        policy: Policy,
        gate: Gate,
        load: Load,
        observer: Observer,
        chance: random.Random,
        deadline: float,
        unfit: Callable[[Deployment], Failure | None] | None = None,
        hedge: Hedge | None = None,
    ) -> None:
        """`deadline` is on `time.monotonic()`. `unfit` says why a deployment cannot take the request, None where it can."""
        self._registry = registry
        self._policy = policy
        self._gate = gate
        self._load = load
        self._observer = observer
        self._chance = chance
        self.unfit = unfit
        self._hedge = hedge
        self.deadline = deadline
        self._most_retries = policy.num_retries if registry.num_retries is None else registry.num_retries
        self._start = start
        self._ring: deque[Group] | None = None  # made when it is first needed: most calls never leave their first model
        self._visited = {start.name}
        self._broken: tuple[Deployment, Failure] | None = None
        self._primary: Failure | None = None
        self._wait_until = 0.0
        self.failures: list[tuple[Deployment, Failure]] = []
        # What failed beside the attempt that is looked at.
        self._beside: list[tuple[Deployment, Failure]] = []
        self.attempts = 0
        self.retries = 0
        self.fallbacks = 0
        # Seconds of waits before retries.
        self.waited_s = 0.0
        self._enter(start)

    def _enter(self, group: Group) -> None:
        self.group = group
        self._asked: set[str] = set()
        self._spent: set[str] = set()
        self._retried = 0
        now = time.monotonic()
        self._hop_ends = now + max(self.deadline - now, 0.0) * HOP_SHARE if self._may_switch() else self.deadline

    @property
    def _left(self) -> deque[Group]:
        if self._ring is None:
            self._ring = deque(self._registry.ring(self._start))
        return self._ring

    def _may_switch(self) -> bool:
        most = self._registry.max_fallbacks
        return (most is None or self.fallbacks < most) and (
            self.attempts + 1 < self._policy.max_attempts
            and (bool(self._registry.ring(self._start)) if self._ring is None else any(g.name not in self._visited for g in self._ring))
        )

    def interrupted(self, deployment: Deployment, failure: Failure) -> BulkheadError:
        """Says that the opened stream broke, and answers the error of a call that ends there. The next `step` goes on from it."""
        self._broken = (deployment, failure)
        self._primary = failure
        if time.monotonic() >= self.deadline:
            return _out_of_time(failure)
        return self.error()

    async def step(
        self,
        attempt: Callable[[Deployment, int], Coroutine[Any, Any, T]],
        discard: Callable[[T], Awaitable[None]] | None = None,
    ) -> Notice | Opened[T]:
        """One turn of the loop: waits where a wait is due, asks one deployment, and answers the success or what was decided.

        After a notice the caller comes again. Raises the domain error of the first failure when nothing is left to ask,
        DeadlineExceeded when the time is up. `attempt` is given the deployment and the attempt's number, and asks for `limits` once
        it is admitted; what it raises beside UpstreamFault ends the call. `discard` is given the success of a second request that
        came after another's; without it such a success needs no end.
        """
        if self._broken is not None:
            broken, self._broken = self._broken, None
            return self._after(*broken)
        if self._wait_until:
            wait_s, self._wait_until = self._wait_until - time.monotonic(), 0.0
            if wait_s > 0:
                self.waited_s += wait_s
                await asyncio.sleep(wait_s)
        deployment, failed = self._pick()
        if failed is None:
            now = time.monotonic()
            if now >= self.deadline:
                self._give_up()
            self._load.queue_until = self.deadline if self._hop_ends >= self.deadline else now + (self.deadline - now) * QUEUE_SHARE
            self._asked.add(deployment.id)
            self.attempts += 1
            try:
                if self._hedge is None or len(self.group.deployments) == 1:
                    return Opened(deployment, await attempt(deployment, self.attempts))
                return await self._hedged(deployment, attempt, discard)
            except UpstreamFault as fault:
                failed = fault.failure
            if not failed.asked:
                self.attempts -= 1
            if failed.failure_class is FailureClass.UNFIT and self._skipped(deployment, failed):
                return await self.step(attempt, discard)
        return self._after(deployment, failed)

    def _skipped(self, deployment: Deployment, failure: Failure) -> bool:
        """Leaves out a deployment that said for itself that it cannot take the request; whether another one in the group is still new.

        One that has been asked before is due its wait.
        """
        if all(d.id in self._asked or d.id in self._spent for d in self.group.deployments):
            return False
        self._spent.add(deployment.id)
        self.failures.append((deployment, failure))
        return True

    async def _hedged(
        self,
        deployment: Deployment,
        attempt: Callable[[Deployment, int], Coroutine[Any, Any, T]],
        discard: Callable[[T], Awaitable[None]] | None,
    ) -> Opened[T]:
        assert self._hedge is not None
        hedge = self._hedge
        after_s = hedge.after_s(deployment.id)
        if after_s is None:
            return Opened(deployment, await attempt(deployment, self.attempts))
        asked, failed = [deployment], list[tuple[Deployment, Failure]]()

        def second() -> Coroutine[Any, Any, T] | None:
            others = [d for d in self.group.deployments if d.id not in self._asked and d.id not in self._spent]
            if self.unfit is not None:
                others = [d for d in others if self.unfit(d) is None]
            if not others or self.attempts >= self._policy.max_attempts:
                return None
            other = self._gate.pick(others, self._registry.routing_strategy, self._load)
            if other is None or not hedge.take():
                return None
            self._asked.add(other.id)
            self.attempts += 1
            asked.append(other)
            self._observer.hedging(deployment, other, after_s)
            return beside(other, self.attempts)

        async def beside(other: Deployment, number: int) -> T:
            try:
                return await attempt(other, number)
            except UpstreamFault as fault:
                failed.append((other, fault.failure))
                raise

        try:
            result, by_second = await race(attempt(deployment, self.attempts), second, after_s, discard or _keep)
        except UpstreamFault:
            # The call goes on by the first's failure, and knows of the other's.
            for other, failure in failed:
                self._beside.append((other, failure))
                self.attempts -= not failure.asked
                if MOVES[failure.failure_class] is not Move.RETRY:
                    self._spent.add(other.id)
            raise
        return Opened(asked[1] if by_second else deployment, result)

    def _pick(self) -> tuple[Deployment, Failure | None]:
        """The deployment to ask, or one that stands for its group with the reason why nobody in it can be asked."""
        members = self.group.deployments
        if len(members) > 1:
            left = [d for d in members if d.id not in self._spent]
            members = tuple([d for d in left if d.id not in self._asked] or left)
        if self.unfit is not None:
            fitting, failure = [], None
            for deployment in members:
                found = self.unfit(deployment)
                if found is None:
                    fitting.append(deployment)
                else:
                    failure = failure or found
                    self._spent.add(deployment.id)
            if not fitting:
                return members[0], failure
            members = tuple(fitting)
        chosen = self._gate.pick(members, self._registry.routing_strategy, self._load)
        if chosen is not None:
            return chosen, None
        self._spent.update(d.id for d in members)
        retry_after_s = self._gate.retry_after_s(members)
        return members[0], Failure(FailureClass.BREAKER_OPEN, "the model's breaker is open", retry_after_s=retry_after_s)

    def limits(self, deployment: Deployment, asked_at: float) -> Limits:
        """How long the attempt may take that was asked for at `asked_at` (on `time.monotonic()`) and is admitted now.

        What it waited for its place does not count against its model. Raises DeadlineExceeded.
        """
        policy, now = self._policy, time.monotonic()
        if now >= self.deadline:
            self._give_up()
        self._hop_ends = min(self._hop_ends + (now - asked_at) * (1 - HOP_SHARE), self.deadline)
        first = deployment.timeouts.first_token_s or (policy.reasoning_first_token_s if deployment.reasoning else policy.first_token_s)
        share = max(self._hop_ends - now, 0.0)
        if share <= 0.0:
            share = (self.deadline - now) * (HOP_SHARE if self._may_switch() else 1.0)
        return Limits(
            connect_s=min(policy.connect_s, share),
            first_token_s=min(first, share),
            silent_s=share,
            between_tokens_s=policy.between_tokens_s,
            ends_at=min(self.deadline, now + (deployment.timeouts.total_s or policy.total_s)),
        )

    def _after(self, deployment: Deployment, failure: Failure) -> Notice:
        """Decides by the failure's class. Answers what is tried next, raises when nothing may be."""
        self.failures += [(deployment, failure), *self._beside]
        self._beside.clear()
        if time.monotonic() >= self.deadline:
            self._give_up()
        move = MOVES[failure.failure_class]
        if move is Move.OTHER_MODEL:
            typed = [g for g in self._registry.typed(self.group, failure.failure_class) if g.name not in self._visited]
            self._left.extendleft(reversed(typed))
            move = Move.OTHER_MODEL if typed or self.fallbacks else Move.STOP
        elif move is Move.STOP and self.fallbacks:
            # What the fallback cannot accept was no fault against the model that was asked for: that target is skipped.
            move = Move.OTHER_MODEL
        if failure.failure_class is FailureClass.UNFIT and not self.fallbacks and not self._real:
            # The model that was asked for cannot do it at all: another one in its place would be a surprise.
            move = Move.STOP
        if move is Move.STOP or self.attempts >= self._policy.max_attempts:
            self._stop()
        if move is not Move.RETRY:
            self._spent.add(deployment.id)
        if move is not Move.OTHER_MODEL:
            wait_s = self._wait_s(failure)
            if wait_s is not None:
                self._retried += 1
                self.retries += 1
                self._observer.retrying(deployment, failure, wait_s, self._retried)
                self._wait_until = time.monotonic() + wait_s if wait_s else 0.0
                return _retry_notice(self.group, failure, wait_s, self._retried)
        return self._switch(failure)

    def _wait_s(self, failure: Failure) -> float | None:
        """Seconds until the same model may be asked again, None when it may not."""
        left = [d for d in self.group.deployments if d.id not in self._spent]
        if not left or self._retried >= self._registry.retries_by_class.get(failure.failure_class, self._most_retries):
            return None
        if any(d.id not in self._asked for d in left):
            return 0.0
        if failure.failure_class is FailureClass.UNFIT:
            # The deployment is left out; the others wait for what they said themselves.
            failure = next((said for d, said in reversed(self.failures) if d in left), failure)
        policy = self._policy
        if failure.retry_after_s is not None:
            if failure.retry_after_s > policy.retry_cap_s:
                return None
            wait_s = failure.retry_after_s
        else:
            # Full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter".
            wait_s = self._chance.uniform(0, min(policy.retry_cap_s, policy.retry_base_s * 2**self._retried))
        return wait_s if time.monotonic() + wait_s < (self._hop_ends if self._may_switch() else self.deadline) else None

    def _switch(self, failure: Failure) -> Notice:
        target = self._next()
        if target is None:
            self._stop()
        start = self.group
        self._observer.switching(start, target, failure)
        self.fallbacks += 1
        self._visited.add(target.name)
        self._enter(target)
        attributes = (
            ("from_index", start.index),
            ("to_index", target.index),
            ("to_model", target.name),
            ("class", failure.failure_class.value),
        )
        message = f"The model {start.name} does not answer; {target.name} is asked instead."
        return Notice("model_fallback", message, fallback=target.name, attributes=attributes)

    def _next(self) -> Group | None:
        most = self._registry.max_fallbacks
        if most is not None and self.fallbacks >= most:
            return None
        while self._left:
            target = self._left.popleft()
            if target.name not in self._visited:
                return target
        return None

    def _stop(self) -> NoReturn:
        self._observer.exhausted(self.failures)
        raise self.error()

    @property
    def _real(self) -> list[tuple[Deployment, Failure]]:
        return [(d, failure) for d, failure in self.failures if failure.failure_class not in NOBODY_ASKED]

    def error(self) -> BulkheadError:
        """What the caller is told: how the stream broke, or the first failure, that of the model which was asked for."""
        if self._primary is not None:
            return error_of(self._primary, self._start.name)
        deployment, first = (self._real or self.failures)[0]
        if first.failure_class is FailureClass.MODEL_GONE and deployment.pattern:
            # No model that we promise: the caller chose its name.
            return NotFound("no such model", reason="MODEL_NOT_FOUND", metadata={"model": deployment.group[:128]})
        return error_of(first, self._start.name)

    def _give_up(self) -> NoReturn:
        self._observer.exhausted(self.failures)
        raise _out_of_time(self.failures[-1][1] if self.failures else None)


async def _keep(_: object) -> None:
    """The success of a whole call has been charged and needs no end."""


def _out_of_time(last: Failure | None) -> DeadlineExceeded:
    found = last.failure_class if last else FailureClass.TIMEOUT_TOTAL
    return DeadlineExceeded("the model did not answer in time", reason="MODEL_TIMEOUT", metadata={"failure_class": found.value})


def _retry_notice(group: Group, failure: Failure, wait_s: float, retry: int) -> Notice:
    attributes = (("class", failure.failure_class.value), ("wait_ms", round(wait_s * 1000)), ("retry", retry), ("model", group.name))
    return Notice("model_retry", f"The model {group.name} failed and is asked again.", attributes=attributes)
