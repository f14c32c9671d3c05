"""Claims on a store with a replica: one that keeps a call from being made twice counts once the replica has it on disk."""

import signal
from dataclasses import replace

import pytest

from services.common import testing
from services.common.errors import Overloaded
from services.tool_executor.adapters.call_ledger import ValkeyCallLedger
from services.tool_executor.ports import Entry, Verdict
from services.tool_executor.settings import Settings

ORDER = Entry("acme", "run/1/0", "print", "order", "1.0.0", False, False, "token", 30.0)
READ = replace(ORDER, key="run/1/1", tool="read", repeatable=True)


async def test_a_claim_and_a_result_that_were_acknowledged_are_there_after_a_promotion(pair):
    primary, replica, _ = pair
    ledger = ValkeyCallLedger(primary, 1)
    at_work, done = ORDER, replace(ORDER, key="run/1/2")
    for entry in (at_work, done):
        assert (await ledger.begin(entry)).verdict is Verdict.CLAIMED
    assert await ledger.finish(done, b"{}", b"1", free=False)
    await replica.execute_command("REPLICAOF", "NO", "ONE")
    after = ValkeyCallLedger(replica, 0)
    assert (await after.begin(replace(at_work, token="another"))).verdict is Verdict.RUNNING
    record = await after.begin(replace(done, token="another"))
    assert (record.verdict, record.output) == (Verdict.DONE, b"1")


async def test_a_call_that_was_stopped_for_good_never_begins_after_a_promotion(pair):
    primary, replica, _ = pair
    assert await ValkeyCallLedger(primary, 1).stop("acme", ORDER.key, b"{}", for_good=True) is not None
    await replica.execute_command("REPLICAOF", "NO", "ONE")
    assert (await ValkeyCallLedger(replica, 0).begin(ORDER)).verdict is not Verdict.CLAIMED


async def test_without_the_replica_only_calls_that_may_be_made_twice_are_claimed(pair, monkeypatch):
    monkeypatch.setattr("services.common.valkey_replicas.REPLICA_SYNC_MS", 200)
    primary, _, process = pair
    ledger, alone = ValkeyCallLedger(primary, 1), ValkeyCallLedger(primary)
    done = replace(ORDER, key="run/1/2")
    await ledger.begin(done)
    process.signal(signal.SIGSTOP)
    try:
        with pytest.raises(Overloaded) as caught:
            await ledger.begin(ORDER)
        assert caught.value.reason == "STORE_UNAVAILABLE"
        with pytest.raises(Overloaded):
            await ledger.finish(done, b"{}", b"1", free=False)
        with pytest.raises(Overloaded):
            await ledger.stop("acme", "run/1/4", b"{}", for_good=True)
        assert (await ledger.begin(READ)).verdict is Verdict.CLAIMED
        assert await ledger.finish(READ, b"{}", b"1", free=False)
        # What is known already is answered, and who asks for no replica is not kept waiting for one.
        assert (await ledger.begin(replace(ORDER, token="another"))).verdict is Verdict.RUNNING
        assert (await alone.begin(replace(ORDER, key="run/1/3"))).verdict is Verdict.CLAIMED
    finally:
        process.signal(signal.SIGCONT)


async def test_nothing_is_asked_of_replicas_where_nothing_is_waited_for(pair):
    primary, _, _ = pair
    await primary.config_resetstat()
    for replicas, entry in ((0, ORDER), (1, READ)):
        ledger = ValkeyCallLedger(primary, replicas)
        await ledger.begin(entry)
        await ledger.finish(entry, b"{}", b"1", free=False)
    assert not {"cmdstat_wait", "cmdstat_waitaof"} & set(await primary.info("commandstats"))
    await ValkeyCallLedger(primary, 1).begin(replace(ORDER, key="run/1/2"))
    assert (await primary.info("commandstats"))["cmdstat_waitaof"]["calls"] == 1


async def test_a_store_that_takes_no_writes_for_want_of_replicas_is_away(pair):
    primary, replica, _ = pair
    ledger = ValkeyCallLedger(primary, 1)
    await replica.execute_command("REPLICAOF", "NO", "ONE")
    await primary.config_set("min-replicas-to-write", 1)
    try:
        await testing.eventually_async(lambda: _alone(primary), "the replica is gone")
        for entry in (ORDER, READ):
            with pytest.raises(Overloaded) as caught:
                await ledger.begin(entry)
            assert caught.value.reason == "STORE_UNAVAILABLE"
    finally:
        await primary.config_set("min-replicas-to-write", 0)


async def _alone(client):
    return (await client.info("replication"))["connected_slaves"] == 0


def replica_problems(**settings):
    return [problem for problem in Settings(**settings).problems() if "STATE_REPLICAS" in problem]


@pytest.mark.parametrize("settings", [{"env": "prod"}, {"least_state_replicas": 2, "state_replicas": 1}])
def test_production_does_not_start_without_replicas_of_the_state_store(settings):
    assert len(replica_problems(**settings)) == 1


@pytest.mark.parametrize("settings", [{"env": "local"}, {"env": "staging"}, {"env": "prod", "state_replicas": 1}])
def test_replicas_that_are_asked_for_are_enough(settings):
    assert replica_problems(**settings) == []
