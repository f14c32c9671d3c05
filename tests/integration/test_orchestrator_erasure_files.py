"""What an erasure leaves in the files of the state store goes with the next rewrite of these, which is asked for, seldom."""

import asyncio
from contextlib import asynccontextmanager
from unittest import mock

import psutil
import pytest
from bulkhead.orchestrator.v1 import admin_pb2 as pb
from bulkhead.orchestrator.v1 import admin_pb2_grpc as rpc

from services.common import testing
from services.common.errors import Overloaded
from services.common.valkey import connect
from services.orchestrator import erasure
from services.orchestrator.adapters.erasure_files import ValkeyFiles, _watched
from services.orchestrator.adapters.erasure_store import FILES, ValkeyErasures
from services.orchestrator.erasure_files import NOT_YET, Outcome, Rewriting
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests import raw_content

ANA, BOB = testing.principal_of(user="anaquest"), testing.principal_of(user="bobquest")


@pytest.fixture
def server(tmp_path):
    """(URL, folder of its files, process) of a store of this test's own."""
    folder = tmp_path / "files"
    folder.mkdir()
    with testing.valkey_server(folder=folder) as (url, process):
        yield url, folder, process


@asynccontextmanager
async def connected(url):
    client = connect(url)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def client(server):
    async with connected(server[0]) as made:
        yield made


def on(client, **options):
    """(What keeps that files are wanted, who looks)."""
    store = ValkeyErasures(client, "one")
    return store, Rewriting(store, ValkeyFiles(client), **{"least_s": 0.0, "again_s": 0.0, **options})


async def rewrites(client):
    """How often the server has begun to write its file anew."""
    return int((await client.info("persistence"))["aof_rewrites"])


async def outcomes(rewriting):
    """What the next look that is due brings, by server."""

    async def looked():
        return {server: outcome for server, outcome, _ in await rewriting.look()}

    return await testing.eventually_async(looked, "files are asked for")


async def test_no_file_of_the_store_has_the_words_of_an_erased_user(identities, behind, server, tmp_path, monkeypatch):
    url, folder, _ = server
    monkeypatch.setattr(erasure, "FILES_SETTLED_S", 0.1)
    async with connected(url) as client:
        # Packed words are not found by whoever searches the file.
        await client.config_set("rdbcompression", "no")
    settings = settings_for(identities, behind, url, write_config(tmp_path / "config"))

    def found(word):
        return [name for name, content in raw_content.of_folder(folder) if word in content]

    async with (
        served(settings, identities, ANA) as ana,
        testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer,
    ):
        bob = type(ana)(dialer, identities, BOB)
        for client, word in ((ana, "swordfish"), (bob, "haddock")):
            await client.wait((await client.start(f"say {word}", thread_id=f"t-{word}")).run_id)
        assert found(b"swordfish")
        with testing.calling(identities):
            await rpc.AdminServiceStub(dialer.channel("orchestrator")).ForgetSubject(pb.ForgetSubjectRequest(user="anaquest"))
        await testing.eventually_async(lambda: not found(b"swordfish") and not found(b"anaquest"), "the files are written anew")
        assert found(b"haddock")


async def test_erasures_share_a_rewrite_and_whoever_asks_does_so_alone(client):
    store, often = on(client)
    _, seldom = on(client, least_s=300.0, again_s=30.0)
    before = await rewrites(client)
    assert await often.look() == ()
    await asyncio.gather(*(store.want_files(0.0) for _ in range(5)))
    assert sorted(map(len, await asyncio.gather(seldom.look(), seldom.look()))) == [0, 1]
    assert await rewrites(client) == before + 1
    assert await often.look() == ()
    # One that comes right after it is not forgotten, and waits.
    await store.want_files(0.0)
    assert await seldom.look() == ()
    assert await outcomes(often) == {"primary": Outcome.REWRITTEN}
    assert await rewrites(client) == before + 2


async def test_nothing_is_asked_for_before_the_last_write_of_the_erasure_is_behind_it(client):
    store, rewriting = on(client)
    await store.want_files(60.0)
    await store.want_files(0.0)
    assert await rewriting.look() == ()


async def test_erasures_that_keep_coming_do_not_put_it_off(client):
    store, rewriting = on(client)

    async def one_more():
        await store.want_files(0.5)
        return await rewriting.look()

    (told,) = await testing.eventually_async(one_more, "files are asked for")
    assert told.outcome == Outcome.REWRITTEN
    # What came last stands behind it, and waits.
    assert await rewriting.look() == ()
    assert await outcomes(rewriting) == {"primary": Outcome.REWRITTEN}
    assert await rewriting.look() == ()


async def test_what_the_version_before_wanted_is_asked_for(client):
    _, rewriting = on(client)
    await client.hset(FILES, mapping={"schema_version": 1, "wanted_ms": 1})
    assert await outcomes(rewriting) == {"primary": Outcome.REWRITTEN}
    assert await rewriting.look() == ()


async def test_a_server_that_is_lost_while_it_writes_is_asked_again(server, client):
    _, _, process = server
    for n in range(20):
        await client.set(f"k{n}", "v")
    await client.config_set("rdb-key-save-delay", 1_000_000)
    begun, asked = await rewrites(client), asyncio.create_task(ValkeyFiles(client).rewrite(60.0))

    async def at_work():
        return await rewrites(client) > begun

    await testing.eventually_async(at_work, "it writes")
    for one in (*psutil.Process(process.pid).children(), process):
        one.kill()
    ((name, outcome, _),) = await asked
    assert (name, outcome, outcome in NOT_YET) == ("primary", Outcome.FAILED, True)


async def test_a_server_that_was_started_again_while_it_was_to_write_has_not_written(client):
    # Nothing was begun since, and all is well.
    assert await _watched(client, 5.0, await rewrites(client)) == Outcome.FAILED
    assert await _watched(client, 5.0, await rewrites(client) - 1) == Outcome.REWRITTEN


async def test_a_rewrite_that_began_before_is_waited_for_and_another_follows(server, client):
    store, rewriting = on(client)
    for n in range(20):
        await client.set(f"k{n}", "v")
    await client.config_set("rdb-key-save-delay", 1_000_000)
    await client.execute_command("BGREWRITEAOF")
    await store.want_files(0.0)
    assert await outcomes(rewriting) == {"primary": Outcome.BUSY}
    before = await rewrites(client)
    await client.config_set("rdb-key-save-delay", 0)
    # It goes on slowly, as it began; this ends it.
    for child in psutil.Process(server[2].pid).children():
        child.kill()
    while (outcome := await outcomes(rewriting)) == {"primary": Outcome.BUSY}:
        pass
    assert outcome == {"primary": Outcome.REWRITTEN}
    assert await rewrites(client) == before + 1
    assert await rewriting.look() == ()


async def test_whoever_dies_while_it_asks_leaves_it_to_another(client):
    store, rewriting = on(client, again_s=0.3)
    await store.want_files(0.0)
    assert await store.take_files(0.3, 0.0)
    assert await outcomes(rewriting) == {"primary": Outcome.REWRITTEN}


async def test_where_it_is_not_allowed_or_there_is_no_file_that_is_told_and_nobody_asks_again(server, client):
    store, rewriting = on(client)
    await client.execute_command("ACL", "SETUSER", "plain", "on", ">secret", "~*", "&*", "+@all", "-bgrewriteaof")
    async with connected(server[0].replace("redis://", "redis://plain:secret@")) as plain:
        files = ValkeyFiles(plain)
        await store.want_files(0.0)
        (told,) = await testing.eventually_async(Rewriting(store, files, least_s=0.0, again_s=0.0).look, "files are asked for")
        assert (told.server, told.outcome) == ("primary", Outcome.REFUSED)
        assert "bgrewriteaof" in told.detail
        await client.execute_command("ACL", "SETUSER", "plain", "-role")
        assert {told.outcome for told in await files.rewrite(1.0)} == {Outcome.REFUSED}
    assert await rewriting.look() == ()
    await client.config_set("appendonly", "no")
    await store.want_files(0.0)
    assert await outcomes(rewriting) == {"primary": Outcome.NO_FILE}
    assert await rewriting.look() == ()


async def test_replicas_write_their_files_anew_and_one_out_of_reach_is_told(client):
    store, rewriting = on(client)
    await client.config_set("repl-diskless-sync-delay", 0)
    with testing.valkey_server() as (url, _):
        async with connected(url) as replica:
            port = url.rsplit(":", 1)[1].split("/")[0]
            primary = client.connection_pool.connection_kwargs["port"]
            await replica.execute_command("REPLICAOF", "127.0.0.1", primary)

            async def follows():
                told, own = await replica.info("replication"), await replica.info("persistence")
                return told["master_link_status"] == "up" and not own["aof_rewrite_in_progress"] and not own["aof_rewrite_scheduled"]

            await testing.eventually_async(follows, "the replica follows")
            before = await rewrites(replica)
            await store.want_files(0.0)
            assert await outcomes(rewriting) == {"primary": Outcome.REWRITTEN, f"replica 127.0.0.1:{port}": Outcome.REWRITTEN}
            assert await rewrites(replica) == before + 1
            # Behind a translated address.
            away = testing.free_port()
            await replica.config_set("replica-announce-port", away)
            await replica.execute_command("REPLICAOF", "NO", "ONE")
            await replica.execute_command("REPLICAOF", "127.0.0.1", primary)

            async def announced():
                return (await client.execute_command("ROLE"))[2] == [[b"127.0.0.1", str(away).encode(), mock.ANY]]

            await testing.eventually_async(announced, "it is known by another port")
            await store.want_files(0.0)
            assert await outcomes(rewriting) == {"primary": Outcome.REWRITTEN, f"replica 127.0.0.1:{away}": Outcome.UNREACHABLE}
            assert await rewriting.look() == ()


async def test_a_store_that_is_away_is_asked_when_it_is_back():
    async with connected(f"redis://127.0.0.1:{testing.free_port()}/0") as away:
        with pytest.raises(Overloaded):
            await on(away)[1].look()
        with pytest.raises(Overloaded):
            await ValkeyFiles(away).rewrite(1.0)
