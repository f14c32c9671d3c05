"""A state store whose memory is full: tool calls of runs that were accepted are made, and every other one is refused."""

from dataclasses import replace
from datetime import timedelta

import pytest

from services.common import testing
from services.common.audit import AuditStream
from services.common.errors import Overloaded, QuotaExceeded
from tests.integration.tool_executor.harness import DONE, executor, http_tool, write_config

ANA = testing.principal_of(tier="free")
OF_RUN = replace(ANA, run_id="r")


@pytest.fixture
async def tools(tmp_path, state_url, identities, outside):
    write_config(tmp_path, [http_tool(outside, "order", "/order"), http_tool(outside, "read", "/read", annotations={"read_only": True})])
    async with executor(tmp_path, state_url, identities, audit_days=1, policy_set="test") as client:
        yield client


async def test_calls_of_runs_are_made_once_counted_and_recorded_while_memory_is_full(tools, valkey, identities, outside):
    with testing.calling(identities, replace(ANA, user="before")):
        # The functions are there since the executor was called first.
        assert (await tools.result("order", key="k")).outcome == DONE
    outside.seen.clear()
    await valkey.config_set("maxmemory", "1mb")
    try:
        with testing.calling(identities, OF_RUN):
            first, again = [await tools.result("order", {"n": 1}, "r/1/0") for _ in range(2)]
            assert (first.outcome, again.replayed, again.output_json) == (DONE, True, first.output_json)
            assert (await tools.result("read", key="r/1/1")).outcome == DONE
            assert (await tools.known("r/1/0")).output_json == first.output_json
            with pytest.raises(QuotaExceeded):
                await tools.result("read", key="r/1/2")
        with testing.calling(identities, replace(ANA, user="direct", run_id="")):
            with pytest.raises(Overloaded) as refused:
                await tools.result("order", key="direct", run_id="r")
        assert refused.value.reason == "STORE_UNAVAILABLE"
    finally:
        await valkey.config_set("maxmemory", "0")
    assert [request.path for request in outside.seen] == ["/order", "/read"]
    records = [entry.record_id for entry in await AuditStream(valkey, timedelta(days=1)).read("acme")]
    assert records[1:3] == ["tool/r/1/0", "tool/r/1/1"]
