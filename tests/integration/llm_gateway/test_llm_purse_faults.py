"""The purse when its store is slow, stopped, killed, full or emptied of functions, and when its callers go away."""

import asyncio
import signal
import time
from dataclasses import replace

import pytest
import pytest_asyncio

from services.common import testing
from services.common.accounts import LimitSet, PrincipalLimits
from services.common.errors import Overloaded
from services.common.identity import Principal
from services.common.valkey import connect
from services.llm_gateway.accounting import Plans
from services.llm_gateway.adapters.ledger import Ledger, Subjects
from services.llm_gateway.adapters.purse import TENANTS, ValkeyPurse
from services.llm_gateway.adapters.store_breaker import StoreBreaker
from services.llm_gateway.fakes import FixedLimits
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import Ask

ANA = Principal("acme", "ana", "key_1", "", ("*",), "pro")
LIMITS = PrincipalLimits(key=LimitSet(max_budget_microusd=1_000_000, max_parallel=100))
# Long enough for a loaded machine, far below what a test would wait for a store that never answers.
TIMEOUT_S = 0.5


def ask(**changes) -> Ask:
    return replace(Ask("call", 1, ANA, "gpt", "d1", "openai", "chat", 100, 1_000_000, 60.0), **changes)


def purse_on(client, timeout_s: float = TIMEOUT_S, **more) -> ValkeyPurse:
    return ValkeyPurse(client, Plans(FixedLimits(LIMITS), lambda _: None, Subjects(client)), timeout_s=timeout_s, **more)


@pytest.fixture(scope="module")
def own_server():
    """A Valkey that may be stopped."""
    with testing.valkey_server("state") as found:
        yield found


@pytest_asyncio.fixture
async def stoppable(own_server):
    """Its process and a client of it, emptied."""
    url, process = own_server
    client = connect(url, timeout_s=1.0)
    await client.flushall()
    yield process, client
    process.signal(signal.SIGCONT)
    await client.aclose()


async def spent_and_held(purse: ValkeyPurse) -> tuple[int, int]:
    (budget,) = (await purse.budgets(ANA)).budgets
    return budget.spent_nanousd, budget.reserved_nanousd


async def settled_down(purse: ValkeyPurse, expected: tuple[int, int]) -> None:
    async def as_expected():
        try:
            return await spent_and_held(purse) == expected
        except Overloaded:
            return False

    await testing.eventually_async(as_expected, f"spent and held are {expected}")


@pytest.mark.parametrize("sent_again", [False, True])
async def test_a_stopped_store_refuses_calls_in_time_and_loses_no_settlement(stoppable, sent_again):
    process, client = stoppable
    purse = purse_on(client)
    ticket, other = await purse.reserve(ask()), await purse.reserve(ask())
    process.signal(signal.SIGSTOP)
    began = time.monotonic()
    refused = await asyncio.gather(*(purse.reserve(ask()) for _ in range(20)), return_exceptions=True)
    assert time.monotonic() - began < 10 * TIMEOUT_S
    assert all(isinstance(error, Overloaded) and error.reason == "STORE_UNAVAILABLE" and error.retry_after_s for error in refused)
    # The breaker spares the next callers the wait.
    began = time.monotonic()
    with pytest.raises(Overloaded):
        await purse.reserve(ask())
    assert time.monotonic() - began < TIMEOUT_S / 2
    purse.settle(ticket, Usage(input=7, cost_picousd=5 * 10**8), status="ok", latency_s=0.1)
    purse.release(other)
    assert await purse.drain(0.2) > 0
    if sent_again:
        # The connection was given up; what it carried lies before the store all the same, and comes a second time.
        await testing.eventually_async(lambda: purse._outbox._waiting, "the settlement waits to be sent again")
    process.signal(signal.SIGCONT)
    assert await purse.drain(20.0) == 0
    # What the stopped store had swallowed was given up again, and the settlement was booked once.
    await settled_down(purse, (500_000, 0))
    assert [line["cost_nanousd"] for line in (await Ledger(client).lines("acme")).lines] == [500_000]

    async def open_again():
        try:
            purse.release(await purse.reserve(ask()))
        except Overloaded:
            return False
        return True

    await testing.eventually_async(open_again, "calls are taken again")
    assert await purse.drain(5.0) == 0
    await purse.stop()


async def test_a_killed_store_that_comes_back_gets_its_settlements(tmp_path):
    port = testing.free_port()
    with testing.valkey_server("state", port, tmp_path) as (url, process):
        client = connect(url, timeout_s=1.0)
        purse = purse_on(client)
        tickets = [await purse.reserve(ask()) for _ in range(20)]
        process.kill()
        for ticket in tickets:
            purse.settle(ticket, Usage(input=7, cost_picousd=10**8), status="ok", latency_s=0.1)
        with pytest.raises(Overloaded):
            await purse.reserve(ask())
    with testing.valkey_server("state", port, tmp_path):
        assert await purse.drain(30.0) == 0
        await settled_down(purse, (2_000_000, 0))
        assert len((await Ledger(client).lines("acme")).lines) == 20
        await purse.stop()
        await client.aclose()


async def test_a_caller_that_leaves_during_its_reserve_leaves_nothing_behind(valkey):
    purse = purse_on(valkey, 5.0)
    kept = await purse.reserve(ask())
    for turns in range(12):
        task = asyncio.create_task(purse.reserve(ask()))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        found = (await asyncio.gather(task, return_exceptions=True))[0]
        if not isinstance(found, BaseException):
            purse.release(found)
    assert await purse.drain(5.0) == 0
    assert await spent_and_held(purse) == (0, 1_000_000)
    purse.release(kept)
    assert await purse.drain(5.0) == 0
    assert (await spent_and_held(purse)) == (0, 0)
    await purse.stop()


async def test_a_reserve_that_arrives_after_it_was_given_up_takes_nothing(valkey):
    purse = purse_on(valkey, 5.0)
    await purse.reserve(ask())
    library, keys = purse._library, ["llm:{acme}:open", "llm:{acme}:key:key_1"]
    assert await library.call("purse_void_v1", keys, ["late", b"\x00", 0, 10]) == 1
    args = ["late", 1_000_000, 100, 1, 60_000, b"\x00", b"[]\n{}", 0]
    assert await library.call("purse_reserve_v1", [keys[0], "llm:{acme}:alerts", keys[1]], args) == 0
    assert await spent_and_held(purse) == (0, 1_000_000)

    async def tidied():
        assert await purse.sweep() == 0
        return not await valkey.hexists("llm:{acme}:open", "late")

    await testing.eventually_async(tidied, "the mark of the call is gone")
    assert await spent_and_held(purse) == (0, 1_000_000)
    await purse.stop()


async def test_any_replica_books_what_a_crashed_one_left_and_each_only_once(valkey):
    crashed = purse_on(valkey, 5.0)
    for tenant in ("acme", "globex"):
        for _ in range(5):
            await crashed.reserve(ask(principal=replace(ANA, tenant=tenant), expires_s=0.01, run_id="r", run_budget_microusd=10_000))
    assert await valkey.zcard(TENANTS) == 2
    replicas = [purse_on(valkey, 5.0, sweep_every_s=0.02) for _ in range(3)]
    for replica in replicas:
        await replica.start()
    await settled_down(replicas[0], (5_000_000, 0))

    async def all_booked():
        return [len((await Ledger(valkey).lines(t)).lines) for t in ("acme", "globex")] == [5, 5]

    await testing.eventually_async(all_booked, "every reservation has its line")
    for replica in replicas:
        await replica.sweep()
        await replica.stop()
    assert await all_booked()
    (run,) = [b for b in (await replicas[0].budgets(ANA, run_id="r")).budgets if b.scope == "run"]
    assert (run.limit_nanousd, run.spent_nanousd, run.reserved_nanousd) == (10_000_000, 5_000_000, 0)
    assert await valkey.pttl("llm:{acme}:run:r") > 0


async def test_a_tenant_that_is_quiet_is_forgotten_and_found_again(valkey):
    purse = purse_on(valkey, 5.0)
    ticket = await purse.reserve(ask())
    await valkey.zadd(TENANTS, {"acme": 1})
    await purse.sweep()
    assert await valkey.zscore(TENANTS, "acme") == 1
    purse.release(ticket)
    await purse.drain(5.0)
    await purse.sweep()
    assert await valkey.zscore(TENANTS, "acme") is None
    other = purse_on(valkey, 5.0)
    await other.reserve(ask())
    assert await valkey.zscore(TENANTS, "acme") > 1
    await purse.stop()
    await other.stop()


async def test_a_full_store_takes_no_new_call_and_every_settlement(valkey):
    purse = purse_on(valkey, 5.0)
    ticket = await purse.reserve(ask())
    await valkey.config_set("maxmemory", "1mb")
    try:
        with pytest.raises(Overloaded):
            await purse.reserve(ask())
        purse.settle(ticket, Usage(cost_picousd=10**8), status="ok", latency_s=0.1)
        assert await purse.drain(5.0) == 0
    finally:
        await valkey.config_set("maxmemory", "0")
    await settled_down(purse, (100_000, 0))
    await purse.stop()


async def test_a_full_store_takes_the_calls_of_runs_from_their_beginning_to_their_line_in_the_ledger(valkey):
    # Neither the tenant nor the user has been seen; the functions are there, as since the gateway was called first.
    purse, of_run = purse_on(valkey, 5.0), replace(ANA, user="bob", run_id="r")
    await purse._library.load()
    limited = {"run_id": "r", "run_budget_microusd": 10_000}
    await valkey.config_set("maxmemory", "1mb")
    try:
        ticket, freed = await purse.reserve(ask(principal=of_run, **limited)), await purse.reserve(ask(principal=of_run, **limited))
        # A run's id alone, which any caller may give, opens nothing.
        with pytest.raises(Overloaded):
            await purse.reserve(ask(**limited))
        purse.settle(ticket, Usage(cost_picousd=10**8), status="ok", latency_s=0.1)
        purse.release(freed)
        assert await purse.drain(5.0) == 0
        await purse.reserve(ask(principal=of_run, expires_s=0.0))
        assert await purse.sweep() == 1
        await settled_down(purse, (1_100_000, 0))
        assert [line["status"] for line in (await Ledger(valkey).lines("acme")).lines] == ["ok", "lost"]
    finally:
        await valkey.config_set("maxmemory", "0")
    await purse.stop()


async def test_a_store_that_lost_its_functions_gets_them_again(valkey):
    purse = purse_on(valkey, 5.0)
    ticket = await purse.reserve(ask())
    await valkey.function_flush()
    purse.settle(ticket, Usage(cost_picousd=10**8), status="ok", latency_s=0.1)
    assert await purse.drain(5.0) == 0
    await settled_down(purse, (100_000, 0))
    await purse.stop()


async def test_whatever_is_sent_twice_happens_once(valkey):
    purse = purse_on(valkey, 5.0)
    put = purse._outbox.put
    purse._outbox.put = lambda sending: (put(sending), put(sending))
    ended, freed, given_up = await purse.reserve(ask()), await purse.reserve(ask()), asyncio.create_task(purse.reserve(ask()))
    await asyncio.sleep(0)
    given_up.cancel()
    late = await purse.reserve(ask(expires_s=0.0))
    assert await purse.sweep() == 1
    purse.settle(ended, Usage(cost_picousd=10**8), status="ok", latency_s=0.1)
    purse.release(freed)
    purse.settle(late, Usage(cost_picousd=2 * 10**8), status="ok", latency_s=0.1)
    assert await purse.drain(5.0) == 0
    await settled_down(purse, (300_000, 0))
    lines = (await Ledger(valkey).lines("acme")).lines
    assert [line["cost_nanousd"] for line in lines] == [1_000_000, 100_000, -800_000]
    assert [limit.remaining for limit in (await purse.budgets(ANA)).limits] == [100]
    await purse.stop()


async def test_what_waits_for_the_store_is_bounded(stoppable):
    process, client = stoppable
    purse = purse_on(client, backlog=10)
    tickets = [await purse.reserve(ask(cost_nanousd=1)) for _ in range(30)]
    process.signal(signal.SIGSTOP)
    for ticket in tickets:
        purse.settle(ticket, Usage(), status="ok", latency_s=0.1)
        await asyncio.sleep(0)

    async def bounded():
        return len(purse._outbox._waiting) == 10 and purse._outbox._under_way <= 1

    await testing.eventually_async(bounded, "what is too much was given up")
    process.signal(signal.SIGCONT)
    assert await purse.drain(20.0) == 0
    await purse.stop()


def test_the_breaker_lets_one_probe_through_after_its_pause():
    breaker = StoreBreaker("test", after=2, pause_s=0.02)
    breaker.failed()
    assert breaker.admit()
    breaker.failed()
    assert not breaker.admit()
    assert testing.eventually(breaker.admit, "the pause ended", every_s=0.001)
    assert not breaker.admit()
    breaker.succeeded()
    assert breaker.admit()
    assert breaker.admit()


async def test_what_was_told_of_a_run_ends_with_the_run(valkey):
    told: list = []
    purse = purse_on(valkey, 5.0, on_threshold=told.append)
    ticket = await purse.reserve(ask(run_id="r", run_budget_microusd=1_000))
    purse.settle(ticket, Usage(cost_picousd=9 * 10**8), status="ok", latency_s=0.1)
    assert await purse.drain(5.0) == 0
    assert [(threshold.scope, threshold.scope_id, threshold.percent) for threshold in told] == [("run", "r", 80)]
    assert await valkey.exists("llm:{acme}:alerts") == 0
    assert await valkey.pttl("llm:{acme}:run:r:told") > 0
    await purse.stop()


async def test_answers_of_one_batch_go_each_to_its_own_caller(valkey):
    library = purse_on(valkey, 5.0)._library
    await library.batched("purse_announce_v1", [TENANTS, "llm:{purse}:ledgers"], ["acme"])
    calls = []
    for number in range(50):
        calls.append(library.batched("purse_void_v1", ["llm:{acme}:open"], [f"{number}" * 1_000, b"\x00", 0, 1000 if number % 3 else "x"]))
        calls.append(library.batched("purse_look_v1", [f"llm:{{acme}}:key:{number}"] * (number + 1), [b"\x00" * (number + 1)]))
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(one).__name__ if number % 3 == 0 else one for number, one in enumerate(found[::2])] == [
        "ResponseError" if number % 3 == 0 else 1 for number in range(50)
    ]
    assert [len(one) for one in found[1::2]] == [number + 2 for number in range(50)]


# The clock stands still within a script, so that only counting takes time.
BUSY = "local n = 0 for i = 1, tonumber(ARGV[1]) do n = n + i % 7 end return 1"


async def test_a_slow_store_refuses_calls_and_what_it_did_late_is_taken_back(valkey, state_url):
    purse = purse_on(valkey, 0.1)
    purse.release(await purse.reserve(ask()))
    other = connect(state_url, timeout_s=30.0)
    await other.ping()
    busy = asyncio.create_task(other.eval(BUSY, 0, 100_000_000))
    await asyncio.sleep(0.02)
    with pytest.raises(Overloaded) as refused:
        await purse.reserve(ask())
    assert not busy.done()
    assert (refused.value.reason, refused.value.metadata["store"]) == ("STORE_UNAVAILABLE", "state")
    await busy
    assert await purse.drain(10.0) == 0
    await settled_down(purse, (0, 0))
    assert (await Ledger(valkey).lines("acme")).lines == []
    await purse.stop()
    await other.aclose()
