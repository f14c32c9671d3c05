"""/v1/erasures over real HTTP and real gRPC, with an orchestrator in memory."""

import aiohttp
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_an_erasure_is_accepted_and_its_receipt_is_read(ana, front):
    async with ana.post("/v1/erasures", json={"user": "bo"}, headers={"idempotency-key": "k-bo"}) as response:
        assert response.status == 202, await response.text()
        begun = await response.json()
        assert response.headers["location"] == f"/v1/erasures/{begun['erasure_id']}"
    asked = front.log.records.asked[-1]
    assert (asked.user, asked.idempotency_key) == ("bo", "k-bo")
    async with ana.get(response.headers["location"]) as response:
        receipt = await response.json()
    assert receipt == begun
    memory, orchestrator = receipt["parts"]
    assert memory == {"service": "memory", "state": "pending", "attempts": 1, "last_reason": "UNREACHABLE", "done_at": None, "erased": {}}
    assert (orchestrator["state"], orchestrator["erased"], orchestrator["last_reason"]) == ("done", {"threads": 2}, None)
    assert orchestrator["done_at"]
    assert (receipt["state"], receipt["subject_digest"], receipt["done_at"]) == ("pending", "d1", None)
    assert "bo" not in receipt.values()


async def test_the_same_key_answers_the_same_erasure(ana):
    ids = set()
    for _ in range(2):
        async with ana.post("/v1/erasures", json={"user": "cy"}, headers={"idempotency-key": "k-cy"}) as response:
            ids.add((await response.json())["erasure_id"])
    assert len(ids) == 1
    async with ana.post("/v1/erasures", json={"user": "di"}, headers={"idempotency-key": "k-cy"}) as response:
        assert (response.status, (await response.json())["reason"]) == (422, "IDEMPOTENCY_MISMATCH")


async def test_a_user_forgets_themselves_with_a_key_for_it_and_nobody_else(ana, front):
    other_key = {"authorization": f"Bearer {await front.issue(user='eve', scopes=('runs:write', 'threads:write'))}"}
    async with ana.post("/v1/erasures", json={"user": "eve"}, headers=other_key) as response:
        assert (response.status, (await response.json())["missing_scopes"]) == (403, "erasures:write")
    own = {"authorization": f"Bearer {await front.issue(user='eve', scopes=('erasures:write',))}"}
    async with ana.post("/v1/erasures", json={"user": "eve"}, headers=own) as response:
        assert response.status == 202
        path = response.headers["location"]
    async with ana.post("/v1/erasures", json={"user": "ana"}, headers=own) as response:
        assert (response.status, (await response.json())["missing_scopes"]) == (403, "admin")
    async with ana.get(path, headers=own) as response:
        assert response.status == 200
    for who in ({"tenant": "globex"}, {"user": "fay", "scopes": ("runs:read",)}):
        other = {"authorization": f"Bearer {await front.issue(**who)}"}
        async with ana.get(path, headers=other) as response:
            assert (response.status, (await response.json())["reason"]) == (404, "ERASURE_NOT_FOUND")
    async with ana.get(path) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "user"), ({"user": ""}, "user"), ({"user": 5}, "user"), ({"user": "x" * 257}, "user"), ({"user": "x", "tenant": "t"}, "tenant")],
)
async def test_what_is_wrong_is_named(ana, front, body, field):
    before = len(front.log.records.asked)
    async with ana.post("/v1/erasures", json=body) as response:
        assert (response.status, (await response.json())["errors"][0]["field"]) == (422, field)
    assert len(front.log.records.asked) == before


async def test_it_takes_a_key_and_an_id(ana, front):
    async with aiohttp.ClientSession(front.url) as anyone:
        for method, path in (("POST", "/v1/erasures"), ("GET", "/v1/erasures/era_1")):
            async with anyone.request(method, path) as response:
                assert response.status == 401
    async with ana.get("/v1/erasures/a%20b") as response:
        assert (response.status, (await response.json())["errors"][0]["field"]) == (400, "erasure_id")
