"""How calls of the state store share pipelines, on a real Valkey."""

import asyncio
from contextlib import asynccontextmanager

from services.common.valkey import Library, connect
from services.common.valkey_pipelines import MOST_PIPELINES
from services.orchestrator.testing.store_proxy import before_store


@asynccontextmanager
async def _libraries(url, tmp_path):
    """(proxy before the store, two libraries of one client)."""
    async with before_store(url) as proxy:
        client, found = connect(proxy.url, timeout_s=30.0), []
        try:
            for name in ("one", "two"):
                path = tmp_path / f"{name}.lua"
                path.write_text(f"#!lua name={name}\nredis.register_function('{name}_v1', function() return '{name}' end)\n")
                found.append(Library(client, path))
            one, two = found
            await asyncio.gather(one.batched("one_v1", ["k"], []), two.batched("two_v1", ["k"], []))
            yield proxy, one, two
        finally:
            await client.aclose()


async def test_what_is_called_while_the_store_is_at_work_goes_together_whatever_library_it_is_of(state_url, valkey, tmp_path):
    async with _libraries(state_url, tmp_path) as (proxy, one, two):
        reads = (await valkey.info("stats"))["total_reads_processed"]
        hold = proxy.hold(b"one_v1")
        calls = [one.submit("one_v1", ["k"], [])]
        await hold.reached()
        for _ in range(20):
            await asyncio.sleep(0)
            calls += [one.submit("one_v1", ["k"], []), two.submit("two_v1", ["k"], [])]
        hold.release()
        assert await asyncio.gather(*calls) == [b"one", *[b"one", b"two"] * 20]
        assert (await valkey.info("stats"))["total_reads_processed"] - reads <= MOST_PIPELINES + 1


async def test_a_call_that_is_held_up_on_its_way_holds_up_no_others(state_url, tmp_path):
    async with _libraries(state_url, tmp_path) as (proxy, one, two):
        hold = proxy.hold(b"one_v1")
        first = one.submit("one_v1", ["k"], [])
        await hold.reached()
        async with asyncio.timeout(20):
            assert await two.batched("two_v1", ["k"], []) == b"two"
            assert await two.batched("two_v1", ["k"], []) == b"two"
        assert not first.done()
        hold.release()
        assert await first == b"one"


async def test_an_emptied_store_gets_every_library_of_a_pipeline_again(state_url, valkey, tmp_path):
    async with _libraries(state_url, tmp_path) as (_, one, two):
        await valkey.function_flush()
        calls = [library.submit(f"{name}_v1", ["k"], []) for library, name in ((one, "one"), (two, "two"), (one, "one"))]
        assert await asyncio.gather(*calls) == [b"one", b"two", b"one"]
