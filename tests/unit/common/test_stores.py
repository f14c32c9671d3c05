"""Accounts, buckets, idempotency and batched functions on a real Valkey."""

import asyncio
import gc
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.exceptions import ReadOnlyError, ResponseError

from services.common import embedded, testing
from services.common.accounts import Accounts, digest_of
from services.common.config import ConfigProblem
from services.common.errors import Conflict, IdempotencyMismatch, NotFound, Overloaded, QuotaExceeded, Unauthenticated
from services.common.idempotency import IdempotencyStore, fingerprint
from services.common.limits import Bucket, Policies, TokenBuckets, parse_policies
from services.common.valkey import Library, connect
from services.orchestrator.testing.store_proxy import before_store


async def test_a_key_resolves_to_its_principal_and_its_secret_is_stored_nowhere(valkey):
    accounts = Accounts(valkey)
    issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=("runs:write",), team="blue")
    principal = await accounts.resolve(issued.secret)
    assert (principal.tenant, principal.user, principal.team, principal.tier, principal.scopes) == (
        "acme",
        "ana",
        "blue",
        "pro",
        ("runs:write",),
    )
    for key in await valkey.keys("*"):
        kind = (await valkey.type(key)).decode()
        value = await (valkey.get(key) if kind == "string" else valkey.smembers(key))
        assert issued.secret not in f"{key}{value}"


async def test_every_change_of_a_key_is_told_to_versions_that_know_only_digests(valkey):
    accounts = Accounts(valkey)
    issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=[])
    key_id, told = issued.record.key_id, []
    async with valkey.pubsub() as listener:
        await listener.subscribe("acct:revoked")
        await accounts.keys.update(key_id, "acme", lambda key: replace(key, name="ci"))
        rotated = await accounts.keys.rotate(key_id, "acme")
        await accounts.revoke("acme", key_id)
        async with asyncio.timeout(10):
            while len(told) < 3:
                message = await listener.get_message(ignore_subscribe_messages=True, timeout=1.0)
                told += [message["data"].decode()] if message else []
    assert told == [digest_of(issued.secret), digest_of(issued.secret), digest_of(rotated.secret)]


async def test_unknown_expired_and_revoked_keys_are_refused_everywhere_at_once(valkey, state_url):
    accounts = Accounts(valkey)
    with pytest.raises(Unauthenticated):
        await accounts.resolve("bh_unknown")
    short = await accounts.create_key(tenant="a", user="u", tier="free", scopes=(), lifetime=timedelta(seconds=-1))
    with pytest.raises(Unauthenticated) as caught:
        await accounts.resolve(short.secret)
    assert caught.value.reason == "EXPIRED_API_KEY"
    issued = await accounts.create_key(tenant="a", user="u", tier="free", scopes=())
    other_client = connect(state_url)
    other = Accounts(other_client)
    await other.start()
    try:
        await other.resolve(issued.secret)
        await testing.eventually_async(lambda: valkey.execute_command("PUBSUB", "NUMSUB", "acct:revoked"), "subscribed")
        with pytest.raises(NotFound):
            await accounts.revoke("b", issued.record.key_id)
        await accounts.revoke("a", issued.record.key_id)

        async def refused():
            try:
                await other.resolve(issued.secret)
            except Unauthenticated:
                return True
            return False

        # Well before the ten seconds of the cache: the revocation is pushed.
        await testing.eventually_async(refused, "the other process refuses the key", timeout_s=5)
    finally:
        await other.stop()
        await other_client.aclose()


async def test_a_store_that_is_away_is_an_overload_and_not_a_bad_key():
    client = connect(f"redis://127.0.0.1:{testing.free_port()}/0")
    with pytest.raises(Overloaded) as caught:
        await Accounts(client).resolve("bh_" + "x" * 40)
    assert caught.value.reason == "STORE_UNAVAILABLE"
    with pytest.raises(Overloaded):
        await Accounts(client).list_keys("acme")
    with pytest.raises(Overloaded):
        await Accounts(client).revoke("acme", "key_1")
    await client.aclose()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(capacities=st.lists(st.integers(1, 8), min_size=1, max_size=3), callers=st.integers(1, 20))
def test_buckets_together_give_no_more_than_the_smallest_holds(_state_server, capacities, callers):
    async def scenario():
        client = connect(_state_server)
        await client.flushall()
        buckets = [Bucket(f"{{t}}:{i}", capacity, 3600.0, f"p{i}") for i, capacity in enumerate(capacities)]
        taker = TokenBuckets(client)
        results = await asyncio.gather(*(taker.take(buckets) for _ in range(callers)), return_exceptions=True)
        taken = sum(not isinstance(r, Exception) for r in results)
        assert taken == min(callers, *capacities)
        assert all(isinstance(r, QuotaExceeded) for r in results if isinstance(r, Exception))
        # All or nothing: a refused take left the larger buckets alone.
        for bucket in buckets:
            assert round(float(await client.hget(bucket.key, "level"))) == bucket.capacity - taken
        await client.aclose()

    asyncio.run(scenario())


async def test_a_refusal_says_when_to_come_back(valkey):
    taker = TokenBuckets(valkey)
    bucket = Bucket("{t}:x", 2, 60.0, "requests_per_minute")
    await taker.take([bucket])
    await taker.take([bucket])
    with pytest.raises(QuotaExceeded) as caught:
        await taker.take([bucket])
    assert 0 < caught.value.retry_after_s <= 30.0
    assert caught.value.metadata["policy"] == "requests_per_minute"


async def test_functions_come_back_after_the_store_was_emptied(valkey):
    taker = TokenBuckets(valkey)
    bucket = Bucket("{t}:x", 5, 60.0, "p")
    await taker.take([bucket])
    await valkey.function_flush()
    assert [level.left for level in await taker.take([bucket])] == [3]
    await valkey.function_flush()
    assert sorted(r[0].left for r in await asyncio.gather(*(taker.take([bucket]) for _ in range(3)))) == [0, 1, 2]


async def test_two_versions_of_a_library_run_their_own_code_side_by_side(valkey, tmp_path):
    def version(answer):
        path = tmp_path / f"{answer}.lua"
        path.write_text(f"#!lua name=sample\nredis.register_function('answer_v1', function() return {answer} end)\n")
        return Library(valkey, path)

    old, new = version(1), version(2)
    for _ in range(2):
        assert await old.call("answer_v1", ["k"], []) == 1
        assert await new.batched("answer_v1", ["k"], []) == 2


async def test_a_claim_is_held_as_long_as_it_is_renewed(valkey):
    store = IdempotencyStore(valkey)
    claim = await store.begin("acme", "M", "k", "p", lease_s=0.05)
    assert await store.renew(claim, lease_s=30.0)
    await asyncio.sleep(0.1)
    with pytest.raises(Conflict):
        await store.begin("acme", "M", "k", "p")
    await store.finish(claim, b"answer")
    assert not await store.renew(claim)
    lost = await store.begin("acme", "M", "other", "p", lease_s=0.001)
    await asyncio.sleep(0.01)
    await store.begin("acme", "M", "other", "p")
    assert not await store.renew(lost)
    assert await store.renew(await store.begin("acme", "M", "", "p"))


async def test_an_owners_answers_can_be_erased(valkey):
    store = IdempotencyStore(valkey)
    for tenant, key, owner in (("acme", "a", "ana"), ("acme", "b", "ana"), ("acme", "c", "ben"), ("globex", "a", "ana"), ("acme", "d", "")):
        await store.finish(await store.begin(tenant, "M", key, "p"), key.encode(), owner=owner)
    assert await store.erase("acme", "ana") == 2
    assert await store.erase("acme", "ana") == 0
    left = [
        (await store.begin(tenant, "M", key, "p")).answer for tenant, key in (("acme", "a"), ("acme", "c"), ("globex", "a"), ("acme", "d"))
    ]
    assert left == [None, b"c", b"a", b"d"]


async def test_idempotency_one_worker_one_answer(valkey):
    store = IdempotencyStore(valkey)
    print_ = fingerprint("body")
    first = await store.begin("acme", "Add", "k1", print_)
    assert first.answer is None
    with pytest.raises(Conflict):
        await store.begin("acme", "Add", "k1", print_)
    with pytest.raises(IdempotencyMismatch):
        await store.begin("acme", "Add", "k1", fingerprint("other"))
    assert (await store.begin("globex", "Add", "k1", print_)).answer is None
    assert await store.finish(first, b"answer")
    assert (await store.begin("acme", "Add", "k1", print_)).answer == b"answer"
    assert await valkey.pttl(first.key) > 23 * 3600 * 1000


async def test_a_dead_holder_frees_the_key_and_cannot_answer_late(valkey):
    store = IdempotencyStore(valkey)
    first = await store.begin("acme", "Add", "k", "p", lease_s=0.02)

    async def taken_over():
        try:
            return await store.begin("acme", "Add", "k", "p", lease_s=30)
        except Conflict:
            return None

    second = await testing.eventually_async(taken_over, "the lease runs out")
    assert not await store.finish(first, b"late")
    assert await store.finish(second, b"good")
    assert (await store.begin("acme", "Add", "k", "p")).answer == b"good"


async def test_a_claim_that_is_lost_after_its_caller_has_left_is_nobodys_defect(state_url):
    told = []
    async with before_store(state_url) as proxy:
        client = connect(proxy.url)
        store = IdempotencyStore(client)
        held = proxy.hold(b"idem:{left}")
        call = asyncio.create_task(store.begin("left", "m", "k", "p"))
        await held.reached()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        proxy.cut()
        await asyncio.wait({*store._giving_back})
        await client.aclose()
    del call
    gc.collect()
    assert not told


async def test_an_abandoned_key_is_free_and_a_finished_one_stays(valkey):
    store = IdempotencyStore(valkey)
    claim = await store.begin("acme", "Add", "k", "p")
    await store.abandon(claim)
    claim = await store.begin("acme", "Add", "k", "p")
    await store.finish(claim, b"x")
    await store.abandon(claim)
    assert (await store.begin("acme", "Add", "k", "p")).answer == b"x"


@given(st.lists(st.text(max_size=5), max_size=4), st.lists(st.text(max_size=5), max_size=4))
def test_fingerprints_of_different_bodies_differ(one, other):
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)


def test_an_unknown_tier_gets_the_limits_of_free_and_misspelt_limits_are_refused():
    policies = parse_policies({"sets": {"dev": {"free": {"tool_calls_per_minute": 5}, "pro": {}}}})
    assert isinstance(policies, Policies)
    assert policies.tier("dev", "platinum").tool_calls_per_minute == 5
    assert policies.tier("dev", "pro").tool_calls_per_minute is None
    with pytest.raises(ValueError, match="requests_per_minit"):
        parse_policies({"sets": {"dev": {"free": {"requests_per_minit": 5}}}})


def test_limits_cannot_vanish_with_a_misspelt_name():
    with pytest.raises(ConfigProblem, match="no set prod"):
        parse_policies({"sets": {"dev": {"free": {}}}}, policy_set="prod")
    with pytest.raises(ConfigProblem, match="lacks the tier free"):
        parse_policies({"sets": {"dev": {"pro": {}}}})


async def test_a_store_that_became_a_replica_is_left_and_its_address_is_looked_up_again():
    """One connection of many has heard of it; what is told apart from calls that fail for another reason."""
    with testing.valkey_server() as (url, _):
        client = connect(url, max_connections=1)
        try:
            library = Library(client, Path(__file__).parents[3] / "services/common/limits/buckets.lua")
            await library.load()
            first = await client.client_id()
            for ask in (client.set("a", "b"), library.batched("buckets_take_v1", ["b"], [0])):
                await client.execute_command("REPLICAOF", "127.0.0.1", testing.free_port())
                with pytest.raises(ReadOnlyError):
                    await ask
                await client.execute_command("REPLICAOF", "NO", "ONE")
                former, first = first, await client.client_id()
                assert former != first
            with pytest.raises(ResponseError):
                await client.execute_command("LPOP", "a", "x")
            assert await client.client_id() == first
        finally:
            await client.aclose()


@pytest.mark.parametrize("url", ["redis+sentinel://", "redis+sentinel://host:1", "redis+sentinel:///name", "redis+sentinel://a:1,:2/name"])
def test_a_url_of_sentinels_without_their_addresses_or_the_name_is_refused(url):
    with pytest.raises(ValueError, match="sentinel"):
        connect(url)


async def test_a_url_of_sentinels_leads_to_the_primary_they_name(tmp_path):
    with testing.valkey_server() as (url, _):
        port, sentinel = url.rsplit(":", 1)[1].split("/")[0], testing.free_port()
        config = tmp_path / "sentinel.conf"
        config.write_text(f"port {sentinel}\ndir {tmp_path}\nsentinel monitor the-state 127.0.0.1 {port} 1\n")
        process = testing.Process([embedded.valkey_state_command(0, tmp_path)[0], str(config), "--sentinel"], log=tmp_path / "log")
        client = connect(f"redis+sentinel://127.0.0.1:{testing.free_port()},127.0.0.1:{sentinel}/the-state/3")
        try:
            testing.wait_for_port(sentinel, process)
            await client.set("a", "b")
            assert (await client.client_info())["db"] == 3
            assert (await client.info("server"))["tcp_port"] == int(port)
        finally:
            await client.aclose()
            process.stop()
