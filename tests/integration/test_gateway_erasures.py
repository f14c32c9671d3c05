"""/v1/erasures over real HTTP and real gRPC, with an orchestrator in memory."""

import aiohttp
import pytest
import pytest_asyncio

from services.gateway import fakes

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(identities, _state_server):
    async with fakes.gateway(identities, _state_server) as gateway:
        yield gateway


@pytest_asyncio.fixture(loop_scope="module")
async def http(served):
    async with aiohttp.ClientSession(served.url, headers=served.headers()) as session:
        yield session


async def test_an_erasure_is_accepted_and_its_receipt_is_read(http, served):
    async with http.post("/v1/erasures", json={"user": "bo"}, headers={"idempotency-key": "k-bo"}) as response:
        assert response.status == 202, await response.text()
        begun = await response.json()
        assert response.headers["location"] == f"/v1/erasures/{begun['erasure_id']}"
    asked = served.log.records.asked[-1]
    assert (asked.user, asked.idempotency_key) == ("bo", "k-bo")
    async with http.get(response.headers["location"]) as response:
        receipt = await response.json()
    assert receipt == begun
    memory, orchestrator = receipt["parts"]
    assert memory == {"service": "memory", "state": "pending", "attempts": 1, "last_reason": "UNREACHABLE", "done_at": None, "erased": {}}
    assert (orchestrator["state"], orchestrator["erased"], orchestrator["last_reason"]) == ("done", {"threads": 2}, None)
    assert orchestrator["done_at"]
    assert (receipt["state"], receipt["subject_digest"], receipt["done_at"]) == ("pending", "d1", None)
    assert "bo" not in receipt.values()


async def test_the_same_key_answers_the_same_erasure(http):
    ids = set()
    for _ in range(2):
        async with http.post("/v1/erasures", json={"user": "cy"}, headers={"idempotency-key": "k-cy"}) as response:
            ids.add((await response.json())["erasure_id"])
    assert len(ids) == 1
    async with http.post("/v1/erasures", json={"user": "di"}, headers={"idempotency-key": "k-cy"}) as response:
        assert (response.status, (await response.json())["reason"]) == (422, "IDEMPOTENCY_MISMATCH")


async def test_a_user_without_the_scope_may_be_forgotten_and_forget_nobody_else(http, served):
    own = {"authorization": f"Bearer {await served.issue(user='eve', scopes=('runs:read',))}"}
    async with http.post("/v1/erasures", json={"user": "eve"}, headers=own) as response:
        assert response.status == 202
        path = response.headers["location"]
    async with http.post("/v1/erasures", json={"user": "ana"}, headers=own) as response:
        assert (response.status, (await response.json())["missing_scopes"]) == (403, "admin")
    async with http.get(path, headers=own) as response:
        assert response.status == 200
    for who in ({"tenant": "globex"}, {"user": "fay", "scopes": ("runs:read",)}):
        other = {"authorization": f"Bearer {await served.issue(**who)}"}
        async with http.get(path, headers=other) as response:
            assert (response.status, (await response.json())["reason"]) == (404, "ERASURE_NOT_FOUND")
    async with http.get(path) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("body", "field"),
    [({}, "user"), ({"user": ""}, "user"), ({"user": 5}, "user"), ({"user": "x" * 257}, "user"), ({"user": "x", "tenant": "t"}, "tenant")],
)
async def test_what_is_wrong_is_named(http, served, body, field):
    before = len(served.log.records.asked)
    async with http.post("/v1/erasures", json=body) as response:
        assert (response.status, (await response.json())["errors"][0]["field"]) == (422, field)
    assert len(served.log.records.asked) == before


async def test_it_takes_a_key_and_an_id(http, served):
    async with aiohttp.ClientSession(served.url) as anyone:
        for method, path in (("POST", "/v1/erasures"), ("GET", "/v1/erasures/era_1")):
            async with anyone.request(method, path) as response:
                assert response.status == 401
    async with http.get("/v1/erasures/a%20b") as response:
        assert (response.status, (await response.json())["errors"][0]["field"]) == (400, "erasure_id")
