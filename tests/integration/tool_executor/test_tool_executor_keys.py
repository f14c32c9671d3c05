"""Idempotency keys: no side effect twice, not under concurrency, not after a kill; an outcome is never guessed."""

import asyncio
import signal
import time

import pytest
from bulkhead.tools.v1 import tools_pb2

from services.common import testing
from services.common.errors import BulkheadError, IdempotencyMismatch, InvalidInput, NotFound, Overloaded
from services.common.valkey import connect
from services.tool_executor import claims
from tests.integration.tool_executor import short_leases
from tests.integration.tool_executor.harness import (
    DONE,
    FAILED,
    RUNNING,
    UNKNOWN,
    client_of,
    executor,
    executor_process,
    http_tool,
    write_config,
)  # fmt: skip


@pytest.fixture
def caller(identities):
    """The calls of a test belong to a user with every scope."""
    with testing.calling(identities):
        yield


@pytest.fixture
async def tools(tmp_path, state_url, identities, outside):
    write_config(
        tmp_path,
        [
            http_tool(outside, "order", "/order"),
            {**http_tool(outside, "order", "/order2"), "version": "2.0.0", "enabled": False},
            http_tool(outside, "read", "/read", annotations={"read_only": True}),
            {"name": "calculator"},
        ],
    )
    async with executor(tmp_path, state_url, identities) as client:
        yield client


async def test_a_tool_with_side_effects_needs_a_key(tools, caller, outside):
    with pytest.raises(InvalidInput) as caught:
        await tools.result("order")
    assert caught.value.violations[0].field == "idempotency_key"
    assert not outside.seen


async def test_many_calls_with_one_key_have_one_effect_and_one_answer(tools, tmp_path, state_url, identities, caller, outside):
    outside.gate.clear()
    async with executor(tmp_path, state_url, identities) as replica:
        calls = [asyncio.create_task(client.result("order", {"n": 1}, "k")) for client in (tools, replica) for _ in range(10)]
        await testing.eventually_async(lambda: outside.seen, "the effect")
        assert (await replica.known("k")).outcome == RUNNING
        outside.gate.set()
        results = await asyncio.gather(*calls)
    assert len(outside.seen) == 1
    assert {(r.outcome, r.output_json) for r in results} == {(DONE, b'{"number":1}')}
    assert sorted(r.replayed for r in results) == [False] + [True] * 19
    assert (await tools.result("order", {"n": 1}, "k")).replayed
    assert len(outside.seen) == 1


async def test_the_key_goes_along(tools, caller, outside):
    await tools.result("order", {"n": 1}, "run/1/call")
    assert outside.seen[0].headers["Idempotency-Key"] == "run/1/call"


async def test_another_call_with_the_same_key_is_refused(tools, caller, outside):
    await tools.result("order", {"n": 1}, "k")
    for name, arguments in (("order", {"n": 2}), ("read", {"n": 1}), ("calculator", {"expression": "1"})):
        with pytest.raises(IdempotencyMismatch):
            await tools.result(name, arguments, "k")
    assert (await tools.result("order", b'{ "n" : 1 }', "k")).replayed
    assert len(outside.seen) == 1


async def test_a_new_version_never_repeats_what_an_older_one_did(tools, tmp_path, caller, outside):
    first = await tools.result("order", {"n": 1}, "k")
    entries = [{**http_tool(outside, "order", path), "version": v} for path, v in (("/order", "1.0.0"), ("/order2", "2.0.0"))]
    write_config(tmp_path, entries)

    async def newest():
        return (await tools.result("order", {"n": 7}, f"new{time.monotonic()}")).version == "2.0.0"

    await testing.eventually_async(newest, "the new version")
    before = len(outside.seen)
    again = await tools.result("order", {"n": 1}, "k")
    assert (again.replayed, again.version, again.output_json) == (True, "1.0.0", first.output_json)
    assert (await tools.result("order", {"n": 1}, "k", version="1.0.0")).replayed
    with pytest.raises(IdempotencyMismatch):
        await tools.result("order", {"n": 1}, "k", version="2.0.0")
    assert len(outside.seen) == before


async def test_keys_belong_to_a_tenant(tools, identities, outside):
    with testing.calling(identities):
        await tools.result("order", {"n": 1}, "k")
    with testing.calling(identities, testing.principal_of("globex")):
        with pytest.raises(NotFound):
            await tools.known("k")
        assert not (await tools.result("order", {"n": 2}, "k")).replayed
    assert len(outside.seen) == 2


async def test_a_key_that_was_never_seen_is_not_found(tools, caller):
    with pytest.raises(NotFound) as caught:
        await tools.known("never")
    assert caught.value.reason == "TOOL_CALL_NOT_FOUND"


async def test_failures_are_remembered_as_well(tools, caller, outside):
    bad = await tools.result("order", {"n": "x"}, "k")
    assert (bad.outcome, bad.error.code) == (FAILED, "input.invalid")
    again = await tools.result("order", {"n": "x"}, "k")
    assert again.replayed
    assert [v.path for v in again.error.violations] == ["/n"]
    assert not outside.seen


async def test_a_cancelled_call_stops_at_once_and_what_became_of_it_is_known(tools, caller, outside):
    outside.gate.clear()
    for name, key in (("order", "o"), ("read", "r")):
        task = asyncio.create_task(tools.result(name, {"n": 1}, key))
        await testing.eventually_async(lambda: [s for s in outside.seen if s.headers["Idempotency-Key"] == key], "the request")  # noqa: B023
        given_up = outside.given_up
        task.cancel()
        await testing.eventually_async(lambda: outside.given_up > given_up, "the request is given up", 10)  # noqa: B023

        async def ended():
            return (await tools.known(key)).outcome != RUNNING  # noqa: B023

        await testing.eventually_async(ended, "the outcome is stored", 10)
    outside.gate.set()
    order, read = await tools.known("o"), await tools.known("r")
    assert (order.outcome, order.error.code) == (UNKNOWN, "transport.cancelled")
    assert (read.outcome, read.error.code) == (FAILED, "transport.cancelled")
    count = len(outside.seen)
    assert (await tools.result("order", {"n": 1}, "o")).outcome == UNKNOWN
    assert len(outside.seen) == count
    assert (await tools.result("read", {"n": 1}, "r")).outcome == DONE
    assert len(outside.seen) == count + 1


async def records_in(store):
    """The names of the calls, without the index that a user's calls are erased by."""
    return [name for name in await store.keys("tool_calls:*") if b":of:" not in name]


async def test_records_are_kept_for_a_day(tools, caller, valkey):
    await tools.result("order", {"n": 1}, "k")
    (name,) = await records_in(valkey)
    assert 23.9 * 3600 < await valkey.ttl(name) <= 24 * 3600


async def test_without_a_store_nothing_runs_and_with_it_back_all_goes_on(tmp_path, identities, outside, caller):
    write_config(tmp_path, [http_tool(outside, "order", "/order")])
    port = testing.free_port()
    folder = tmp_path / "valkey"
    folder.mkdir()
    with testing.valkey_server("state", port, folder) as (url, server):
        async with executor(tmp_path, url, identities) as client:
            assert (await client.result("order", {"n": 1}, "before")).outcome == DONE
            outside.gate.clear()
            during = asyncio.create_task(client.result("order", {"n": 2}, "during"))
            await testing.eventually_async(lambda: len(outside.seen) == 2, "the effect")
            server.kill()
            with pytest.raises(Overloaded) as caught:
                await client.result("order", {"n": 3}, "after")
            assert caught.value.reason == "STORE_UNAVAILABLE"
            assert len(outside.seen) == 2
            outside.gate.set()
            # The work was done, so its answer is given although it cannot be stored yet.
            assert (await during).outcome == DONE
            with testing.valkey_server("state", port, folder):

                async def stored():
                    try:
                        return (await client.known("during")).outcome == DONE
                    except Overloaded:
                        return False

                await testing.eventually_async(stored, "the outcome is stored")
                assert (await client.result("order", {"n": 2}, "during")).replayed
                assert (await client.result("order", {"n": 3}, "after")).outcome == DONE
                assert len(outside.seen) == 3


@pytest.fixture
def killing(tmp_path, outside, monkeypatch):
    """Tools and leases whose limits let a test see the end of a lease."""
    short_leases.shorten(monkeypatch.setattr)
    write_config(
        tmp_path,
        [
            http_tool(outside, "order", "/order", timeout_s=2),
            http_tool(outside, "read", "/read", annotations={"read_only": True}, timeout_s=60),
        ],
    )


async def start_and_kill(tmp_path, state_url, identities, outside, name):
    """SIGKILLs an executor in the middle of a call with the key `k`."""
    outside.gate.clear()
    async with executor_process(tmp_path, state_url, identities, (short_leases.__file__,)) as (process, port), client_of(port) as client:
        task = asyncio.create_task(client.result(name, {"n": 1}, "k"))
        await testing.eventually_async(lambda: outside.seen, "the effect")
        process.kill()
        with pytest.raises(BulkheadError):
            await task
    outside.gate.set()


async def test_after_a_kill_a_tool_with_side_effects_is_never_run_again(killing, tmp_path, state_url, identities, outside, caller):
    await start_and_kill(tmp_path, state_url, identities, outside, "order")
    async with executor(tmp_path, state_url, identities) as client:
        assert (await client.known("k")).outcome == RUNNING
        # It joins the call, as it may still be at work, until the deadline of that has passed.
        joined = await client.result("order", {"n": 1}, "k")
        known = await client.known("k")
        for result in (joined, known):
            assert (result.outcome, result.error.code, result.error.retryable) == (UNKNOWN, "transport.lost", False)
        with pytest.raises(IdempotencyMismatch):
            await client.result("order", {"n": 2}, "k")
    assert len(outside.seen) == 1


async def test_after_a_kill_a_read_only_tool_is_run_again_soon(killing, tmp_path, state_url, identities, outside, caller):
    await start_and_kill(tmp_path, state_url, identities, outside, "read")
    async with executor(tmp_path, state_url, identities) as client:
        started = time.monotonic()
        result = await client.result("read", {"n": 1}, "k")
        assert result.outcome == DONE
        assert not result.replayed
        # Its own time limit is a minute: it is the missing heartbeat that tells.
        assert time.monotonic() - started < 20
    assert len(outside.seen) == 2


async def test_what_was_stopped_for_good_runs_no_more_when_its_process_has_died(
    killing, tmp_path, state_url, identities, outside, caller, monkeypatch
):
    # Whoever stops it does not wait for the end of its lease.
    monkeypatch.setattr(claims, "STOP_WITHIN_S", 0.1)
    await start_and_kill(tmp_path, state_url, identities, outside, "read")
    async with executor(tmp_path, state_url, identities) as client:
        stopped = await client.stub.CancelToolCall(tools_pb2.CancelToolCallRequest(idempotency_key="k", for_good=True))
        assert stopped.result.outcome == RUNNING
        for known in (await client.result("read", {"n": 1}, "k"), await client.known("k")):
            assert (known.outcome, known.error.code) == (FAILED, "transport.cancelled")
    assert len(outside.seen) == 1


async def test_a_long_call_keeps_its_claim_while_its_process_lives(killing, tmp_path, state_url, identities, outside, caller):
    outside.gate.clear()
    async with executor(tmp_path, state_url, identities) as client:
        first = asyncio.create_task(client.result("read", {"n": 1}, "k"))
        await testing.eventually_async(lambda: outside.seen, "the effect")
        second = asyncio.create_task(client.result("read", {"n": 1}, "k"))
        # Longer than a lease lasts without its heartbeat.
        await asyncio.sleep(1.5 * short_leases.LEASE_S)
        assert (await client.known("k")).outcome == RUNNING
        outside.gate.set()
        results = await asyncio.gather(first, second)
    assert len(outside.seen) == 1
    assert [r.replayed for r in results] == [False, True]


@pytest.mark.parametrize(("name", "outcome"), [("order", UNKNOWN), ("read", FAILED)])
async def test_sigterm_in_the_middle_of_a_call_stores_its_outcome_and_exits_0(
    killing, tmp_path, state_url, identities, outside, caller, name, outcome
):
    outside.gate.clear()
    async with executor_process(tmp_path, state_url, identities) as (process, port), client_of(port) as client:
        task = asyncio.create_task(client.result(name, {"n": 1}, "k"))
        await testing.eventually_async(lambda: outside.seen, "the effect")
        process.signal(signal.SIGTERM)
        with pytest.raises(BulkheadError):
            await task
        assert await asyncio.to_thread(process.wait, 30) == 0, process.output()
    async with executor(tmp_path, state_url, identities) as client:
        known = await client.known("k")
        assert (known.outcome, known.error.code) == (outcome, "transport.cancelled")


async def test_an_owner_thought_dead_may_still_tell_what_it_did(tmp_path, state_url, identities, outside, caller):
    write_config(tmp_path, [http_tool(outside, "order", "/order", timeout_s=30)])
    outside.gate.clear()
    async with executor(tmp_path, state_url, identities) as client:
        task = asyncio.create_task(client.result("order", {"n": 1}, "k"))
        await testing.eventually_async(lambda: outside.seen, "the effect")
        store = connect(state_url)
        (name,) = await records_in(store)
        await store.hset(name, "until", 1)
        await store.aclose()
        assert (await client.known("k")).outcome == UNKNOWN
        outside.gate.set()
        assert (await task).outcome == DONE
        assert (await client.known("k")).outcome == DONE
