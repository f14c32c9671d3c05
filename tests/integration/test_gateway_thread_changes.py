"""Fork, rollback, deletion and time to live of threads over real HTTP and real gRPC, with an orchestrator in memory."""

from datetime import datetime, timedelta

import pytest

from services.gateway.fakes import frames_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def talk(http, thread):
    async with http.post(f"/v1/threads/{thread}/runs", json={"input": "hello", "stream": True}) as response:
        events = await frames_of(response)
        return events[-1][0], events[-1][2]["run_id"]


async def test_a_fork_is_a_thread_of_its_own(ana, front):
    last_seq, _ = await talk(ana, "t-parent")
    body = {"at": {"seq": 2}, "thread_id": "t-fork", "metadata": {"why": "other"}, "ttl_ms": 86_400_500}
    async with ana.post("/v1/threads/t-parent/fork", json=body, headers={"idempotency-key": "k-fork"}) as response:
        assert (response.status, response.headers["location"]) == (201, "/v1/threads/t-fork")
        made = await response.json()
    asked = front.log.records.asked[-1]
    assert (asked.at.seq, asked.idempotency_key, asked.ttl.ToMilliseconds()) == (2, "k-fork", 86_400_500)
    assert made["run"] is None
    assert made["thread"]["parent_thread_id"] == "t-parent"
    assert (made["thread"]["forked_at_seq"], made["thread"]["metadata"]) == (2, {"why": "other"})
    assert made["thread"]["expires_at"] > made["thread"]["created_at"]
    async with ana.get("/v1/threads/t-fork") as response:
        assert await response.json() == made["thread"]
    async with ana.get("/v1/threads/t-parent") as response:
        parent = await response.json()
    assert (parent["parent_thread_id"], parent["forked_at_seq"], parent["expires_at"]) == (None, 0, None)
    async with ana.post("/v1/threads/t-parent/fork") as response:
        assert (await response.json())["thread"]["forked_at_seq"] == last_seq
    assert front.log.records.asked[-1].HasField("ttl") is False


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ({}, (0, "", 0, False)),
        ({"beginning": True}, (0, "", 0, True)),
        ({"run_id": "run_1"}, (0, "run_1", 0, False)),
        ({"run_id": "run_1", "step": 2}, (0, "run_1", 2, False)),
    ],
)
async def test_a_checkpoint_is_named_in_each_way(ana, front, at, expected):
    await talk(ana, "t-named")
    async with ana.post("/v1/threads/t-named/fork", json={"at": at}) as response:
        assert response.status == 201, await response.text()
    asked = front.log.records.asked[-1].at
    assert (asked.seq, asked.run_id, asked.step, asked.beginning) == expected


async def test_a_run_that_goes_on_is_answered_with_its_fork(ana, front):
    await talk(ana, "t-on")
    async with ana.post("/v1/threads/t-on/fork", json={"continue_run": True}) as response:
        made = await response.json()
        assert response.headers["location"] == f"/v1/threads/{made['thread']['thread_id']}"
        assert response.headers["x-bulkhead-run-id"] == made["run"]["run_id"]
    assert (made["run"]["thread_id"], made["run"]["status"]) == (made["thread"]["thread_id"], "queued")
    headers = {"authorization": f"Bearer {await front.issue(scopes=('threads:write',))}"}
    async with ana.post("/v1/threads/t-on/fork", json={"continue_run": True}, headers=headers) as response:
        assert (response.status, (await response.json())["missing_scopes"]) == (403, "runs:write")


async def test_a_rollback_is_an_event_of_the_log(ana, front):
    last_seq, _ = await talk(ana, "t-back")
    headers = {"idempotency-key": "k-back"}
    for _ in range(2):
        async with ana.post("/v1/threads/t-back/rollback", json={"to": {"beginning": True}}, headers=headers) as response:
            assert response.status == 200, await response.text()
            answer = await response.json()
        assert answer["seq"] == answer["thread"]["last_seq"] == last_seq + 1
    assert front.log.records.asked[-1].to.beginning
    async with ana.post("/v1/threads/t-back/rollback", json={"to": {"run_id": "run_none"}}) as response:
        assert (response.status, (await response.json())["reason"]) == (404, "RUN_NOT_FOUND")


async def test_a_thread_is_deleted_at_once_or_in_the_end(ana, front):
    for thread, status in (("t-gone", 204), ("t-slow", 202)):
        await talk(ana, thread)
        for _ in range(2):
            async with ana.delete(f"/v1/threads/{thread}", headers={"idempotency-key": f"k-{thread}"}) as response:
                assert response.status == status
                assert await response.read() == (b"" if status == 204 else b'{"thread_id":"t-slow","completed":false}')
        asked = front.log.records.asked[-1]
        assert (asked.thread_id, asked.idempotency_key) == (thread, f"k-{thread}")
        async with ana.get(f"/v1/threads/{thread}") as response:
            assert response.status == 404


async def test_a_new_thread_is_given_its_time_to_live(ana):
    async with ana.post("/v1/threads", json={"thread_id": "t-short", "ttl_ms": 86_400_000}) as response:
        assert response.status == 201
        made = await response.json()
    lives = datetime.fromisoformat(made["expires_at"]) - datetime.fromisoformat(made["created_at"])
    assert lives == timedelta(days=1)
    async with ana.post("/v1/threads", json={"thread_id": "t-long"}) as response:
        assert (await response.json())["expires_at"] is None


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/threads", {"ttl_ms": 999}, "ttl_ms"),
        ("/v1/threads/t/fork", {"surprise": 1}, "surprise"),
        ("/v1/threads/t/fork", {"at": {"surprise": 1}}, "at.surprise"),
        ("/v1/threads/t/fork", {"at": 5}, "at"),
        ("/v1/threads/t/fork", {"at": {"seq": 0}}, "at.seq"),
        ("/v1/threads/t/fork", {"at": {"seq": 2**63}}, "at.seq"),
        ("/v1/threads/t/fork", {"at": {"seq": 1, "run_id": "r"}}, "at"),
        ("/v1/threads/t/fork", {"at": {"seq": 1, "beginning": True}}, "at"),
        ("/v1/threads/t/fork", {"at": {"step": 1}}, "at"),
        ("/v1/threads/t/fork", {"at": {"run_id": "r", "step": 0}}, "at.step"),
        ("/v1/threads/t/fork", {"thread_id": "a b"}, "thread_id"),
        ("/v1/threads/t/fork", {"ttl_ms": 3650 * 86_400_000 + 1}, "ttl_ms"),
        ("/v1/threads/t/fork", {"continue_run": 1}, "continue_run"),
        ("/v1/threads/t/fork", {"metadata": {"k": 1}}, "metadata.k"),
        ("/v1/threads/t/rollback", {}, "to"),
        ("/v1/threads/t/rollback", {"to": {}, "surprise": 1}, "surprise"),
        ("/v1/threads/t/rollback", {"to": {"run_id": ".."}}, "to.run_id"),
    ],
)
async def test_what_is_wrong_is_named(ana, path, body, field):
    async with ana.post(path, json=body) as response:
        assert response.status == 422, await response.text()
        assert (await response.json())["errors"][0]["field"] == field


ROUTES = [("POST", "/fork"), ("POST", "/rollback"), ("DELETE", "")]


@pytest.mark.parametrize(("method", "rest"), ROUTES)
async def test_each_route_asks_for_its_scope_and_for_an_id(ana, front, method, rest):
    body = {"to": {}} if rest == "/rollback" else None
    headers = {"authorization": f"Bearer {await front.issue(scopes=('threads:read',))}"}
    async with ana.request(method, f"/v1/threads/t{rest}", json=body, headers=headers) as response:
        assert (response.status, (await response.json())["missing_scopes"]) == (403, "threads:write")
    async with ana.request(method, f"/v1/threads/a%20b{rest}", json=body) as response:
        assert (response.status, (await response.json())["errors"][0]["field"]) == (400, "thread_id")


async def test_what_one_tenant_has_another_neither_forks_nor_deletes(ana, front):
    await talk(ana, "t-mine")
    other = {"authorization": f"Bearer {await front.issue('globex')}"}
    for path, body in (("fork", {}), ("rollback", {"to": {}})):
        async with ana.post(f"/v1/threads/t-mine/{path}", json=body, headers=other) as response:
            assert response.status == 404
    async with ana.delete("/v1/threads/t-mine", headers=other) as response:
        assert response.status == 404
    async with ana.get("/v1/threads/t-mine") as response:
        assert response.status == 200
    async with ana.post("/v1/threads/t-mine/fork", json={"at": {"seq": 9999}}) as response:
        assert (response.status, (await response.json())["reason"]) == (400, "SEQ_FROM_THE_FUTURE")
