"""SIGKILL around the keeping of what a tool shows, and of what a user sends: one blob, one event, and nothing left behind."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import BulkheadError, Conflict
from services.orchestrator.adapters.blob_records import DUE
from services.orchestrator.testing.harness import data_of
from services.orchestrator.testing.replicas import Replica
from services.orchestrator.testing.whole_threads import delete
from tests.integration.blob_client import Blobs, contents, encoded, png, sealing_keys
from tests.integration.rows import ASK, rows_outside

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]
IMAGE = {"type": "image", "data": encoded(png(7, 5)), "mimeType": "image/png", "alt": "a square"}
ROWS = orjson.dumps({"content": [IMAGE, {"type": "code", "language": "x", "text": "y"}]})


@asynccontextmanager
async def two(identities, behind, state_url, tmp_path):
    """Two replicas with one folder; encrypted, so that no two owners write the same bytes; and what the tool's server saw."""
    async with AsyncExitStack() as stack:
        outside, config = await stack.enter_async_context(rows_outside(identities, behind, state_url, tmp_path, ROWS))
        fields = {"segments_dir": tmp_path / "blobs", "envelope_keys_file": sealing_keys(tmp_path), "crash_budget": 20}
        replicas = [Replica(name, identities, behind, config, tmp_path, state_url, **fields) for name in ("first", "second")]
        for replica in replicas:
            await stack.enter_async_context(replica.there())
        yield *replicas, outside


@pytest.mark.parametrize(
    ("parts", "written"),
    [
        ((b"blob_begin_v1",), True),
        ((b"blob_kept_v1",), False),
        ((b"blob_kept_v1",), True),
        ((b"run_write_v1", b"tool_call_completed"), False),
        ((b"run_write_v1", b"tool_call_completed"), True),
    ],
    ids=["before-the-content", "behind-the-content", "behind-the-record", "before-the-event", "behind-the-event"],
)
async def test_an_owner_that_is_killed_while_it_keeps_an_image(identities, behind, state_url, valkey, tmp_path, parts, written):
    async with two(identities, behind, state_url, tmp_path) as (first, second, outside):
        held = first.proxy.hold(*parts, answer=written, late=False)
        run = await first.client.start(ASK, agent="reader", thread_id="t1")
        await held.reached()
        first.process.kill()
        done = await second.client.wait(run.run_id)
        assert (done.status, done.attempt) == (pb.RUN_STATUS_SUCCEEDED, 2)
        assert len(outside.seen) == 1
        log = await second.client.log(run.run_id)
        kinds = [event.type for event in log if event.type in ("tool_call_completed", "image", "code_block", "warning")]
        assert kinds == ["tool_call_completed", "image", "code_block"]
        (image,) = [data_of(event) for event in log if event.type == "image"]
        async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{second.settings.grpc_port}"}) as dialer:
            blob, content = await Blobs(dialer, identities).read(image["blob_id"])
            assert (content, blob.thread_id) == (png(7, 5), "t1")
            assert len(contents(tmp_path / "blobs")) == 1
            assert await valkey.get("tn:{acme}:blob-bytes") == str(len(content)).encode()
            assert await delete(second.client, "t1")
        assert not contents(tmp_path / "blobs")
        assert set(await valkey.keys("*blob*")) <= {DUE.encode()}


@pytest.mark.parametrize("keyed", [False, True])
async def test_a_process_that_is_killed_while_a_user_sends_leaves_nothing_or_what_the_user_then_gets(
    identities, behind, state_url, valkey, tmp_path, keyed
):
    key = {"idempotency_key": "k"} if keyed else {}
    async with two(identities, behind, state_url, tmp_path) as (first, second, _), AsyncExitStack() as stack:
        callers = []
        for replica in (first, second):
            addresses = {"orchestrator": f"127.0.0.1:{replica.settings.grpc_port}"}
            callers.append(Blobs(await stack.enter_async_context(testing.dialer("gateway", addresses)), identities))
        held = first.proxy.hold(b"blob_kept_v1", answer=False, late=False)
        sending = asyncio.create_task(callers[0].put(png(), **key))
        await held.reached()
        first.process.kill()
        with pytest.raises(BulkheadError):
            await sending
        assert len(contents(tmp_path / "blobs")) == 1
        if keyed:

            async def sent_again():
                try:
                    return await callers[1].put(png(), **key)
                except Conflict:
                    # The dead process has the key for a while.
                    return None

            blob = await testing.eventually_async(sent_again, "the key is free again", every_s=0.5)
            assert len(contents(tmp_path / "blobs")) == 1
            assert (await callers[1].read(blob.blob_id))[1] == png()
            return
        # Five minutes pass.
        for record in await valkey.keys("tn:*:blob:blob_*"):
            await valkey.hset(record, "created_ms", 1)
        await valkey.zadd(DUE, dict.fromkeys(await valkey.zrange(DUE, 0, -1), 0), xx=True)
        await testing.eventually_async(lambda: not contents(tmp_path / "blobs"), "whoever looks removes it")

        async def forgotten():
            return not await valkey.keys("tn:*blob*")

        await testing.eventually_async(forgotten, "and its record")
