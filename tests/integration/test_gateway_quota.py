"""/v1/quota over real HTTP and real gRPC, with an orchestrator in memory."""

import aiohttp
import pytest
from bulkhead.orchestrator.v1 import admin_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.gateway import fakes


@pytest.fixture
async def served(identities, _state_server):
    async with fakes.gateway(identities, _state_server) as gateway:
        yield gateway


async def test_what_is_used_is_told_beside_its_limit(served):
    served.log.records.quota = pb.GetQuotaResponse(
        tier="free", concurrent_runs=pb.Allowance(used=2, limit=5), queued_runs=pb.Allowance(used=0, limit=0),
        delayed_runs=pb.Allowance(used=7), task_time=Duration(seconds=60, nanos=500_000_000),
    )  # fmt: skip
    async with aiohttp.ClientSession(served.url, headers=served.headers()) as http:
        async with http.get("/v1/quota") as response:
            assert response.status == 200
            assert await response.json() == {
                "tier": "free",
                "concurrent_runs": {"used": 2, "limit": 5},
                "queued_runs": {"used": 0, "limit": 0},
                "delayed_runs": {"used": 7, "limit": None},
                "task_time_ms": 60_500,
            }
        served.log.records.quota.ClearField("task_time")
        async with http.get("/v1/quota") as response:
            assert (await response.json())["task_time_ms"] is None


async def test_it_takes_the_scope_to_read_runs_and_no_parameter(served):
    async with aiohttp.ClientSession(served.url) as http:
        headers = {"authorization": f"Bearer {await served.issue(scopes=('threads:read',))}"}
        async with http.get("/v1/quota", headers=headers) as response:
            assert (response.status, (await response.json())["missing_scopes"]) == (403, "runs:read")
        async with http.get("/v1/quota?tenant=globex", headers=served.headers()) as response:
            assert (response.status, (await response.json())["errors"][0]["field"]) == (400, "tenant")
