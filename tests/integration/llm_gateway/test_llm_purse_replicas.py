"""Money on a store with a replica: a reservation counts once the replica has it, and its end is sent until the replica has it."""

from contextlib import aclosing
from dataclasses import replace
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest

from services.common import testing
from services.common.accounts import LimitSet, PrincipalLimits
from services.common.errors import Overloaded
from services.common.identity import Principal
from services.common.valkey import connect
from services.llm_gateway.accounting import Plans
from services.llm_gateway.adapters.ledger import ERASED, Ledger, Subjects
from services.llm_gateway.adapters.ledger_archive import LedgerArchive
from services.llm_gateway.adapters.purse import TENANTS, ValkeyPurse
from services.llm_gateway.fakes import FixedLimits
from services.llm_gateway.money import Usage
from services.llm_gateway.ports import Ask
from services.orchestrator.testing.store_proxy import before_store

ANA = Principal("acme", "ana", "key_1", "", ("*",), "pro")
LIMITS = PrincipalLimits(key=LimitSet(max_budget_microusd=1_000_000, max_parallel=100))
ASK = Ask("call", 1, ANA, "gpt", "d1", "openai", "chat", 100, 1_000_000, 60.0)
COST = Usage(input=7, cost_picousd=5 * 10**8)


@pytest.fixture(autouse=True)
def waits_short(monkeypatch):
    monkeypatch.setattr("services.common.valkey_replicas.REPLICA_WAIT_MS", 100)
    monkeypatch.setattr("services.common.valkey_replicas.REPLICA_SYNC_MS", 200)


def purse_on(client, replicas=1, limits=LIMITS, **options):
    plans = Plans(FixedLimits(limits), lambda _: None, Subjects(client, replicas))
    return ValkeyPurse(client, plans, replicas=replicas, timeout_s=5.0, **options)


def url_of(client):
    return f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}/0"


@pytest.fixture
async def way(pair):
    """What leads to the primary of the moment, as a name does that an operator moves."""
    async with before_store(url_of(pair[0])) as proxy:
        yield proxy


@pytest.fixture
async def client(way):
    made = connect(way.url, timeout_s=testing.PATIENCE_S)
    async with aclosing(made):
        yield made


async def cut_off(pair):
    """What is written from now on is lost with the primary."""
    await pair[1].execute_command("REPLICAOF", "NO", "ONE")


async def promoted(pair, way):
    """The primary is lost, its replica has its place, and the one that was lost comes back as a replica of it."""
    old, new, _ = pair
    way.cut()
    way._target = urlsplit(url_of(new))
    await new.config_set("repl-diskless-sync-delay", 0)
    await old.execute_command("REPLICAOF", "127.0.0.1", new.connection_pool.connection_kwargs["port"])


async def books(purse, client):
    """Spent and held of the key's budget, and the costs in the ledger."""
    (budget,) = (await purse.budgets(ANA)).budgets
    lines = (await Ledger(client).lines("acme")).lines
    return budget.spent_nanousd, budget.reserved_nanousd, [line["cost_nanousd"] for line in lines]


async def test_a_settlement_that_was_lost_with_its_primary_is_booked_at_the_next_one(pair, way, client):
    purse = purse_on(client)
    ticket, other = await purse.reserve(ASK), await purse.reserve(ASK)
    await cut_off(pair)
    purse.settle(ticket, COST, status="ok", latency_s=0.1)
    purse.release(other)

    async def booked():
        return await books(purse, client) == (500_000, 0, [500_000])

    await testing.eventually_async(booked, "the primary that is about to be lost has it")
    assert await purse.drain(0.5) == 2
    await promoted(pair, way)
    assert await books(purse_on(pair[1], 0), pair[1]) == (0, 2_000_000, [])
    way.restore()
    assert await purse.drain(testing.PATIENCE_S) == 0
    assert await books(purse, client) == (500_000, 0, [500_000])
    await purse.stop()


async def test_a_settlement_that_the_replica_had_is_not_booked_again(pair, way, client):
    purse = purse_on(client)
    ticket = await purse.reserve(ASK)
    put, twice = purse._outbox.put, []
    purse._outbox.put = lambda sending: (twice.append(sending), put(sending))
    purse.settle(ticket, COST, status="ok", latency_s=0.1)
    assert await purse.drain(testing.PATIENCE_S) == 0
    await cut_off(pair)
    await promoted(pair, way)
    way.restore()
    put(twice[0])
    assert await purse.drain(testing.PATIENCE_S) == 0
    assert await books(purse, client) == (500_000, 0, [500_000])
    await purse.stop()


async def test_a_primary_that_does_not_know_that_it_is_one_no_more_keeps_no_settlement(pair, way, client):
    old, new, _ = pair
    purse = purse_on(client)
    ticket = await purse.reserve(ASK)
    # Names lead to the new one; connections that are open still lead to the old one, which takes writes and has no replica.
    await cut_off(pair)
    way._target = urlsplit(url_of(new))
    purse.settle(ticket, COST, status="ok", latency_s=0.1)

    async def moved():
        return await books(purse_on(new, 0), new) == (500_000, 0, [500_000])

    await testing.eventually_async(moved, "the settlement is sent to the new primary", timeout_s=15.0)
    assert len(purse._outbox)
    await new.config_set("repl-diskless-sync-delay", 0)
    await old.execute_command("REPLICAOF", "127.0.0.1", new.connection_pool.connection_kwargs["port"])
    assert await purse.drain(testing.PATIENCE_S) == 0
    assert await moved()
    await purse.stop()


async def test_without_the_replica_no_call_is_begun_and_nothing_stays_reserved(pair, client):
    primary, _, process = pair
    purse = purse_on(client)
    ticket = await purse.reserve(ASK)
    with process.standing_still():
        with pytest.raises(Overloaded) as caught:
            await purse.reserve(ASK)
        assert (caught.value.reason, caught.value.retry_after_s) == ("STORE_UNAVAILABLE", 1.0)
        purse.settle(ticket, COST, status="ok", latency_s=0.1)
        assert await purse.drain(1.0) == 2
    assert await purse.drain(testing.PATIENCE_S) == 0
    assert await books(purse, client) == (500_000, 0, [500_000])
    # Nobody but the tenants' sweep looks for what is open, so it knows this one on either server.
    assert await pair[1].zcard(TENANTS) == await primary.zcard(TENANTS) == 1
    await purse.stop()


async def test_what_a_settlement_reached_is_told_though_it_is_sent_twice(pair, client, monkeypatch):
    told, missing = [], []
    monkeypatch.setattr("services.llm_gateway.adapters.purse._missing", SimpleNamespace(add=missing.append))
    limits = PrincipalLimits(key=LimitSet(max_budget_microusd=1_000))
    purse = purse_on(client, limits=limits, on_threshold=told.append)
    ticket = await purse.reserve(ASK)
    with pair[2].standing_still():
        purse.settle(ticket, Usage(cost_picousd=9 * 10**8), status="ok", latency_s=0.1)
        # Sent more than once, and booked once.
        assert await purse.drain(1.0) == 1
        assert told == []
    assert await purse.drain(testing.PATIENCE_S) == 0
    assert [threshold.percent for threshold in told] == [80]
    assert missing == []
    assert await books(purse, client) == (900_000, 0, [900_000])
    await purse.stop()


async def test_a_settlement_after_its_reservation_was_lost_corrects_what_a_promotion_has(pair, way, client):
    purse = purse_on(client)
    ticket = await purse.reserve(replace(ASK, expires_s=0.0))
    assert await purse.sweep() == 1
    # It answers that there is something to correct; the correction is lost with the primary.
    held = way.hold(b"purse_correct_v1")
    purse.settle(ticket, COST, status="ok", latency_s=0.1)
    await held.reached()
    await cut_off(pair)
    await promoted(pair, way)
    held.release()
    way.restore()
    assert await purse.drain(testing.PATIENCE_S) == 0
    assert await books(purse, client) == (500_000, 0, [1_000_000, -500_000])
    await purse.stop()


async def test_who_a_pseudonym_stands_for_is_known_and_forgotten_for_good(pair, client):
    _, replica, process = pair
    subjects, ledger = Subjects(client, 1), Ledger(client, 1)
    ana = await subjects.of("acme", "ana")
    with process.standing_still():
        for call in (
            lambda: subjects.of("acme", "ben"),
            # It is there, and may be lost yet.
            lambda: subjects.of("acme", "ben"),
            lambda: ledger.erase_user("acme", "ben"),
            lambda: ledger.erase_user("acme", "ben"),
        ):
            with pytest.raises(Overloaded):
                await call()
    ben = await subjects.of("acme", "ben")
    assert await ledger.erase_user("acme", "ben") == 0
    assert await ledger.erase_user("acme", "nobody") == 0
    await cut_off(pair)
    after = Subjects(replica)
    assert await after.of("acme", "ana") == ana
    assert await after.behind("acme", [ben.pseudonym]) == {}


async def test_an_erased_user_is_erased_after_a_promotion(pair, client):
    purse, ledger = purse_on(client), Ledger(client, 1)
    purse.settle(await purse.reserve(ASK), COST, status="ok", latency_s=0.1)
    assert await purse.drain(testing.PATIENCE_S) == 0
    assert await ledger.erase_user("acme", "ana") == 1
    await cut_off(pair)
    (line,) = (await Ledger(pair[1]).lines("acme")).lines
    assert (line["user"], line["cost_nanousd"]) == (ERASED, 500_000)
    await purse.stop()


async def test_files_of_the_ledger_have_no_line_that_could_be_lost(pair, client, tmp_path):
    _, _, process = pair
    purse, archive = purse_on(client, 0), LedgerArchive(client, tmp_path, replicas=1)
    ticket = await purse.reserve(ASK)
    with process.standing_still():
        purse.settle(ticket, COST, status="ok", latency_s=0.1)
        assert await purse.drain(testing.PATIENCE_S) == 0
        await archive.start()
        await archive.stop()
        assert list(tmp_path.glob("*/*.jsonl")) == []
    archive = LedgerArchive(client, tmp_path, replicas=1)
    assert await archive.copy() == 1
    await purse.stop()


async def test_without_replicas_money_asks_for_none(pair, client):
    primary, _, _ = pair
    await primary.config_resetstat()
    purse = purse_on(client, 0)
    purse.settle(await purse.reserve(ASK), COST, status="ok", latency_s=0.1)
    purse.release(await purse.reserve(ASK))
    assert await purse.drain(testing.PATIENCE_S) == 0
    await Ledger(client).erase_user("acme", "ana")
    sent = await primary.info("commandstats")
    assert not {"cmdstat_wait", "cmdstat_waitaof", "cmdstat_publish"} & set(sent)
    await purse.stop()


@pytest.mark.parametrize("setting", ["min-replicas-to-write", "replicaof"])
async def test_a_server_that_takes_no_writes_refuses_calls_and_gets_its_settlements_later(valkey, setting):
    purse = purse_on(valkey, 0)
    ticket = await purse.reserve(ASK)
    if setting == "replicaof":
        await valkey.execute_command("REPLICAOF", "127.0.0.1", 1)
    else:
        await valkey.config_set(setting, 1)
    try:
        with pytest.raises(Overloaded) as caught:
            await purse.reserve(ASK)
        assert caught.value.reason == "STORE_UNAVAILABLE"
        purse.settle(ticket, COST, status="ok", latency_s=0.1)
        assert await purse.drain(0.2) == 2
    finally:
        await valkey.execute_command("REPLICAOF", "NO", "ONE")
        await valkey.config_set("min-replicas-to-write", 0)
    assert await purse.drain(testing.PATIENCE_S) == 0
    assert await books(purse, valkey) == (500_000, 0, [500_000])
    await purse.stop()
