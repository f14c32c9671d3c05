"""/v1/quota over real HTTP and real gRPC, with an orchestrator in memory."""

import aiohttp
import pytest
from bulkhead.llm.v1 import llm_pb2
from bulkhead.orchestrator.v1 import admin_pb2 as pb
from google.protobuf.duration_pb2 import Duration

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_what_is_used_is_told_beside_its_limit(ana, front):
    front.log.records.quota = pb.GetQuotaResponse(
        tier="free", concurrent_runs=pb.Allowance(used=2, limit=5), queued_runs=pb.Allowance(used=0, limit=0),
        delayed_runs=pb.Allowance(used=7), task_time=Duration(seconds=60, nanos=500_000_000),
    )  # fmt: skip
    front.log.records.budget = llm_pb2.GetBudgetResponse()
    async with ana.get("/v1/quota") as response:
        assert response.status == 200
        assert await response.json() == {
            "tier": "free",
            "concurrent_runs": {"used": 2, "limit": 5},
            "queued_runs": {"used": 0, "limit": 0},
            "delayed_runs": {"used": 7, "limit": None},
            "task_time_ms": 60_500,
            "budgets": [],
            "rate_limits": [],
        }
    front.log.records.quota.ClearField("task_time")
    async with ana.get("/v1/quota") as response:
        assert (await response.json())["task_time_ms"] is None


async def test_it_takes_the_scope_to_read_runs_and_no_parameter(front):
    async with aiohttp.ClientSession(front.url) as http:
        headers = {"authorization": f"Bearer {await front.issue(scopes=('threads:read',))}"}
        async with http.get("/v1/quota", headers=headers) as response:
            assert (response.status, (await response.json())["missing_scopes"]) == (403, "runs:read")
        async with http.get("/v1/quota?tenant=globex", headers=front.headers()) as response:
            assert (response.status, (await response.json())["errors"][0]["field"]) == (400, "tenant")


async def test_money_and_rates_are_as_the_llm_gateway_tells_them(ana, front):
    told = llm_pb2.GetBudgetResponse()
    told.budgets.add(scope="key", scope_id="k1", period="1d", limit_microusd=5, spent_microusd=2, reserved_microusd=1)
    told.budgets[0].resets_at.FromSeconds(1_900_000_000)
    told.budgets.add(scope="user", scope_id="ana", limit_microusd=9)
    told.limits.add(scope="key", scope_id="k1", kind="requests_per_minute", limit=60, remaining=59)
    told.limits[0].reset_after.FromMilliseconds(1500)
    told.limits.add(scope="key", scope_id="k1", kind="concurrency", limit=3, remaining=3)
    front.log.records.budget = told
    async with ana.get("/v1/quota") as response:
        found = await response.json()
    assert found["budgets"] == [
        {"scope": "key", "scope_id": "k1", "period": "1d", "limit_microusd": 5, "spent_microusd": 2, "reserved_microusd": 1,
         "resets_at": "2030-03-17T17:46:40.000000Z"},
        {"scope": "user", "scope_id": "ana", "period": None, "limit_microusd": 9, "spent_microusd": 0, "reserved_microusd": 0,
         "resets_at": None},
    ]  # fmt: skip
    assert [limit["reset_after_ms"] for limit in found["rate_limits"]] == [1500, None]
    first = found["rate_limits"][0]
    assert (first["scope"], first["kind"], first["limit"], first["remaining"]) == ("key", "requests_per_minute", 60, 59)
    # Half of the truth would read as if nothing else limited the caller.
    front.log.records.budget = None
    async with ana.get("/v1/quota") as response:
        problem = await response.json()
    assert (response.status, problem["reason"], problem["retryable"]) == (503, "STORE_UNAVAILABLE", True)
