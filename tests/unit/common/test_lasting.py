"""What counts only once a replica has it on disk: keys, idempotency records, keys of encrypted data, audit records. On two real servers."""

import asyncio
import base64
import json
import os
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial

import pytest
from redis.exceptions import ResponseError

from services.common import testing
from services.common.accounts import Accounts, KeyRecord, TeamRecord
from services.common.audit import AuditStream
from services.common.envelope import Envelope, RootKeys
from services.common.errors import Conflict, NotFound, Overloaded, Unauthenticated
from services.common.idempotency import IdempotencyStore
from services.common.limits import Bucket, TokenBuckets
from services.common.valkey import Library, connect
from services.common.valkey_replicas import Lasting, TooFewReplicas, asked, refused
from services.llm_gateway.settings import Settings as LlmSettings
from services.memory.settings import Settings as MemorySettings
from services.orchestrator.testing.store_proxy import before_store

BUCKET = Bucket("{t}:x", 5, 60.0, "p")


@pytest.fixture(autouse=True)
def waits_short(monkeypatch):
    monkeypatch.setattr("services.common.valkey_replicas.REPLICA_WAIT_MS", 100)
    monkeypatch.setattr("services.common.valkey_replicas.REPLICA_SYNC_MS", 200)


@pytest.fixture
def roots(tmp_path):
    path = tmp_path / "roots.json"
    path.write_text(json.dumps({"keys": [{"id": "one", "key": base64.b64encode(os.urandom(32)).decode()}]}))
    return RootKeys.from_file(path)


async def promoted(replica):
    await replica.execute_command("REPLICAOF", "NO", "ONE")


async def test_keys_that_were_made_rotated_and_ended_are_so_after_a_promotion(pair):
    primary, replica, _ = pair
    accounts = Accounts(primary, 1)
    made, rotated, ended = [await accounts.create_key(tenant="a", user="u", tier="free", scopes=(), name=f"k{n}") for n in range(3)]
    new = await accounts.keys.rotate(rotated.record.key_id, "a")
    await accounts.teams.create(TeamRecord("a", "blue"), "blue")
    await accounts.keys.update(made.record.key_id, "a", lambda key: replace(key, team="blue"))
    await accounts.revoke("a", ended.record.key_id)
    await promoted(replica)
    after = Accounts(replica)
    assert (await after.resolve(made.secret)).team == "blue"
    assert (await after.resolve(new.secret)).key_id == rotated.record.key_id
    for secret in (rotated.secret, ended.secret):
        with pytest.raises(Unauthenticated):
            await after.resolve(secret)


async def test_nothing_of_an_account_is_told_that_the_replica_does_not_have(pair):
    primary, _, process = pair
    accounts = Accounts(primary, 1)
    issued = await accounts.create_key(tenant="a", user="u", tier="free", scopes=())
    await accounts.teams.create(TeamRecord("a", "blue"), "blue")

    def calls():
        return (
            lambda: accounts.create_key(tenant="a", user="u", tier="free", scopes=()),
            lambda: accounts.teams.create(TeamRecord("a", "red"), "red"),
            # The second time it is gone already, which is told only once it cannot come back.
            lambda: accounts.revoke("a", issued.record.key_id),
            lambda: accounts.revoke("a", issued.record.key_id),
            lambda: accounts.keys.find_id(issued.record.key_id, "a"),
            lambda: accounts.keys.find_id(issued.secret, "a"),
            lambda: accounts.teams.create(TeamRecord("a", "blue"), "blue"),
        )

    with process.standing_still():
        for call in calls():
            with pytest.raises(Overloaded) as caught:
                await call()
            assert (caught.value.reason, caught.value.retry_after_s) == ("STORE_UNAVAILABLE", 1.0)
        # To whom it is told that reads, and changes nothing, it may be told at once.
        for call in (accounts.keys.find, partial(accounts.keys.find_id, to_change=False)):
            with pytest.raises(NotFound):
                await call(issued.record.key_id, "a")
    # Whoever was refused asks again.
    with pytest.raises(NotFound):
        await accounts.revoke("a", issued.record.key_id)
    with pytest.raises(Conflict):
        await accounts.teams.create(TeamRecord("a", "red"), "red")


async def test_the_name_of_a_key_that_was_refused_is_free(pair):
    primary, replica, process = pair
    accounts, record = Accounts(primary, 1), KeyRecord("", "a", "u", "", "free", (), name="ours")
    with process.standing_still():
        with pytest.raises(Overloaded):
            await accounts.keys.create(record, strict=True)
    issued = await accounts.keys.create(record, strict=True)
    await promoted(replica)
    assert [key.key_id for key in await Accounts(replica).list_keys("a")] == [issued.record.key_id]
    assert await Accounts(replica).keys.find_name("ours", "a") == issued.record.key_id


async def test_a_transaction_that_is_given_up_while_it_waits_leaves_nothing_to_the_next_one(pair):
    primary, _, process = pair
    accounts = Accounts(primary, 1)
    await accounts.create_key(tenant="a", user="u", tier="free", scopes=())
    await primary.config_resetstat()
    with process.standing_still():
        task = asyncio.create_task(accounts.create_key(tenant="a", user="u", tier="free", scopes=()))

        async def waits():
            return (await primary.info("commandstats")).get("cmdstat_exec")

        await testing.eventually_async(waits, "the transaction is made")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    for _ in range(5):
        assert await primary.incr("n")
        await accounts.create_key(tenant="a", user="u", tier="free", scopes=())
    assert await primary.get("n") == b"5"


async def test_a_transaction_that_waits_at_a_server_that_is_demoted_is_refused(pair, monkeypatch):
    primary, _, process = pair
    # It ends with the demotion.
    monkeypatch.setattr("services.common.valkey_replicas.REPLICA_WAIT_MS", 50_000)
    accounts = Accounts(primary, 1)
    await accounts.create_key(tenant="a", user="u", tier="free", scopes=())
    await primary.config_resetstat()
    with process.standing_still():
        task = asyncio.create_task(accounts.create_key(tenant="a", user="u", tier="free", scopes=()))

        async def waits():
            return (await primary.info("clients"))["blocked_clients"]

        await testing.eventually_async(waits, "the transaction waits", every_s=0.001)
        await primary.execute_command("REPLICAOF", "127.0.0.1", 1)
        with pytest.raises(Overloaded):
            await task
    await primary.execute_command("REPLICAOF", "NO", "ONE")
    for number in range(1, 4):
        assert await primary.incr("n") == number


async def test_what_an_idempotency_key_stands_for_is_known_after_a_promotion(pair):
    primary, replica, process = pair
    store = IdempotencyStore(primary, 1)
    at_work, done = [await store.begin("a", "M", key, "print") for key in ("k1", "k2")]
    assert await store.finish(done, b"answer")
    with process.standing_still():
        for call in (
            lambda: store.begin("a", "M", "k3", "print"),
            lambda: store.finish(at_work, b"x"),
            # An answer that is there is none yet: whoever stored it may still be waiting for the replica.
            lambda: store.begin("a", "M", "k2", "print"),
            lambda: store.erase("a", "ana"),
        ):
            with pytest.raises(Overloaded):
                await call()
        # What only prolongs or gives up a claim waits for nobody.
        assert await store.renew(done) is False
        await store.abandon(at_work)
    await promoted(replica)
    after = IdempotencyStore(replica)
    assert (await after.begin("a", "M", "k2", "print")).answer == b"answer"


@pytest.mark.parametrize("how", [Overloaded, asyncio.CancelledError])
async def test_a_claim_that_nobody_was_given_keeps_nobody_from_the_key(pair, how, monkeypatch):
    primary, _, process = pair
    store = IdempotencyStore(primary, 1)
    await store.begin("a", "M", "warm", "print")
    if how is asyncio.CancelledError:
        # It is still waited for when the caller leaves.
        monkeypatch.setattr("services.common.valkey_replicas.REPLICA_WAIT_MS", 50_000)

    async def claims():
        return len(await primary.keys("idem:*")) - 1

    with process.standing_still():
        call = asyncio.create_task(store.begin("a", "M", "k", "print"))
        if how is asyncio.CancelledError:
            await testing.eventually_async(claims, "the primary has the claim")
            call.cancel()
        with pytest.raises(how):
            await call

    async def free():
        return not await claims()

    await testing.eventually_async(free, "the claim is given back")
    assert (await store.begin("a", "M", "k", "print")).answer is None


async def test_nothing_is_sealed_with_a_key_that_a_promotion_would_lose(pair, roots):
    primary, replica, process = pair
    envelope, other = Envelope(primary, roots, replicas=1), Envelope(primary, roots, replicas=1)
    sealed = await envelope.seal("a", "ana", "event", b"kept")
    with process.standing_still():
        with pytest.raises(Overloaded):
            await envelope.seal("a", "bob", "event", b"lost")
        # Another process has made it, and waits for the replica still.
        assert await Envelope(primary, roots).seal("a", "bob", "event", b"lost")
        for each in (other, envelope):
            with pytest.raises(Overloaded):
                await each.seal("a", "bob", "event", b"lost")
        assert await envelope.seal("a", "ana", "event", b"at hand")
        with pytest.raises(Overloaded):
            await envelope.erase("a", "cleo")
    again = await other.seal("a", "bob", "event", b"kept as well")
    await promoted(replica)
    after = Envelope(replica, roots)
    assert [await after.open("a", "event", each) for each in (sealed, again)] == [b"kept", b"kept as well"]


async def test_an_audit_record_is_appended_once_a_replica_has_it(pair):
    primary, replica, process = pair
    stream = AuditStream(primary, timedelta(days=1), 1)
    assert await stream.append("a", "one", {"n": 1})
    with process.standing_still():
        for _ in range(2):
            with pytest.raises(Overloaded):
                await stream.append("a", "two", {"n": 2})
    assert await stream.append("a", "two", {"n": 2}) is False
    await promoted(replica)
    assert [entry.record_id for entry in await AuditStream(replica, timedelta(days=1)).read("a")] == ["one", "two"]


async def test_calls_that_wait_at_the_same_time_share_one_wait(pair):
    primary, _, _ = pair
    store = IdempotencyStore(primary, 1)
    await store.begin("a", "M", "k", "print")
    await primary.config_resetstat()
    claims = await asyncio.gather(*(store.begin("a", "M", f"k{n}", "print") for n in range(200)))
    assert len({claim.token for claim in claims}) == 200
    waits = (await primary.info("commandstats"))["cmdstat_waitaof"]["calls"]
    assert 1 <= waits <= 20


async def test_without_replicas_nothing_more_is_sent(pair, roots):
    primary, _, _ = pair
    await primary.config_resetstat()
    accounts, store = Accounts(primary), IdempotencyStore(primary)
    issued = await accounts.create_key(tenant="a", user="u", tier="free", scopes=())
    await accounts.revoke("a", issued.record.key_id)
    await store.finish(await store.begin("a", "M", "k", "print"), b"x")
    await AuditStream(primary, timedelta(days=1)).append("a", "one", {"n": 1})
    await Envelope(primary, roots).seal("a", "ana", "event", b"x")
    sent = await primary.info("commandstats")
    assert not {"cmdstat_wait", "cmdstat_waitaof"} & set(sent)
    # What a revocation tells the other processes.
    assert sent["cmdstat_publish"]["calls"] == 2


async def test_a_call_that_only_reads_waits_for_what_others_wrote(pair, tmp_path):
    primary, _, process = pair
    path = tmp_path / "read.lua"
    path.write_text(
        "#!lua name=reading\nredis.register_function{function_name='read_v1', flags={'no-writes'},"
        " callback=function(keys) return redis.call('GET', keys[1]) end}\n"
    )
    library = Library(primary, path)
    await library.load()
    lasting = Lasting(library, 1)
    assert await lasting.submit("read_v1", ["x"], []) is None
    with process.standing_still():
        await primary.set("x", "by somebody else")
        with pytest.raises(TooFewReplicas) as caught:
            await lasting.submit("read_v1", ["x"], [])
        assert caught.value.answer == b"by somebody else"
    await primary.function_flush()
    assert await lasting.submit("read_v1", ["x"], []) == b"by somebody else"


async def test_an_answer_whose_wait_was_lost_with_its_connection_is_none(pair):
    primary, _, _ = pair
    port = primary.connection_pool.connection_kwargs["port"]
    async with before_store(f"redis://127.0.0.1:{port}/0") as proxy:
        client = connect(proxy.url)
        store = IdempotencyStore(client, 1)
        await store.begin("a", "M", "warm", "print")
        waits = (await primary.info("commandstats"))["cmdstat_wait"]["calls"]
        hold = proxy.hold(b"WAITAOF")
        call = asyncio.create_task(store.begin("a", "M", "k", "print"))
        await hold.reached()

        async def answered():
            return (await primary.info("commandstats")).get("cmdstat_wait", {}).get("calls", 0) > waits

        await testing.eventually_async(answered, "all but the last of it is answered")
        await client.ping()
        proxy.cut()
        with pytest.raises(Overloaded):
            await call
        await client.aclose()


# --- refusals of a server that stands alone ---


def everything(client, roots):
    """A call of each store, each with a tenant of its own."""
    accounts, store, stream = Accounts(client), IdempotencyStore(client), AuditStream(client, timedelta(days=1))
    return {
        "create": lambda: accounts.create_key(tenant="a", user="u", tier="free", scopes=()),
        "team": lambda: accounts.teams.create(TeamRecord("a", "blue"), "blue"),
        "begin": lambda: store.begin("a", "M", "k", "print"),
        "append": lambda: stream.append("a", "one", {"n": 1}),
        "seal": lambda: Envelope(client, roots).seal("a", "ana", "event", b"x"),
        "take": lambda: TokenBuckets(client).take([BUCKET]),
    }


@asynccontextmanager
async def refusing(client, how):
    if how == "OOM":
        await client.config_set("maxmemory", "1mb")
    elif how == "NOREPLICAS":
        await client.config_set("min-replicas-to-write", 1)
    else:
        await client.execute_command("REPLICAOF", "127.0.0.1", 1)
    try:
        yield
    finally:
        await client.config_set("maxmemory", 0)
        await client.config_set("min-replicas-to-write", 0)
        await client.execute_command("REPLICAOF", "NO", "ONE")


@pytest.mark.parametrize("how", ["OOM", "NOREPLICAS", "READONLY"])
async def test_what_a_server_refuses_for_now_is_an_overload_and_no_defect(valkey, roots, how):
    for name, call in everything(valkey, roots).items():
        async with refusing(valkey, how):
            with pytest.raises(Overloaded) as caught:
                await call()
            assert (caught.value.reason, caught.value.metadata) == ("STORE_UNAVAILABLE", {"store": "state"}), name
        await call()


@pytest.mark.parametrize(
    "message",
    [
        "MISCONF Errors writing to the AOF file: No space left on device",
        "NOREPLICAS Not enough good replicas to write.",
        "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
        "ERR WAITAOF cannot be used with replica instances. Please also note that since Redis 4.0",
        "Command # 1 (SET x y) of pipeline caused error: ('NOREPLICAS Not enough good replicas to write.',)",
    ],
)
async def test_words_of_a_refusal(valkey, message):
    async def refuse():
        raise ResponseError(message)

    with pytest.raises(Overloaded):
        await asked(valkey, refuse())


@pytest.mark.parametrize("message", ["WRONGTYPE Operation against a key", "ERR unknown command", "BUSYGROUP Consumer Group name exists"])
async def test_a_defect_stays_one(valkey, message):
    async def fail():
        raise ResponseError(message)

    with pytest.raises(ResponseError):
        await asked(valkey, fail())
    assert not refused(None)


@pytest.mark.parametrize("settings", [LlmSettings, MemorySettings])
def test_production_does_not_start_without_replicas_of_the_state_store(settings):
    def problems(**fields):
        return [problem for problem in settings(**fields).problems() if "STATE_REPLICAS" in problem]

    for fields in ({"env": "prod"}, {"least_state_replicas": 2, "state_replicas": 1}):
        assert len(problems(**fields)) == 1
    for fields in ({"env": "local"}, {"env": "staging"}, {"env": "prod", "state_replicas": 1}):
        assert problems(**fields) == []
