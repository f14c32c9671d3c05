"""Circuits of one process and their agreement with those of the other replicas, through Valkey."""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio as redis
import structlog
from opentelemetry.metrics import get_meter
from redis.exceptions import RedisError

from services.common.breaker._circuit import SLICES, BreakerPolicy, Circuit
from services.common.tasks import end
from services.common.valkey import Library

# A store that refuses (no memory, read-only, a script that hangs) is as little help as one that is away.
STORE_TROUBLE = (RedisError, OSError)
log = structlog.get_logger("bulkhead.breaker")
_meter = get_meter("bulkhead.breaker")
_transitions = _meter.create_counter("bulkhead_breaker_transitions_total", description="Circuits that this process saw open or close.")
_open_now = _meter.create_up_down_counter("bulkhead_breaker_open", description="Circuits that are open, as this process sees them.")


@dataclass(frozen=True, slots=True)
class Sync:
    """How the replicas keep in touch. `store_timeout_s` bounds each exchange: a slow store counts as none.

    Successes are told, openings and probes of others asked for, every `every_s` seconds, for circuits used in the last `idle_s`.
    At most `most_pending` failures wait to be told; `hold_s` is how long one caller may think about a probe before the next may.
    """

    store_timeout_s: float = 0.05
    every_s: float = 1.0
    idle_s: float = 60.0
    most_pending: int = 10_000
    hold_s: float = 1.0


@dataclass(frozen=True, slots=True)
class Probe:
    """Leave to try an open circuit. An empty token: it has closed meanwhile, and this is a call like any other."""

    name: str
    token: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """A circuit as this process sees it: closed, open or half_open, seconds until a probe, share of failures in the window."""

    state: str
    retry_in_s: float
    failure_rate: float


@dataclass(frozen=True, slots=True)
class _Told:
    step: str
    name: str
    successes: int = 0
    retry_after_s: float = 0.0
    token: str = ""
    probes: int = 0


class Breakers:
    """Circuits by name.

    `key` makes the store's key of a name, `label` its name in metrics; `channel` is where openings are published. The client should
    be one of its own with short timeouts. Without a client, or while the store is slow or away, each process decides by what it has
    seen itself; no method but `probe` waits for anything, and that one never longer than the store's time limit.
    """

    def __init__(
        self,
        client: redis.Redis | None,
        *,
        key: Callable[[str], str],
        channel: str,
        policy: BreakerPolicy = BreakerPolicy(),
        sync: Sync = Sync(),
        label: Callable[[str], str] = str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = policy
        self._label = label
        self._client = client
        self._library = None if client is None else Library(client, Path(__file__).with_name("breaker.lua"))
        self._key = key
        self._channel = channel
        self._sync = sync
        self._clock = clock
        self._circuits: dict[str, Circuit] = {}
        self._tripped: dict[str, Circuit] = {}
        self._successes: dict[str, int] = {}
        self._probes: dict[str, str] = {}
        self._pending: list[_Told] = []
        self._telling: asyncio.Task | None = None
        self._tasks: list[asyncio.Task] = []
        # Whether the store did not answer last time: what happens now is decided here.
        self._alone = client is None

    async def start(self) -> None:
        """Begins to listen to the other replicas."""
        self._tasks = [asyncio.create_task(self._keep_in_touch(), name="breaker-sync")]
        if self._client is not None:
            self._tasks.append(asyncio.create_task(self._listen(self._client), name="breaker-listen"))

    async def stop(self) -> None:
        """Ends the background work; a probe that is under way is given up by its lease."""
        await end([*self._tasks, self._telling])
        self._tasks = []

    @property
    def tripped(self) -> dict[str, Circuit]:
        """The circuits that are not closed; to be read only. Empty on a good day."""
        return self._tripped

    def is_open(self, name: str) -> bool:
        """Whether calls must not be made, but for a probe."""
        return name in self._tripped

    def due(self, name: str) -> bool:
        """Whether `probe` may have success now. False for a closed circuit."""
        circuit = self._tripped.get(name)
        return circuit is not None and circuit.due(self._clock())

    def hold(self, name: str) -> None:
        """Keeps other callers of this process from the probe that the caller is about to ask for."""
        circuit = self._tripped.get(name)
        if circuit is not None:
            circuit.held_until = self._clock() + self._sync.hold_s

    def retry_after_s(self, name: str) -> float:
        """Seconds until a probe may be made; 0 for a closed circuit."""
        circuit = self._tripped.get(name)
        return 0.0 if circuit is None else circuit.wait_s(self._clock())

    def health(self, name: str) -> Health:
        """What this process knows of a circuit."""
        now, circuit = self._clock(), self._circuits.get(name)
        if circuit is None:
            return Health("closed", 0.0, 0.0)
        if name not in self._tripped:
            return Health("closed", 0.0, circuit.failure_rate(now, self.policy, self._successes.get(name, 0)))
        return Health("half_open" if circuit.open_until <= now else "open", circuit.wait_s(now), 1.0)

    def watch(self, names: list[str]) -> None:
        """Asks for these at the next exchange, so that a replica that has just begun knows what is open before it is hurt."""
        for name in names:
            self._circuit(name).touched = self._clock()

    def succeeded(self, name: str) -> None:
        """A call ended well."""
        successes = self._successes
        successes[name] = successes.get(name, 0) + 1

    def failed(self, name: str, retry_after_s: float | None = None) -> None:
        """A call failed by a fault of the other side."""
        now, circuit = self._clock(), self._circuit(name)
        told = self._fold(name, circuit, now)
        wait_s = self.policy.retry_after(retry_after_s)
        circuit.touched = now
        circuit.failed(now, self.policy, wait_s)
        self._tell(_Told("failure", name, told, wait_s))

    async def probe(self, name: str) -> Probe | None:
        """Leave to try; None while somebody else is trying, or when it is too early. Ends by `settle`, exactly once."""
        circuit = self._tripped.get(name)
        if circuit is None:
            return Probe(name)
        token = secrets.token_hex(8)
        granted = False
        if not self._alone:
            try:
                granted = await self._asked(_Told("take", name, token=token))
            except STORE_TROUBLE as error:
                self._lost(error)
        if self._alone:
            granted = circuit.take_probe(token, self._clock(), self.policy)
        if granted:
            circuit.token = token
            circuit.lease_until = self._clock() + self.policy.probe_lease_s
            self._probes[name] = token
            return Probe(name, token)
        return None if name in self._tripped else Probe(name)

    def settle(self, probe: Probe, *, failed: bool | None, retry_after_s: float | None = None) -> None:
        """What the probe found out; None when it found out nothing, as when its caller went away."""
        name, now = probe.name, self._clock()
        if not probe.token:
            if failed is not None:
                self.failed(name, retry_after_s) if failed else self.succeeded(name)
            return
        if self._probes.get(name) == probe.token:
            del self._probes[name]
        circuit, wait_s = self._circuit(name), self.policy.retry_after(retry_after_s)
        circuit.end_probe(probe.token, now, self.policy, failed=failed, retry_after_s=wait_s)
        if not circuit.open:
            self._close(name)
        step = "release" if failed is None else "probe_failed" if failed else "probe_succeeded"
        self._tell(_Told(step, name, retry_after_s=wait_s, token=probe.token))

    def _circuit(self, name: str) -> Circuit:
        circuit = self._circuits.get(name)
        if circuit is None:
            circuit = self._circuits[name] = Circuit()
        return circuit

    def _fold(self, name: str, circuit: Circuit, now: float) -> int:
        """Hands the successes since the last time to the circuit; answers how many there were."""
        count = self._successes.pop(name, 0)
        if count:
            circuit.touched = now
            circuit.succeeded(count, now, self.policy)
        return count

    def _open(self, name: str, circuit: Circuit) -> None:
        if name not in self._tripped:
            self._tripped[name] = circuit
            _transitions.add(1, {"state": "open"})
            _open_now.add(1, {"name": self._label(name)})
            log.warning("breaker_opened", name=name, retry_in_s=round(circuit.wait_s(self._clock()), 3), alone=self._alone)

    def _close(self, name: str) -> None:
        if self._tripped.pop(name, None) is not None:
            _transitions.add(1, {"state": "closed"})
            _open_now.add(-1, {"name": self._label(name)})
            log.info("breaker_closed", name=name)

    def _tell(self, told: _Told) -> None:
        if self._alone:
            self._decide(told.name)
            return
        self._pending.append(told)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell_all(), name="breaker-tell")

    async def _tell_all(self) -> None:
        while self._pending:
            batch, self._pending = self._pending[-self._sync.most_pending :], []
            try:
                await self._exchange(batch)
            except STORE_TROUBLE as error:
                self._lost(error)
                for told in batch:
                    self._decide(told.name)

    def _decide(self, name: str) -> None:
        """Goes by what this process knows itself."""
        circuit = self._circuit(name)
        if circuit.open:
            self._open(name, circuit)

    def _lost(self, error: Exception) -> None:
        if not self._alone:
            log.warning("breaker_store_away", error=type(error).__name__, until="it answers, each process decides alone")
        self._alone = True

    async def _asked(self, told: _Told) -> bool:
        async with asyncio.timeout(self._sync.store_timeout_s):
            answer = await self._call(told)
        return self._heard(told.name, *answer[:4]) or bool(answer[4])

    async def _exchange(self, batch: list[_Told]) -> None:
        async with asyncio.timeout(self._sync.store_timeout_s):
            answers = await asyncio.gather(*(self._call(told) for told in batch))
        for told, answer in zip(batch, answers, strict=True):
            self._heard(told.name, *answer[:4])

    async def _call(self, told: _Told) -> Any:
        assert self._library is not None
        policy = self.policy
        args = (
            told.step, told.successes, _ms(told.retry_after_s), told.token, _ms(policy.probe_lease_s), told.probes,
            policy.failures_in_row, policy.failure_rate, policy.least_calls, max(_ms(policy.window_s / SLICES), 1),
            _ms(policy.first_open_s), _ms(policy.longest_open_s), _ms(policy.kept_s), self._channel, told.name,
        )  # fmt: skip
        return await self._library.batched("breaker_step_v1", [self._key(told.name)], args)

    def _heard(self, name: str, is_open: int, open_ms: int, lease_ms: int, probes: int) -> bool:
        """The fleet's word on a circuit, which holds against this process's own. Always False."""
        circuit, now = self._circuit(name), self._clock()
        if is_open:
            circuit.force(now + open_ms / 1000, probes, now + lease_ms / 1000)
            self._open(name, circuit)
        else:
            if circuit.open:
                circuit.close()
            self._close(name)
        return False

    async def _keep_in_touch(self) -> None:
        while True:
            await asyncio.sleep(self._sync.every_s)
            now = self._clock()
            told = [self._due(name, now) for name in {*self._successes, *self._circuits}]
            told += [_Told("renew", name, token=token) for name, token in self._probes.items()]
            if self._library is None:
                continue
            try:
                await self._exchange(told or [_Told("poll", "")])
            except STORE_TROUBLE as error:
                self._lost(error)
            else:
                if self._alone:
                    log.info("breaker_store_back")
                self._alone = False
            idle = now - self._sync.idle_s
            for name in [n for n, c in self._circuits.items() if c.touched < idle and n not in self._tripped]:
                del self._circuits[name]

    def _due(self, name: str, now: float) -> _Told:
        circuit = self._circuit(name)
        count = self._fold(name, circuit, now)
        if self._alone and name in self._tripped:
            # What was decided without the store, the others should hear of.
            return _Told("trip", name, retry_after_s=max(circuit.open_until - now, 0.001), probes=circuit.failed_probes)
        return _Told("poll", name, count)

    async def _listen(self, client: redis.Redis) -> None:
        while True:
            try:
                async with client.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    while True:
                        message = await subscription.get_message(ignore_subscribe_messages=True, timeout=1.0)
                        if message:
                            is_open, open_ms, probes, name = message["data"].decode().split(" ", 3)
                            self._heard(name, int(is_open), int(open_ms), 0, int(probes))
            except STORE_TROUBLE:
                await asyncio.sleep(self._sync.every_s)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
