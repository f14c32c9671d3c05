"""The shared breaker: the pure circuit, the circuit in the store beside it, and replicas that agree."""

import asyncio
import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import testing
from services.common.breaker import BreakerPolicy, Breakers, Circuit, Sync
from services.common.valkey import connect

KEY = "test:{{b:{}}}:breaker".format
# Long enough that the real clock stands still beside it while an example runs.
SLOW = BreakerPolicy(
    failures_in_row=3, failure_rate=0.5, least_calls=6, window_s=12_000, first_open_s=5_000, longest_open_s=20_000,
    longest_retry_after_s=50_000, probe_lease_s=10_000, kept_s=10**6,
)  # fmt: skip
QUICK = BreakerPolicy(failures_in_row=3, first_open_s=0.2, longest_open_s=0.8, probe_lease_s=0.6)
OFTEN = Sync(every_s=0.05, store_timeout_s=0.5)


def test_the_defaults_are_those_that_are_documented():
    policy, sync = BreakerPolicy(), Sync()
    assert (policy.failures_in_row, policy.failure_rate, policy.least_calls, policy.window_s) == (5, 0.5, 20, 60.0)
    assert (policy.first_open_s, policy.longest_open_s, policy.longest_retry_after_s) == (5.0, 60.0, 3600.0)
    assert (policy.probe_lease_s, policy.kept_s) == (10.0, 3600.0)
    assert (sync.store_timeout_s, sync.every_s, sync.idle_s, sync.most_pending, sync.hold_s) == (0.05, 1.0, 60.0, 10_000, 1.0)


def test_a_circuit_opens_after_failures_in_a_row_and_waits_twice_as_long_after_each_failed_probe():
    circuit, policy, now, waits = Circuit(), BreakerPolicy(), 100.0, []
    for _ in range(4):
        circuit.failed(now, policy)
    circuit.succeeded(1, now, policy)
    for _ in range(4):
        circuit.failed(now, policy)
    assert not circuit.open
    circuit.failed(now, policy)
    for number in range(6):
        waits.append(circuit.wait_s(now))
        assert not circuit.take_probe(f"p{number}", now + waits[-1] - 0.001, policy)
        now += waits[-1]
        assert circuit.take_probe(f"p{number}", now, policy)
        assert not circuit.take_probe("another", now, policy)
        circuit.end_probe(f"p{number}", now, policy, failed=True)
    assert waits == [5, 10, 20, 40, 60, 60]


def test_a_circuit_opens_by_its_rate_once_there_are_enough_calls_and_forgets_what_is_older_than_the_window():
    policy = BreakerPolicy()

    def mixed(calls: int, gap_s: float) -> Circuit:
        circuit, now = Circuit(), 1000.0
        for _ in range(calls // 2):
            circuit.succeeded(1, now, policy)
            circuit.failed(now, policy)
            now += 2 * gap_s
        return circuit

    assert not mixed(18, 0.1).open
    assert mixed(20, 0.1).open
    assert not mixed(200, 10.0).open


def test_a_retry_after_sets_the_open_time_and_the_furthest_of_the_row_wins():
    circuit, policy = Circuit(), BreakerPolicy(failures_in_row=3)
    circuit.failed(0.0, policy, policy.retry_after(90))
    circuit.failed(0.0, policy, policy.retry_after(2))
    circuit.failed(0.0, policy)
    assert circuit.wait_s(0.0) == 90
    assert policy.retry_after(10**9) == 3600
    assert policy.retry_after(-1) == policy.retry_after(None) == 0


class Reference:
    """What a reader of the documentation expects, kept as a plain list of what happened. Times in whole slices of the window."""

    def __init__(self):
        self.events, self.row, self.after, self.open, self.until, self.probes, self.probe = [], 0, 0, False, 0, 0, None

    def trip(self, until, probes):
        self.events, self.row, self.after, self.open, self.until, self.probes, self.probe = [], 0, 0, True, until, probes, None

    def ok(self, now):
        if not self.open:
            self.events.append((now, True))
            self.row = self.after = 0

    def fail(self, now, retry):
        if self.open:
            self.until = max(self.until, now + retry if retry else 0)
            return
        self.events.append((now, False))
        self.row += 1
        self.after = max(self.after, now + retry if retry else 0)
        recent = [good for at, good in self.events if at > now - 12]
        if self.row >= 3 or (len(recent) >= 6 and recent.count(False) * 2 >= len(recent)):
            self.trip(self.after if self.after > now else now + 5, 0)

    def take(self, now, token):
        free = self.open and now >= self.until and (self.probe is None or self.probe[1] <= now)
        if free:
            self.probe = (token, now + 10)
        return free

    def end(self, now, token, failed, retry):
        if not self.open or self.probe is None or self.probe[0] != token:
            return
        if failed is None:
            self.probe = None
        elif failed:
            self.trip(now + (retry or min(20, 5 * 2 ** (self.probes + 1))), self.probes + 1)
        else:
            self.__init__()


events = st.lists(
    st.one_of(
        st.tuples(st.just("ok"), st.integers(1, 4)),
        st.tuples(st.just("fail"), st.sampled_from([0, 0, 0, 3, 30])),
        st.tuples(st.just("pass"), st.sampled_from([1, 5, 10, 12, 30])),
        st.tuples(st.just("take"), st.sampled_from(["x", "y"])),
        st.tuples(
            st.just("end"),
            st.tuples(st.sampled_from(["x", "y"]), st.sampled_from([None, True, True, False]), st.sampled_from([0, 0, 7])),
        ),
    ),
    max_size=40,
)  # fmt: skip


def drive(reference: Reference, circuit: Circuit, now: int, kind: str, value) -> tuple:
    """One event for both; answers what each says of a probe."""
    at = now * 1000.0
    match kind:
        case "ok":
            for _ in range(value):
                reference.ok(now)
            circuit.succeeded(value, at, SLOW)
        case "fail":
            reference.fail(now, value)
            circuit.failed(at, SLOW, value * 1000.0)
        case "take":
            if reference.probe is None or reference.probe[0] != value:
                return reference.take(now, value), circuit.take_probe(value, at, SLOW)
        case "end":
            token, failed, retry = value
            reference.end(now, token, failed, retry)
            circuit.end_probe(token, at, SLOW, failed=failed, retry_after_s=retry * 1000.0)
    return (None, None)


@given(events)
@settings(max_examples=400, deadline=None)
def test_the_circuit_does_what_its_documentation_says(history):
    reference, circuit, now = Reference(), Circuit(), 1000
    for kind, value in history:
        now += value if kind == "pass" else 0
        expected, found = drive(reference, circuit, now, kind, value)
        assert expected == found
        assert (circuit.open, circuit.failed_probes, circuit.row) == (reference.open, reference.probes, reference.row)
        assert circuit.open_until == reference.until * 1000.0


async def age(valkey, key: str, slices: int) -> None:
    """Lets time pass for a stored circuit: moves all of its times back by so many slices of 1,000 s."""
    stored = {name.decode(): value.decode() for name, value in (await valkey.hgetall(key)).items()}
    moved: dict[str, object] = {
        name: int(float(stored[name])) - slices * 1_000_000 for name in ("u", "l", "a") if float(stored.get(name, 0)) > 0
    }
    for name, value in stored.items():
        if name.startswith("s") and name[1:].isdigit():
            await valkey.hdel(key, name)
            number, ok, failed = (int(part) for part in value.split())
            moved[f"s{(number - slices) % 12}"] = f"{number - slices} {ok} {failed}"
    if moved:
        await valkey.hset(key, mapping=moved)


numbers = itertools.count()


@given(history=events)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_the_stored_circuit_does_the_same(valkey, history):
    name = f"n{next(numbers)}"
    breakers = Breakers(valkey, key=KEY, channel="c", policy=SLOW)
    reference, now = Reference(), 1000
    for kind, value in history:
        if kind == "pass":
            now += value
            await age(valkey, KEY(name), value)
            continue
        expected, _ = drive(reference, Circuit(), now, kind, value)
        told = {
            "ok": lambda v: ("poll", v, 0, "", 0),
            "fail": lambda v: ("failure", 0, v * 1_000_000, "", 0),
            "take": lambda v: ("take", 0, 0, v, 0),
            "end": lambda v: ({None: "release", True: "probe_failed", False: "probe_succeeded"}[v[1]], 0, v[2] * 1_000_000, v[0], 0),
        }[kind](value)
        if kind == "take" and expected is None:
            continue
        step, ok, retry, token, probes = told
        args = (step, ok, retry, token, 10_000_000, probes, 3, 0.5, 6, 1_000_000, 5_000_000, 20_000_000, 10**9, "c", name)
        is_open, left_ms, _, failed_probes, granted = await breakers._library.call("breaker_step_v1", [KEY(name)], args)
        assert (bool(is_open), failed_probes) == (reference.open, reference.probes)
        assert left_ms == pytest.approx(max(reference.until - now, 0) * 1_000_000 if reference.open else 0, abs=100_000)
        if expected is not None:
            assert bool(granted) == expected


@pytest.fixture
async def replicas(state_url):
    """Makes started replicas."""
    made = []

    async def make(count: int = 2, policy: BreakerPolicy = QUICK, sync: Sync = OFTEN, url: str = "") -> list[Breakers]:
        for _ in range(count):
            client = connect(url or state_url, timeout_s=sync.store_timeout_s)
            breakers = Breakers(client, key=KEY, channel="breakers", policy=policy, sync=sync)
            await breakers.start()
            made.append((breakers, client))
        return [breakers for breakers, _ in made[-count:]]

    yield make
    for breakers, client in made:
        await breakers.stop()
        await client.aclose()


async def test_failures_of_all_replicas_count_together_and_all_of_them_hear_of_the_opening(replicas):
    one, two, three = await replicas(3)
    three.watch(["d"])
    one.failed("d")
    await asyncio.sleep(0)
    two.failed("d")
    assert not one.is_open("d")
    await asyncio.sleep(0.01)
    one.failed("d", retry_after_s=30)
    await testing.eventually_async(lambda: all(b.is_open("d") for b in (one, two, three)), "open everywhere")
    assert all(25 < b.retry_after_s("d") <= 30 for b in (one, two, three))
    assert three.health("d").state == "open"


async def test_a_success_elsewhere_breaks_the_row(replicas):
    one, two = await replicas()
    for breakers in (one, two):
        breakers.failed("d")
    await asyncio.sleep(0.02)
    two.succeeded("d")
    two.failed("d")
    await asyncio.sleep(0.02)
    one.failed("d")
    await asyncio.sleep(0.1)
    assert not one.is_open("d")
    assert not two.is_open("d")


async def opened(breakers: Breakers, name: str = "d") -> None:
    for _ in range(3):
        breakers.failed(name)
    await testing.eventually_async(lambda: breakers.is_open(name), "open")


async def test_one_replica_probes_and_its_success_lets_all_of_them_through(replicas):
    fleet = await replicas(4)
    await opened(fleet[0])
    await testing.eventually_async(lambda: all(b.due("d") for b in fleet), "time for a probe")
    probes = [p for p in await asyncio.gather(*(b.probe("d") for b in fleet * 3)) if p is not None]
    assert len(probes) == 1
    assert {b.health("d").state for b in fleet} == {"half_open"}
    owner = next(b for b in fleet if b._probes)
    owner.settle(probes[0], failed=False)
    await testing.eventually_async(lambda: not any(b.is_open("d") for b in fleet), "closed everywhere")


async def test_a_probe_that_lasts_keeps_its_lease_and_one_whose_process_died_does_not(replicas):
    owner, other = await replicas()
    await opened(owner)
    await testing.eventually_async(lambda: owner.due("d"), "time for a probe")
    probe = await owner.probe("d")
    await asyncio.sleep(QUICK.probe_lease_s * 1.5)
    assert await other.probe("d") is None
    await owner.stop()  # as good as dead: nobody renews
    second = await testing.eventually_async(lambda: other.probe("d"), "the lease is over")
    assert second.token != probe.token
    owner.settle(probe, failed=False)  # too late to say anything
    await asyncio.sleep(0.05)
    assert other.is_open("d")
    other.settle(second, failed=True)
    await testing.eventually_async(lambda: other.health("d").state == "open", "open again")
    assert other.retry_after_s("d") > QUICK.first_open_s


async def test_a_probe_that_found_out_nothing_makes_way_for_the_next_at_once(replicas):
    one, two = await replicas()
    await opened(one)
    await testing.eventually_async(lambda: one.due("d"), "time for a probe")
    one.settle(await one.probe("d"), failed=None)
    second = await testing.eventually_async(lambda: two.probe("d"), "another probe", timeout_s=QUICK.probe_lease_s / 2)
    assert second.token


@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_without_a_store_each_process_decides_alone_and_nobody_waits(replicas, how, tmp_path):
    with testing.valkey_server("state") as (url, process):
        (one,) = await replicas(1, sync=Sync(every_s=0.05, store_timeout_s=0.05), url=url)
        one.succeeded("d")
        await asyncio.sleep(0.1)
        if how == "stopped":
            process.signal(19)
        else:
            process.kill()
        started = asyncio.get_running_loop().time()
        await opened(one)
        assert asyncio.get_running_loop().time() - started < 1.0
        await testing.eventually_async(lambda: one.due("d"), "time for a probe")
        probe = await one.probe("d")
        assert probe is not None
        assert await one.probe("d") is None
        one.settle(probe, failed=False)
        assert not one.is_open("d")
        await opened(one)
        if how == "stopped":
            process.signal(18)
            return
        # A store that comes back knows nothing; what was decided without it reaches the others through it.
        with testing.valkey_server("state", port=int(url.rpartition(":")[2].partition("/")[0])):
            one._circuits["d"].open_until += 30
            (two,) = await replicas(1, url=url)
            two.watch(["d"])
            await testing.eventually_async(lambda: two.is_open("d"), "heard by the other")
            assert one.is_open("d")


async def test_circuits_that_nobody_uses_are_forgotten(replicas):
    (one,) = await replicas(1, sync=Sync(every_s=0.02, store_timeout_s=0.5, idle_s=0.1))
    for number in range(50):
        one.succeeded(f"n{number}")
    await testing.eventually_async(lambda: len(one._circuits) == 50, "counted")
    await testing.eventually_async(lambda: not one._circuits, "forgotten")
