"""/v1/hooks over real HTTP: kept through the key's owner, and sent to by whoever has the secret, with the specification's own library."""

import asyncio

import aiohttp
import pytest
import pytest_asyncio

from tests.integration.hook_sender import signed

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOOK = {"agent": "assistant", "thread_id": "news", "instructions": "File it.", "description": "crm"}
HEADERS = ("webhook-id", "webhook-timestamp", "webhook-signature")
# Of a problem, what differs from one request to the next.
OF_REQUEST = ("request_id", "trace_id")


async def make(ana, headers=None, **fields):
    async with ana.post("/v1/hooks", json={**HOOK, **fields}, headers=headers) as response:
        assert response.status == 201, await response.text()
        return await response.json()


@pytest_asyncio.fixture(loop_scope="module")
async def outside(front):
    """Whoever has no key."""
    async with aiohttp.ClientSession(front.url) as session:
        yield session


async def send(outside, hook, body='{"n": 1}', **changed):
    """Status, answer and headers of a message; a header that is changed to None is left out."""
    found = signed(changed.pop("secret", hook["secret"]), body, changed.get("webhook_id") or "")
    url = changed.pop("url", hook["url"])
    raw = changed.pop("raw", body.encode())
    found.update({name.replace("_", "-"): value for name, value in changed.items()})
    async with outside.post(url, data=raw, headers={name: value for name, value in found.items() if value is not None}) as response:
        return response.status, await response.json(content_type=None), response.headers


async def test_the_secret_of_a_hook_is_told_once(ana, front):
    async with ana.post("/v1/hooks", json=HOOK, headers={"idempotency-key": "k-made"}) as response:
        assert response.status == 201, await response.text()
        made = await response.json()
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["location"] == f"/v1/hooks/{made['hook_id']}"
    assert front.log.records.asked[-1].idempotency_key == "k-made"
    secret = made.pop("secret")
    assert secret.startswith("whsec_")
    assert made["url"] == f"/v1/hooks/assistant?hook_id={made['hook_id']}"
    async with ana.get(f"/v1/hooks/{made['hook_id']}") as response:
        assert await response.json() == made
    async with ana.get("/v1/hooks") as response:
        listed = await response.json()
    assert (made in listed["data"], listed["next_after"]) == (True, None)
    assert {name: made[name] for name in HOOK} == HOOK
    assert secret not in str(listed)
    bare = await make(ana, thread_id=None, instructions="", description="")
    assert (bare["thread_id"], bare["instructions"], bare["earlier_secret_until"]) == (None, "", None)
    brought = await make(ana, secret="whsec_" + "A" * 32)
    assert brought["secret"] == "whsec_" + "A" * 32


async def test_the_same_key_makes_one_hook_and_another_body_is_refused(ana):
    headers = {"idempotency-key": "k-once"}
    assert await make(ana, headers) == await make(ana, headers)
    async with ana.post("/v1/hooks", json={**HOOK, "description": "other"}, headers=headers) as response:
        assert (response.status, (await response.json())["reason"]) == (422, "IDEMPOTENCY_MISMATCH")


async def test_a_secret_is_rotated_and_a_hook_deleted(ana, front, outside):
    made = await make(ana)
    path = f"/v1/hooks/{made['hook_id']}"
    async with ana.post(f"{path}/secret", json={"overlap_ms": 90_500}, headers={"idempotency-key": "k-rotate"}) as response:
        assert (response.status, response.headers["cache-control"]) == (200, "no-store")
        rotated = await response.json()
    assert rotated["secret"] != made["secret"]
    assert rotated["earlier_secret_until"]
    asked = front.log.records.asked[-1]
    assert (asked.overlap.ToMilliseconds(), asked.idempotency_key) == (90_500, "k-rotate")
    for body, given in (({"overlap_ms": 0}, True), ({}, False), (None, False)):
        async with ana.post(f"{path}/secret", json=body) as response:
            assert response.status == 200, await response.text()
        assert front.log.records.asked[-1].HasField("overlap") is given
    for _ in range(2):
        async with ana.delete(path, headers={"idempotency-key": "k-delete"}) as response:
            assert (response.status, await response.read()) == (204, b"")
    for method, rest in (("DELETE", ""), ("GET", ""), ("POST", "/secret")):
        async with ana.request(method, path + rest) as response:
            assert (response.status, (await response.json())["reason"]) == (404, "HOOK_NOT_FOUND")
    assert (await send(outside, made))[0] == 401


@pytest.mark.parametrize("kind", ["application/json", "text/plain; charset=utf-8", "application/x-www-form-urlencoded", ""])
async def test_a_signed_message_is_taken_without_a_key_whatever_its_type(ana, outside, front, kind):
    made = await make(ana)
    status, answer, headers = await send(outside, made, 'ü "\n', webhook_id="msg_taken", content_type=kind or None)
    assert (status, answer) == (202, {"run_id": "run_msg_taken", "thread_id": "news", "created": True})
    assert headers["location"] == "/v1/runs/run_msg_taken"
    status, answer, _ = await send(outside, made, 'ü "\n', webhook_id="msg_taken", content_type=kind or None)
    assert (status, answer["created"]) == (202, False)
    asked = front.hooks.came[(made["hook_id"], "msg_taken")]
    assert asked.body == 'ü "\n'.encode()
    status, problem, _ = await send(outside, made, "other", webhook_id="msg_taken")
    assert (status, problem["reason"]) == (409, "HOOK_MESSAGE_CHANGED")


async def test_a_key_that_is_sent_along_changes_nothing(ana, front):
    made = await make(ana)
    async with aiohttp.ClientSession(front.url, headers={"authorization": "Bearer nonsense"}) as stranger:
        assert (await send(stranger, made))[0] == 202
    status, *_ = await send(ana, made, secret="whsec_" + "B" * 32)
    assert status == 401


async def test_whatever_is_not_proven_is_one_and_the_same_problem(ana, outside):
    made, other = await make(ana), await make(ana, agent="another")
    unknown = f"/v1/hooks/assistant?hook_id=hk_{'0' * 32}"
    told = []
    for changed in (
        {"secret": "whsec_" + "B" * 32}, {"url": unknown}, {"url": made["url"].replace(made["hook_id"], "x")},
        {"url": made["url"].replace(made["hook_id"], other["hook_id"])}, {"webhook_signature": "v1,abc"}, {"webhook_id": "a", "raw": b"b"},
        {"webhook_timestamp": "1"}, {"webhook_timestamp": "soon"},
    ):  # fmt: skip
        status, problem, headers = await send(outside, made, **changed)
        assert status == 401, changed
        told.append({name: value for name, value in problem.items() if name not in OF_REQUEST})
        assert not any(name in headers for name in ("ratelimit", "retry-after"))
    assert all(one == told[0] for one in told), told
    assert told[0]["reason"] == "HOOK_REFUSED"


@pytest.mark.parametrize(
    ("changed", "status", "field"),
    [
        *(({name.replace("-", "_"): None}, 400, name) for name in HEADERS),
        *(({name.replace("-", "_"): ""}, 400, name) for name in HEADERS), ({"webhook_id": "x" * 256}, 400, "webhook-id"),
        ({"webhook_id": "a.b"}, 400, "webhook-id"), ({"webhook_id": "a b"}, 400, "webhook-id"),
        ({"webhook_signature": "v" * 4097}, 400, "webhook-signature"), ({"webhook_timestamp": "1" * 33}, 400, "webhook-timestamp"),
        ({"url": "/v1/hooks/assistant"}, 400, "hook_id"), ({"url": f"/v1/hooks/assistant?hook_id={'x' * 129}"}, 400, "hook_id"),
        ({"url": "/v1/hooks/a%20b?hook_id=x"}, 400, "hook"), ({"url": "/v1/hooks/assistant?hook_id=x&also=1"}, 400, "also"),
        ({"raw": b"\xff\xfe"}, 400, None), ({"raw": b"x" * (256 * 1024 + 1)}, 413, None),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_for_hooks_that_are_not_there_as_well(ana, outside, front, changed, status, field):
    made, before = await make(ana), len(front.hooks.came)
    for hook in (made, {**made, "url": f"/v1/hooks/assistant?hook_id=hk_{'0' * 32}"}):
        found, problem, _ = await send(outside, hook, **changed)
        assert found == status, problem
        assert [error["field"] for error in problem.get("errors", [])] == ([field] if field else [])
    assert len(front.hooks.came) == before


async def test_the_longest_body_is_taken(ana, outside):
    made = await make(ana)
    assert (await send(outside, made, "x" * 256 * 1024))[0] == 202
    assert (await send(outside, made, ""))[0] == 202


async def test_while_the_store_is_away_the_sender_is_told_to_come_back(ana, outside, front):
    made = await make(ana)
    front.hooks.away = True
    try:
        status, problem, headers = await send(outside, made, webhook_id="msg_later")
        assert (status, headers["retry-after"], problem["retryable"]) == (503, "2", True)
    finally:
        front.hooks.away = False
    status, answer, _ = await send(outside, made, webhook_id="msg_later")
    assert (status, answer["created"]) == (202, True)


async def test_many_senders_at_once_are_all_answered(ana, outside):
    made = await make(ana)
    answers = await asyncio.gather(*(send(outside, made, f"{n}", webhook_id=f"msg_many_{n % 10}_{n % 2}") for n in range(100)))
    assert {status for status, *_ in answers} <= {202, 409}


def but(**fields):
    return {**HOOK, **fields}


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/hooks", {}, 422, "agent"), ("/v1/hooks", but(surprise=1), 422, "surprise"), ("/v1/hooks", but(agent=""), 422, "agent"),
        ("/v1/hooks", but(agent="a b"), 422, "agent"), ("/v1/hooks", but(thread_id="a b"), 422, "thread_id"),
        ("/v1/hooks", but(instructions="x" * 8193), 422, "instructions"), ("/v1/hooks", but(description="x" * 257), 422, "description"),
        ("/v1/hooks", but(secret="x"), 422, "secret"), ("/v1/hooks", but(secret="whsec_" + "A" * 89), 422, "secret"),
        ("/v1/hooks", but(secret="whsec_AAAA"), 400, "secret"), ("/v1/hooks/hk_1/secret", {"surprise": 1}, 422, "surprise"),
        ("/v1/hooks/hk_1/secret", {"overlap_ms": -1}, 422, "overlap_ms"),
        ("/v1/hooks/hk_1/secret", {"overlap_ms": 7 * 86_400_000 + 1}, 422, "overlap_ms"),
    ],
)  # fmt: skip
async def test_what_is_wrong_with_a_hook_is_named(ana, path, body, status, field):
    async with ana.post(path, json=body) as response:
        assert response.status == status, await response.text()
        assert (await response.json())["errors"][0]["field"] == field


ROUTES = [
    ("POST", "/v1/hooks", "hooks:write, runs:write"), ("GET", "/v1/hooks", "hooks:read"), ("GET", "/v1/hooks/{id}", "hooks:read"),
    ("DELETE", "/v1/hooks/{id}", "hooks:write"), ("POST", "/v1/hooks/{id}/secret", "hooks:write"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "scope"), ROUTES)
async def test_each_route_asks_for_its_scope(front, ana, method, path, scope):
    headers = {"authorization": f"Bearer {await front.issue(scopes=('threads:read',))}"}
    async with ana.request(method, path.format(id="x"), headers=headers) as response:
        problem = await response.json()
    assert (response.status, problem["missing_scopes"]) == (403, scope)


@pytest.mark.parametrize(("method", "path", "_"), [route for route in ROUTES if "{id}" in route[1]])
async def test_what_is_another_tenants_is_not_there(front, ana, method, path, _):
    hook_id = (await make(ana))["hook_id"]
    headers = {"authorization": f"Bearer {await front.issue('globex')}"}
    async with ana.request(method, path.format(id=hook_id), headers=headers) as response:
        assert (response.status, (await response.json())["reason"]) == (404, "HOOK_NOT_FOUND")


async def test_the_document_says_that_no_key_is_asked_for_where_messages_come(front, outside):
    async with outside.get("/openapi.json") as response:
        paths = (await response.json())["paths"]
    taking = paths["/v1/hooks/{hook}"]["post"]
    assert taking["security"] == []
    assert {one["name"] for one in taking["parameters"] if one["in"] == "header" and one["required"]} == set(HEADERS)
    assert "Idempotency-Key" not in [one["name"] for one in taking["parameters"]], "the webhook-id is the key"
    assert set(taking["requestBody"]["content"]) == {"application/json", "text/plain"}
