"""SIGKILL around the checkpoint of a large result: nothing is lost or asked for twice, and what was put aside for nothing is removed."""

import base64
from contextlib import AsyncExitStack

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.orchestrator.adapters.store_keys import RESULTS
from services.orchestrator.testing.harness import data_of
from services.orchestrator.testing.replicas import Replica
from services.orchestrator.turn.results import cut
from tests.integration.rows import ASK, rows_outside

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]
ROWS = orjson.dumps({"rows": ["swordfish4711"] * 13_000})


@pytest.mark.parametrize("written", [False, True], ids=["before", "after"])
async def test_an_owner_that_is_killed_before_or_after_the_checkpoint(identities, behind, state_url, valkey, tmp_path, written):
    keys, blobs = tmp_path / "roots.json", tmp_path / "blobs"
    # Encrypted, no two owners put the same aside.
    keys.write_bytes(orjson.dumps({"keys": [{"id": "1", "key": base64.b64encode(bytes(32)).decode()}]}))

    def put_aside():
        return {path for path in blobs.glob("*/*-results/*") if path.is_file()}

    async with AsyncExitStack() as stack:
        outside, config = await stack.enter_async_context(rows_outside(identities, behind, state_url, tmp_path, ROWS))
        fields = {"segments_dir": blobs, "segments_after_s": 0.2, "envelope_keys_file": keys, "crash_budget": 20}
        first, second = [Replica(name, identities, behind, config, tmp_path, state_url, **fields) for name in ("first", "second")]
        for replica in (first, second):
            await stack.enter_async_context(replica.there())
        held = first.proxy.hold(b"run_write_v1", b"tool_call_completed", answer=written, late=False)
        run = await first.client.start(ASK, agent="reader", thread_id="t1")
        await held.reached()
        first.process.kill()
        before = put_aside()
        assert len(before) == 1, "it is there before the checkpoint that names it"
        done = await second.client.wait(run.run_id)
        assert (done.status, done.attempt) == (pb.RUN_STATUS_SUCCEEDED, 2)
        assert done.output_text == f"given {len(cut(ROWS.decode()))}"
        assert len(outside.seen) == 1
        log = await second.client.log(run.run_id)
        assert [data_of(event)["output"] for event in log if event.type == "tool_call_completed"] == [orjson.loads(ROWS)]
        # Its run is looked at in a minute.
        assert await valkey.zcard(RESULTS) == 1
        await valkey.zadd(RESULTS, dict.fromkeys(await valkey.zrange(RESULTS, 0, -1), 0), xx=True)
        await testing.eventually_async(lambda: len(put_aside()) == 1, "what nothing points to is gone")
        assert (put_aside() == before) == written
        assert await second.client.log(run.run_id) == log
