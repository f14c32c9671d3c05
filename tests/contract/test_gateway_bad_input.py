"""Bad input on every route: a clear error in the surface's own form, never a 500."""

import asyncio

import aiohttp
import orjson
import pytest
import pytest_asyncio

from services.gateway import fakes
from services.gateway.edge.problems import is_openai
from services.gateway.fake_log import EXPLODES
from services.gateway.surfaces.native import shapes

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHAT = {"model": "assistant", "messages": [{"role": "user", "content": "x"}]}
# Each route with a body, and a body that it takes.
BODIES = [
    ("POST", "/v1/threads", {"metadata": {}}),
    ("POST", "/v1/threads/t/runs", {"input": "x"}),
    ("POST", "/v1/runs/r-none/cancel", {"reason": "x"}),
    ("POST", "/v1/documents", {"title": "x", "text": "x"}),
    ("POST", "/v1/documents/search", {"query": "x"}),
    ("POST", "/v1/memories", {"text": "x"}),
    ("POST", "/v1/memories/search", {"query": "x"}),
    ("POST", "/v1/agents/assistant/chat", {"user_input": "x"}),
    ("POST", "/v1/runs/cancel", {"filter": {"agent": "assistant"}}),
    ("POST", "/v1/runs/r-none/steer", {"text": "x"}),
    ("PUT", "/v1/runs/r-none/plan", {"version": 1, "steps": [{"title": "x", "status": "done"}]}),
    ("POST", "/v1/runs/r-none/tool-calls/c/cancel", {"continuation": "skip"}),
    ("POST", "/v1/approvals/r-none/1/0/decision", {"verb": "approve"}),
    ("POST", "/v1/feedback", {"run_id": "r-none", "rating": 1}),
    ("POST", "/v1/threads/t/fork", {"metadata": {}}),
    ("POST", "/v1/threads/t/rollback", {"to": {}}),
    ("POST", "/v1/schedules", {"timing": {"cron": "@daily"}, "input": "x"}),
    ("PATCH", "/v1/schedules/s", {"name": "x"}),
    ("POST", "/v1/webhooks", {"url": "https://example.com/", "event_types": ["run.failed"]}),
    ("POST", "/v1/webhooks/w/rotate", {"overlap_ms": 0}),
    ("POST", "/v1/hooks", {"agent": "assistant"}),
    ("POST", "/v1/hooks/h/secret", {"overlap_ms": 0}),
    ("POST", "/v1/erasures", {"user": "x"}),
    ("POST", "/v1/keys", {"scopes": []}),
    ("PATCH", "/v1/keys/k", {"name": "x"}),
    ("POST", "/v1/keys/k/rotate", {"overlap_ms": 0}),
    ("POST", "/v1/chat/completions", CHAT),
    ("POST", "/v1/responses", {"model": "assistant", "input": "x"}),
    ("POST", "/v1/conversations", {"metadata": {}}),
]
READS = [
    "/v1/threads", "/v1/threads/t", "/v1/threads/t/runs", "/v1/threads/t/events", "/v1/runs", "/v1/runs/r", "/v1/runs/r/events",
    "/replay/t", "/v1/documents", "/v1/memories", "/v1/memories/m", "/v1/agents", "/v1/agents/assistant", "/v1/tools", "/v1/models",
    "/v1/models/assistant", "/v1/approvals", "/v1/approvals/r/1/0", "/v1/feedback", "/v1/schedules", "/v1/schedules/s",
    "/v1/schedules/s/ticks", "/v1/webhooks", "/v1/webhooks/w", "/v1/webhooks/w/deliveries", "/v1/quota", "/v1/erasures/e",
    "/v1/hooks", "/v1/hooks/h", "/v1/keys", "/v1/keys/k",
    "/v1/responses/resp_r", "/v1/responses/resp_r/input_items", "/v1/conversations/conv_t", "/v1/conversations/conv_t/items",
    "/v1/conversations/conv_t/items/msg_r.0",
]  # fmt: skip
LISTS = [
    "/v1/threads",
    "/v1/threads/t-bad/runs",
    "/v1/runs",
    "/v1/documents",
    "/v1/memories",
    "/v1/agents",
    "/v1/tools",
    "/v1/approvals",
    "/v1/feedback",
    "/v1/schedules",
    "/v1/webhooks",
    "/v1/hooks",
    "/v1/keys",
]
DELETES = [
    ("DELETE", f"/v1/{path}")
    for path in ("documents/d", "threads/t", "schedules/s", "webhooks/w", "hooks/h", "keys/k", "responses/resp_r", "conversations/conv_t")
]
NATIVE = [entry for entry in BODIES if not is_openai(entry[1])]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(identities, _state_server):
    async with fakes.gateway(identities, _state_server, body_timeout_s=1.0) as gateway:
        async with aiohttp.ClientSession(gateway.url, headers=gateway.headers()) as session:
            async with session.post("/v1/threads", json={"thread_id": "t-bad"}):
                yield gateway


async def refused(response, path, *statuses):
    """Checks the form of an error and answers its reason."""
    text = await response.text()
    assert response.status in statuses, f"{path}: {response.status} {text}"
    assert response.headers["x-request-id"]
    body = orjson.loads(text)
    if is_openai(path):
        assert response.headers["content-type"] == "application/json"
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
        return body["error"]["code"], body["error"]
    assert response.headers["content-type"] == "application/problem+json"
    assert (body["status"], body["instance"]) == (response.status, path.partition("?")[0])
    assert body["request_id"] == response.headers["x-request-id"]
    assert len(body["trace_id"]) == 32
    assert body["type"] == f"urn:bulkhead:problem:{body['reason'].lower().replace('_', '-')}"
    return body["reason"].lower(), body


def raw(method, path, http, data, **headers):
    return http.request(method, path, data=data, headers={"content-type": "application/json", **headers})


def nested(depth):
    return b'{"a":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(("method", "path", "good"), BODIES)
@pytest.mark.parametrize(
    ("data", "reason", "statuses"),
    [
        (b"{", "invalid_json", (400,)),
        (b'{"a": NaN}', "invalid_json", (400,)),
        (b'{"a": "\xff\xfe"}', "invalid_encoding", (400,)),
        (nested(65), "nested_too_deeply", (400,)),
        (nested(5000), "nested_too_deeply", (400,)),
        (b"[" * 200_000 + b"]" * 200_000, "nested_too_deeply", (400,)),
        (b"[]", "invalid_input", (400, 422)),
        (b'"text"', "invalid_input", (400, 422)),
    ],
    ids=["cut", "nan", "latin", "deep", "deeper", "abyss", "list", "string"],
)
async def test_bodies_that_are_not_what_the_route_takes(http, method, path, good, data, reason, statuses):
    async with raw(method, path, http, data) as response:
        assert (await refused(response, path, *statuses))[0] == reason


@pytest.mark.parametrize(("method", "path", "good"), BODIES)
async def test_a_name_that_stands_twice_is_refused_and_named_wherever_it_stands(http, method, path, good):
    for more in (b'"x":1,"x":1', b'"a":[{"b":{"x":1,"y":2,"\\u0078":null}}]'):
        async with raw(method, path, http, b"{%b,%b}" % (orjson.dumps(good)[1:-1], more)) as response:
            reason, problem = await refused(response, path, 400)
        assert (reason, problem["param"] if is_openai(path) else problem["errors"][0]["field"]) == ("invalid_json", "x")


@pytest.mark.parametrize(("method", "path", "good"), BODIES)
async def test_bodies_of_ten_megabytes_are_refused_and_the_next_request_is_served(http, method, path, good):
    big = orjson.dumps({**good, "padding": "x" * 10_000_000})
    async with raw(method, path, http, big) as response:
        assert (await refused(response, path, 413))[0] == "body_too_large"

    async def parts():
        for _ in range(100):
            yield b" " * 100_000

    async with raw(method, path, http, parts()) as response:
        await refused(response, path, 413)
    async with http.get("/v1/agents") as response:
        assert response.status == 200


@pytest.mark.parametrize(("method", "path", "good"), NATIVE)
async def test_unknown_fields_are_named(http, method, path, good):
    async with raw(method, path, http, orjson.dumps({**good, "surprise": 1})) as response:
        _, problem = await refused(response, path, 422)
    assert problem["errors"][0]["field"] == "surprise"


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/threads", {"thread_id": 5}, "thread_id"),
        ("/v1/threads", {"thread_id": "a b"}, "thread_id"),
        ("/v1/threads", {"thread_id": ".."}, "thread_id"),
        ("/v1/threads", {"metadata": {"k": 1}}, "metadata.k"),
        ("/v1/threads", {"metadata": {f"k{n}": "" for n in range(17)}}, "metadata"),
        ("/v1/threads/t/runs", {}, "input"),
        ("/v1/threads/t/runs", {"input": 5}, "input"),
        ("/v1/threads/t/runs", {"input": ""}, "input"),
        ("/v1/threads/t/runs", {"input": []}, "input"),
        ("/v1/threads/t/runs", {"input": [{"role": "function", "content": "x"}]}, "input.0.role"),
        ("/v1/threads/t/runs", {"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ("/v1/threads/t/runs", {"input": "x", "limits": {"deadline_ms": "5"}}, "limits.deadline_ms"),
        ("/v1/threads/t/runs", {"input": "x", "limits": {"max_steps": 2**40}}, "limits.max_steps"),
        ("/v1/threads/t/runs", {"input": "x", "limits": {"max_steps": 0}}, "limits.max_steps"),
        ("/v1/threads/t/runs", {"input": "x", "limits": {"deadline_ms": 0}}, "limits.deadline_ms"),
        ("/v1/threads/t/runs", {"input": "x", "limits": {"max_cost_microusd": 2**70}}, "limits.max_cost_microusd"),
        ("/v1/threads/t/runs", {"input": "x", "stream": "yes"}, "stream"),
        ("/v1/threads/t/runs", {"input": "x", "on_disconnect": "explode"}, "on_disconnect"),
        ("/v1/threads/t/runs", {"input": "x", "temperature": True}, "temperature"),
        ("/v1/documents", {"title": "x", "text": ""}, "text"),
        ("/v1/documents", {"title": "x", "text": "x", "content_type": "application/pdf"}, "content_type"),
        ("/v1/documents/search", {"query": "x", "limit": 51}, "limit"),
        ("/v1/memories", {"text": "x", "importance": 2}, "importance"),
        ("/v1/memories", {"text": "x", "expires_at": "soon"}, "expires_at"),
        ("/v1/memories", {"text": "x", "expires_at": 1_900_000_000}, "expires_at"),
        ("/v1/memories", {"text": "x", "expires_at": "2099-01-01T00:00:00"}, "expires_at"),
        ("/v1/memories", {"text": "x", "expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
        ("/v1/memories", {"text": "x", "expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
        ("/v1/agents/assistant/chat", {"user_input": None}, "user_input"),
    ],
)
async def test_wrong_types_and_values_name_the_field(http, path, body, field):
    async with http.post(path, json=body) as response:
        _, problem = await refused(response, path, 422)
    assert problem["errors"][0]["field"] == field
    assert "Traceback" not in problem["detail"]


@pytest.mark.parametrize("body", [5, {"model": 5}, {"model": "assistant"}, {**CHAT, "messages": "x"}, {**CHAT, "stream": "yes"}, None])
async def test_wrong_types_on_the_openai_route(http, body):
    path = "/v1/chat/completions"
    async with raw("POST", path, http, orjson.dumps(body)) as response:
        await refused(response, path, 400)
    async with http.post(path) as response:
        await refused(response, path, 400)


@pytest.mark.parametrize(("method", "path"), [("GET", path) for path in READS] + [(m, p) for m, p, _ in BODIES] + DELETES)
async def test_missing_and_wrong_keys(served, method, path):
    async with aiohttp.ClientSession(served.url) as anyone:
        for headers in (
            {},
            {"authorization": "Basic eA=="},
            {"authorization": "Bearer "},
            {"authorization": "Bearer bh_wrong"},
            {"x-api-key": "\xe4"},
        ):
            async with anyone.request(method, path, headers=headers) as response:
                await refused(response, path, 401)
                assert response.headers["www-authenticate"].startswith("Bearer realm=")


async def test_a_key_in_the_other_header_and_a_missing_scope(served):
    async with aiohttp.ClientSession(served.url) as anyone:
        async with anyone.get("/v1/agents", headers={"x-api-key": served.key}) as response:
            assert response.status == 200
        readonly = {"x-api-key": await served.issue(scopes=("threads:read",))}
        async with anyone.get("/v1/runs", headers=readonly) as response:
            _, problem = await refused(response, "/v1/runs", 403)
            assert problem["missing_scopes"] == "runs:read"
            assert 'scope="runs:read"' in response.headers["www-authenticate"]


@pytest.mark.parametrize("path", LISTS)
async def test_bad_cursors_and_limits(http, path):
    for query in ("after=nonsense", "limit=0", "limit=1001", "limit=many", "surprise=1", f"after={'x' * 2000}"):
        async with http.get(f"{path}?{query}") as response:
            await refused(response, path, 400)


async def test_bad_event_cursors(http):
    for path in ("/v1/threads/t-bad/events", "/replay/t-bad"):
        for query in ("after=-1", "after=x", f"after={2**63}", "after=99999", "speed=fast", "speed=0", "speed=nan"):
            async with http.get(f"{path}?{query}") as response:
                await refused(response, path, 400)
        for cursor in ("x", "-5", "1.5", "9" * 40, "99999"):
            async with http.get(path, headers={"last-event-id": cursor}) as response:
                await refused(response, path, 400)


async def test_bad_headers(http):
    for name, value in [
        ("x-request-timeout-ms", "soon"),
        ("x-request-timeout-ms", "-1"),
        ("x-request-timeout-ms", "0"),
        ("idempotency-key", "k" * 300),
    ]:
        async with http.get("/v1/agents", headers={name: value}) as response:
            _, problem = await refused(response, "/v1/agents", 400)
            assert problem["errors"][0]["field"].lower() == name
    async with http.get("/v1/agents", headers={"x-request-id": "x" * 500, "traceparent": "zz", "baggage": "%%%"}) as response:
        assert response.status == 200
        assert len(response.headers["x-request-id"]) < 100


async def test_other_media_types_are_named(http):
    for path in ("/v1/threads", "/v1/documents", "/v1/chat/completions"):
        async with http.post(path, data=b"<x/>", headers={"content-type": "application/xml"}) as response:
            assert (await refused(response, path, 415))[0] == "unsupported_media_type"
    async with http.post("/v1/documents", data=b"\xff", headers={"content-type": "text/plain"}) as response:
        assert (await refused(response, "/v1/documents", 400))[0] == "invalid_encoding"
    async with http.post("/v1/documents", data=b"no heading", headers={"content-type": "text/plain"}) as response:
        _, problem = await refused(response, "/v1/documents", 400)
        assert problem["errors"][0]["field"] == "title"


@pytest.mark.parametrize(
    "path", ["/v1/nothing", "/v1/chat/nothing", "/v1/responses/a/b", "/v1/conversations/a/b", "/v1/models/a/b", "/nothing"]
)
async def test_unknown_routes(http, path):
    async with http.get(path) as response:
        assert (await refused(response, path, 404))[0] == "route_not_found"


@pytest.mark.parametrize("path", ["/v1/threads", "/v1/chat/completions", "/v1/models", "/replay/t", "/health"])
async def test_methods_that_a_route_does_not_take(http, path):
    async with http.request("PATCH", path) as response:
        await refused(response, path, 405)
        assert response.headers["allow"]


async def test_a_text_of_two_megabytes_is_taken_and_a_larger_one_is_not(http):
    # Escaped, this text is three times as long: its JSON is larger than other routes take.
    largest = "ä" * (1024 * 1024)
    async with raw("POST", "/v1/documents", http, orjson.dumps({"title": "x", "text": largest})) as response:
        assert response.status == 201
    escaped = b'{"title":"x","document_id":"esc","text":"' + b"\\u00e4" * (1024 * 1024) + b'"}'
    async with raw("POST", "/v1/documents", http, escaped) as response:
        assert response.status == 201, await response.text()
    async with raw("POST", "/v1/documents", http, orjson.dumps({"title": "x", "text": largest + "ä"})) as response:
        await refused(response, "/v1/documents", 413)


async def test_a_client_that_never_sends_its_body_is_told_so(served):
    port = served.settings.http_port
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"POST /v1/threads HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {served.key}\r\ncontent-length: 50\r\n\r\n{{".encode())
    answer = await asyncio.wait_for(reader.readuntil(b"}"), 20)
    assert b" 408 " in answer.split(b"\r\n")[0]
    assert b"BODY_TIMEOUT" in answer
    writer.close()


async def test_what_breaks_inside_is_an_opaque_id(http, monkeypatch):
    async with http.get(f"/v1/threads/{EXPLODES}") as response:
        _, behind = await refused(response, f"/v1/threads/{EXPLODES}", 500)

    def worse(*_):
        raise RuntimeError("another secret")

    monkeypatch.setattr(shapes, "thread", worse)
    async with http.get("/v1/threads/t-bad") as response:
        _, here = await refused(response, "/v1/threads/t-bad", 500)
    for problem in (behind, here):
        assert problem["detail"] == f"internal error {problem['error_id']}"
        assert "secret" not in orjson.dumps(problem).decode()
