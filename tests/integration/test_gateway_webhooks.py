"""/v1/webhooks over real HTTP and real gRPC, with an orchestrator in memory."""

import pytest
from bulkhead.orchestrator.v1 import webhooks_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOOK = {"url": "https://example.com/hook?a=b", "event_types": ["run.finished", "run.failed"], "description": "mine"}


async def make(http, headers=None):
    async with http.post("/v1/webhooks", json=HOOK, headers=headers) as response:
        assert response.status == 201, await response.text()
        return await response.json()


def delivered(front, webhook_id, number, status):
    delivery = pb.Delivery(
        delivery_id=f"msg_{number}:{webhook_id}", webhook_id=webhook_id, message_id=f"msg_{number}", event_type="run.finished",
        run_id="run_1", status=status, attempt_count=2,
    )  # fmt: skip
    delivery.created_at.FromSeconds(1_900_000_000)
    for code, error in ((0, "timeout"), (204, "")):
        attempt = delivery.attempts.add(response_code=code, error=error)
        attempt.started_at.FromSeconds(1_900_000_000)
        attempt.duration.FromMilliseconds(1250)
    front.log.records.deliveries[("acme", delivery.delivery_id)] = delivery
    return delivery.delivery_id


async def test_the_secret_of_an_endpoint_is_told_once(ana, front):
    async with ana.post("/v1/webhooks", json=HOOK, headers={"idempotency-key": "k-made"}) as response:
        assert response.status == 201, await response.text()
        made = await response.json()
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["location"] == f"/v1/webhooks/{made['webhook_id']}"
    assert front.log.records.asked[-1].idempotency_key == "k-made"
    secret = made.pop("secret")
    assert secret
    async with ana.get(f"/v1/webhooks/{made['webhook_id']}") as response:
        assert await response.json() == made
    async with ana.get("/v1/webhooks") as response:
        listed = await response.json()
    assert (made in listed["data"], listed["next_after"]) == (True, None)
    assert {name: made[name] for name in HOOK} == HOOK
    assert (made["disabled_reason"], made["disabled_at"], made["earlier_secret_until"]) == (None, None, None)
    assert secret not in str(listed)


async def test_the_same_key_makes_one_endpoint(ana):
    headers = {"idempotency-key": "k-once"}
    assert await make(ana, headers) == await make(ana, headers)
    async with ana.post("/v1/webhooks", json={**HOOK, "description": "other"}, headers=headers) as response:
        assert (response.status, (await response.json())["reason"]) == (422, "IDEMPOTENCY_MISMATCH")


async def test_a_secret_is_rotated(ana, front):
    made = await make(ana)
    path = f"/v1/webhooks/{made['webhook_id']}/rotate"
    async with ana.post(path, json={"overlap_ms": 90_500}, headers={"idempotency-key": "k-rotate"}) as response:
        assert (response.status, response.headers["cache-control"]) == (200, "no-store")
        rotated = await response.json()
    assert rotated["secret"] != made["secret"]
    assert rotated["earlier_secret_until"]
    asked = front.log.records.asked[-1]
    assert (asked.overlap.ToMilliseconds(), asked.idempotency_key) == (90_500, "k-rotate")
    for body, given in (({"overlap_ms": 0}, True), ({}, False), (None, False)):
        async with ana.post(path, json=body) as response:
            assert response.status == 200, await response.text()
        assert front.log.records.asked[-1].HasField("overlap") is given


async def test_deliveries_are_listed_and_sent_again(ana, front):
    webhook_id = (await make(ana))["webhook_id"]
    statuses = (pb.DELIVERY_STATUS_PENDING, pb.DELIVERY_STATUS_DELIVERED, pb.DELIVERY_STATUS_FAILED, pb.DELIVERY_STATUS_DROPPED)
    ids = [delivered(front, webhook_id, number, status) for number, status in enumerate(statuses)]
    delivered(front, (await make(ana))["webhook_id"], 9, statuses[0])
    async with ana.get(f"/v1/webhooks/{webhook_id}/deliveries?limit=3") as response:
        page = await response.json()
        assert "next" in response.links
    async with ana.get(f"/v1/webhooks/{webhook_id}/deliveries?limit=3&after={page['next_after']}") as response:
        log = page["data"] + (await response.json())["data"]
    assert [entry["delivery_id"] for entry in log] == ids[::-1]
    assert [entry["status"] for entry in log] == ["dropped", "failed", "delivered", "pending"]
    assert log[0]["attempts"] == [
        {"started_at": "2030-03-17T17:46:40.000000Z", "duration_ms": 1250, "response_code": None, "error": "timeout"},
        {"started_at": "2030-03-17T17:46:40.000000Z", "duration_ms": 1250, "response_code": 204, "error": None},
    ]
    assert (log[0]["message_id"], log[0]["run_id"], log[0]["attempt_count"]) == ("msg_3", "run_1", 2)
    async with ana.post(f"/v1/deliveries/{ids[2]}/redeliver", headers={"idempotency-key": "k-again"}) as response:
        assert (response.status, response.headers["location"]) == (202, f"/v1/webhooks/{webhook_id}/deliveries")
        again = await response.json()
    assert (again["delivery_id"], again["status"], bool(again["next_attempt_at"])) == (ids[2], "pending", True)
    assert front.log.records.asked[-1].idempotency_key == "k-again"


async def test_nothing_is_sent_again_to_one_that_is_out_of_service(ana, front):
    webhook_id = (await make(ana))["webhook_id"]
    front.log.records.webhooks[("acme", webhook_id)].disabled_reason = "GONE"
    front.log.records.webhooks[("acme", webhook_id)].disabled_at.GetCurrentTime()
    async with ana.get(f"/v1/webhooks/{webhook_id}") as response:
        found = await response.json()
    assert (found["disabled_reason"], bool(found["disabled_at"])) == ("GONE", True)
    async with ana.post(f"/v1/deliveries/{delivered(front, webhook_id, 5, pb.DELIVERY_STATUS_FAILED)}/redeliver") as response:
        assert (response.status, (await response.json())["reason"]) == (409, "WEBHOOK_DISABLED")


async def test_an_endpoint_is_deleted(ana):
    path = f"/v1/webhooks/{(await make(ana))['webhook_id']}"
    for _ in range(2):
        async with ana.delete(path, headers={"idempotency-key": "k-delete"}) as response:
            assert (response.status, await response.read()) == (204, b"")
    for method, rest in (("DELETE", ""), ("GET", ""), ("GET", "/deliveries"), ("POST", "/rotate")):
        async with ana.request(method, path + rest) as response:
            assert (response.status, (await response.json())["reason"]) == (404, "WEBHOOK_NOT_FOUND")


def but(**fields):
    return {**HOOK, **fields}


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/webhooks", {}, 422, "url"),
        ("/v1/webhooks", but(surprise=1), 422, "surprise"),
        ("/v1/webhooks", but(url=5), 422, "url"),
        ("/v1/webhooks", but(url=""), 422, "url"),
        ("/v1/webhooks", but(url="https://example.com/" + "x" * 2048), 422, "url"),
        ("/v1/webhooks", but(url="http://example.com/"), 400, "url"),
        ("/v1/webhooks", but(event_types=[]), 422, "event_types"),
        ("/v1/webhooks", but(event_types="run.finished"), 422, "event_types"),
        ("/v1/webhooks", but(event_types=["run.started"]), 422, "event_types.0"),
        ("/v1/webhooks", but(description="x" * 257), 422, "description"),
        ("/v1/webhooks/whk_1/rotate", {"surprise": 1}, 422, "surprise"),
        ("/v1/webhooks/whk_1/rotate", {"overlap_ms": -1}, 422, "overlap_ms"),
        ("/v1/webhooks/whk_1/rotate", {"overlap_ms": 7 * 86_400_000 + 1}, 422, "overlap_ms"),
        ("/v1/webhooks/whk_1/rotate", {"overlap_ms": 1.5}, 422, "overlap_ms"),
    ],
)
async def test_what_is_wrong_is_named(ana, path, body, status, field):
    async with ana.post(path, json=body) as response:
        assert response.status == status, await response.text()
        assert (await response.json())["errors"][0]["field"] == field


ROUTES = [
    ("POST", "/v1/webhooks", "write"), ("GET", "/v1/webhooks", "read"), ("GET", "/v1/webhooks/{id}", "read"),
    ("DELETE", "/v1/webhooks/{id}", "write"), ("POST", "/v1/webhooks/{id}/rotate", "write"),
    ("GET", "/v1/webhooks/{id}/deliveries", "read"), ("POST", "/v1/deliveries/{id}/redeliver", "write"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_each_route_asks_for_its_scope(ana, front, method, path, scope):
    headers = {"authorization": f"Bearer {await front.issue(scopes=('threads:read',))}"}
    async with ana.request(method, path.format(id="x"), headers=headers) as response:
        problem = await response.json()
    assert (response.status, problem["missing_scopes"]) == (403, f"webhooks:{scope}")


@pytest.mark.parametrize(("method", "path", "_"), [route for route in ROUTES if "{id}" in route[1]])
async def test_what_is_another_tenants_or_no_id_at_all_is_not_there(ana, front, method, path, _):
    webhook_id = (await make(ana))["webhook_id"]
    known = delivered(front, webhook_id, 7, pb.DELIVERY_STATUS_FAILED) if "redeliver" in path else webhook_id
    headers = {"authorization": f"Bearer {await front.issue('globex')}"}
    async with ana.request(method, path.format(id=known), headers=headers) as response:
        problem = await response.json()
        assert (response.status, problem["reason"].endswith("_NOT_FOUND")) == (404, True)
    async with ana.request(method, path.format(id="a%20b")) as response:
        assert (response.status, (await response.json())["errors"][0]["field"].endswith("_id")) == (400, True)
    async with ana.get("/v1/webhooks", headers=headers) as response:
        assert (await response.json())["data"] == []
