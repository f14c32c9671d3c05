"""The shared level on a real Valkey of the kind cache: replicas share it, erasure is complete, and its death is nobody's."""

import signal
import time

import pytest
import pytest_asyncio

from services.common import testing
from services.common.errors import Overloaded
from services.common.valkey import connect
from services.llm_gateway.adapters.answer_cache import PAUSE_S, AnswerCache
from services.llm_gateway.adapters.disk_cache import DiskCache
from services.llm_gateway.caching import owner_of
from services.llm_gateway.caching_levels import Levels
from services.llm_gateway.caching_memory import MemoryCache
from services.llm_gateway.caching_records import Record

ANA, BEN = owner_of("ana"), owner_of("ben")


@pytest.fixture(scope="module")
def cache_server():
    with testing.valkey_server("cache") as (url, process):
        yield url, process


@pytest_asyncio.fixture
async def client(cache_server):
    made = connect(cache_server[0])
    await made.flushall()
    yield made
    await made.aclose()


@pytest_asyncio.fixture
async def store(client):
    made = AnswerCache(client, timeout_s=1.0)
    await made.start()
    yield made
    await made.stop()


async def kept(store, tenant, key):
    async def there():
        return (await store.get(tenant, [key]))[0]

    return await testing.eventually_async(there, f"{key} is kept")


async def test_replicas_share_answers(layers, store):
    one, two = layers.cached(store, memory=MemoryCache()), layers.cached(store, memory=MemoryCache())
    async with layers.as_user():
        first = await one.complete(layers.chat())
        await store.stop()
        again = await two.complete(layers.chat())
        assert (again.outcome.cached, again.answer.raw) == ("exact", first.answer.raw)
        assert await layers.asked() == 1
        raws, _, _ = await layers.collected(one.stream(layers.chat("a stream")))
        await store.stop()
        assert (await layers.collected(two.stream(layers.chat("a stream"))))[0] == raws


async def test_what_is_kept_ends_and_belongs_to_somebody(store, client):
    store.put("acme", [("k1", b"one"), ("k2", b"two")], ANA, 60.0)
    store.put("acme", [("k3", b"three")], BEN, 60.0)
    store.put("globex", [("k1", b"foreign")], ANA, 60.0)
    await kept(store, "globex", "k1")
    assert await store.get("acme", ["k1", "nothing", "k3"]) == [b"one", None, b"three"]
    assert {name.split(b":")[1] for name in await client.keys()} == {b"{acme}", b"{globex}"}
    assert all([0 < await client.pttl(name) <= 60_000 for name in await client.keys()])
    assert await store.erase("acme", ANA) == 2
    assert await store.get("acme", ["k1", "k2", "k3"]) == [None, None, b"three"]
    assert await store.get("globex", ["k1"]) == [b"foreign"]


async def test_nothing_is_given_out_whose_owners_index_the_store_has_dropped(store, client):
    store.put("acme", [("k1", b"one")], ANA, 60.0)
    await kept(store, "acme", "k1")
    await client.delete(f"llmc:{{acme}}:o:{ANA}")
    assert await store.get("acme", ["k1"]) == [None]
    assert await client.keys() == []


async def test_erasure_on_one_replica_reaches_the_memory_of_another(layers, store, monkeypatch):
    monkeypatch.setattr("services.llm_gateway.caching_levels.TRUSTED_S", 0.0)
    one, two = layers.cached(store, memory=MemoryCache()), layers.cached(store, memory=MemoryCache())
    async with layers.as_user():
        await one.complete(layers.chat())
        await store.stop()
        assert (await two.complete(layers.chat())).outcome.cached == "exact"
        assert await one.erase("acme", "ana") == 1
        assert (await two.complete(layers.chat())).outcome.cached == ""


async def test_what_expired_here_another_replica_may_have_made_anew(layers, store):
    one, two = layers.cached(store, memory=MemoryCache()), layers.cached(store, memory=MemoryCache())
    async with layers.as_user():
        for caches in (one, two):
            await caches.complete(layers.chat())
            await store.stop()
        layers.clock.now += 150
        assert (await one.complete(layers.chat())).outcome.cached == ""
        await store.stop()
        assert (await two.complete(layers.chat())).outcome.cached == "exact"


async def test_what_was_erased_elsewhere_leaves_the_memory(store, monkeypatch):
    monkeypatch.setattr("services.llm_gateway.caching_levels.TRUSTED_S", 0.0)
    memory = MemoryCache()
    levels = Levels(memory, store)
    levels.put("acme", [("k1", Record("answer", b"x", 1.0, 9e9, ANA, "d", "g"))], 60.0)
    await kept(store, "acme", "k1")
    assert (await levels.get("acme", ["k1"]))[0].body == b"x"
    await store.erase("acme", ANA)
    assert await levels.get("acme", ["k1"]) == [None]
    assert len(memory) == 0


async def test_a_store_that_hangs_slows_nobody_down(layers):
    with testing.valkey_server("cache") as (url, process):
        client = connect(url)
        store = AnswerCache(client)
        await store.start()
        caches = layers.cached(store, memory=MemoryCache(max_entries=0))
        async with layers.as_user():
            await caches.complete(layers.chat("warm"))
            process.signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                for number in range(20):
                    assert (await caches.complete(layers.chat(f"question {number}"))).outcome.cached == ""
                elapsed_s = time.monotonic() - began
                assert store.away
                # Three calls wait 50 ms each; a second each would be 20 s.
                assert elapsed_s < PAUSE_S
                with pytest.raises(Overloaded):
                    await store.erase("acme", ANA)
            finally:
                process.signal(signal.SIGCONT)
        await client.aclose()


async def test_a_store_that_is_gone_and_comes_back(layers, tmp_path):
    memory = MemoryCache(max_entries=0)
    with testing.valkey_server("cache") as (url, process):
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        client = connect(url)
        store = AnswerCache(client, timeout_s=0.5, pause_s=0.2)
        caches = layers.cached(store, memory=memory)
        process.kill()
        async with layers.as_user():
            for number in range(5):
                await caches.complete(layers.chat(f"question {number}"))
            assert store.away
            with testing.valkey_server("cache", port, tmp_path):

                async def shared():
                    return (await caches.complete(layers.chat())).outcome.cached == "exact"

                await testing.eventually_async(shared, "the store is used again", every_s=0.1)
        await client.aclose()


async def test_the_disk_answers_after_a_restart(layers, tmp_path):
    async def caches():
        disk = DiskCache(tmp_path / "answers", clock=layers.clock)
        await disk.start()
        return disk, layers.cached(disk=disk, memory=MemoryCache())

    async with layers.as_user():
        disk, one = await caches()
        await one.complete(layers.chat())
        await disk.stop()
        disk, two = await caches()
        assert (await two.complete(layers.chat())).outcome.cached == "exact"
        assert await two.erase("acme", "ana") == 1
        assert not [path for path in (tmp_path / "answers").rglob("*") if path.is_file()]
        await disk.stop()
    assert await layers.asked() == 1


async def test_erasure_is_complete_where_the_store_has_dropped_indexes(store, client):
    await client.config_set("maxmemory", "3mb")
    try:
        number = 0
        while not int((await client.info("stats"))["evicted_keys"]):
            store.put("acme", [(f"{number:04x}", b"x" * 20_000)], ANA if number % 2 else BEN, 60.0)
            await store.stop()
            number += 1
            assert number < 1_000
        await client.delete(f"llmc:{{acme}}:o:{ANA}")
        assert await store.erase("acme", ANA) > 0
        owners = [await client.hget(name, "o") for name in await client.keys("llmc:*:a:*")]
        assert owners
        assert ANA.encode() not in owners
    finally:
        await client.config_set("maxmemory", "256mb")
