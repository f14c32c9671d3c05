"""Headers that the gateway's code takes and gives are those of the OpenAPI document, by name, and do what it says of them."""

import ast

import aiohttp
import orjson
import pytest
import pytest_asyncio

from services.common.testing import ROOT
from services.gateway import fakes
from tests.contract.test_openapi_examples import operations, resolved

pytestmark = pytest.mark.asyncio(loop_scope="module")
GATEWAY = ROOT / "services/gateway"
# Of HTTP itself, of tracing, of the handshake of a WebSocket, or of the key that `security` tells of.
NOT_OURS = {
    "accept", "accept-ranges", "allow", "authorization", "baggage", "cache-control", "connection", "content-disposition",
    "content-encoding", "content-language", "content-length", "content-range", "content-security-policy", "content-type",
    "cross-origin-resource-policy", "etag", "host", "if-none-match", "if-range", "last-modified", "origin", "permissions-policy",
    "range", "referrer-policy", "sec-websocket-protocol", "set-cookie", "traceparent", "tracestate", "upgrade", "user-agent", "vary",
    "www-authenticate", "x-accel-buffering", "x-api-key", "x-canary", "x-content-type-options", "x-frame-options",
}  # fmt: skip
# OpenAI's clients read them, and OpenAI's document has none of its headers.
SPOKEN = ("prefer", "idempotent-replayed", "location")
OF_OPENAI = {"retry-after-ms", "x-should-retry"}


def header_names():
    """The names of headers in the gateway's code: what is read with headers.get and header(), what answer() adds, what FastAPI reads, the
    keys of what is called headers, and texts that only a header has as its name."""
    found = set()
    for path in sorted(GATEWAY.rglob("*.py")):
        if not path.name.startswith("fake"):
            for node in ast.walk(ast.parse(path.read_text())):
                found |= _names(node)
    return {name.lower() for name in found}


def _names(node):
    match node:
        case ast.Call(func=ast.Attribute(attr="get", value=whose), args=[ast.Constant(value=str(name)), *_]):
            return {name} if "headers" in ast.unparse(whose) else set()
        case ast.Call(func=ast.Attribute(attr="answer" | "answer_also" | "header"), args=[ast.Constant(value=str(name)), *_]):
            return {name}
        case ast.Call(func=ast.Name(id="Header"), keywords=options):
            return {str(ast.literal_eval(one.value)) for one in options if one.arg == "alias"}
        case ast.Subscript(value=whose, slice=ast.Constant(value=str(name))) if "headers" in ast.unparse(whose):
            return {name}
        case ast.Constant(value=str(name)) if name.startswith("x-bulkhead-") or name in SPOKEN:
            return {name}
    return set()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(identities, _state_server):
    async with fakes.gateway(identities, _state_server, wait_limit_s=5.0) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served):
    async with aiohttp.ClientSession(served.url, headers=served.headers()) as session:
        yield session


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(http):
    async with http.get("/openapi.json") as response:
        return orjson.loads(await response.read())


def taking(document, header):
    """The operations whose parameters have the header."""
    found = [(name, p) for name, one in operations(document) for p in one.get("parameters", ()) if p["in"] == "header"]
    return {name for name, parameter in found if parameter["name"].lower() == header}


async def test_every_header_of_the_code_stands_in_the_document_and_every_one_of_the_document_in_the_code(document):
    taken = {p["name"].lower() for _, one in operations(document) for p in one.get("parameters", ()) if p["in"] == "header"}
    given = {name.lower() for name in document["components"]["headers"]}
    named = header_names()
    assert {"prefer", "x-bulkhead-thread-id", "idempotent-replayed", "last-event-id"} <= named
    assert named - taken - given - NOT_OURS - OF_OPENAI == set()
    # Those of limits are made in places of their own, as is the id of a request.
    assert (taken | given) - named == {"ratelimit", "ratelimit-policy", "link", "x-request-id"} - named


async def test_headers_are_taken_where_the_document_says_so(document, http):
    assert taking(document, "prefer") == {"POST /v1/threads/{thread_id}/runs"}
    assert taking(document, "x-bulkhead-thread-id") == {"POST /v1/chat/completions"}
    leaving = {"POST /v1/chat/completions", "POST /v1/responses", "POST /ag-ui/{agent}"}
    assert taking(document, "x-bulkhead-on-disconnect") == leaving
    said = [{"role": "user", "content": "x"}]
    bodies = {
        "/v1/chat/completions": {"model": "assistant", "messages": said},
        "/v1/responses": {"model": "assistant", "input": "x"},
        "/ag-ui/assistant": {
            "threadId": "t", "runId": "r", "state": {}, "tools": [], "context": [], "forwardedProps": {},
            "messages": [{"id": "m", **said[0]}],
        },
    }  # fmt: skip
    for path, body in bodies.items():
        async with http.post(path, json=body, headers={"x-bulkhead-on-disconnect": "sing"}) as response:
            assert response.status == (422 if "ag-ui" in path else 400)
            assert "must be continue or cancel" in await response.text()
    guarded = {name for name, one in operations(document) if one.get("security")}
    assert taking(document, "x-request-timeout-ms") == guarded
    async with http.get("/v1/agents", headers={"x-request-timeout-ms": "0"}) as response:
        assert response.status == 400


async def asked(document, http, name, path, **request):
    """The headers that the document names and that are there, of one request that is answered as it says."""
    method = name.split(" ")[0]
    async with http.request(method, path, **request) as response:
        assert response.status < 300, await response.text()
        await response.read()
        operation = dict(operations(document))[name]
        named = set(resolved(document, operation["responses"][str(response.status)])["headers"])
        return {header for header in named if header in response.headers}, response


RUN_HEADERS = {"x-bulkhead-run-id", "x-bulkhead-thread-id"}


async def test_headers_that_are_given_at_times_are_given_where_the_document_says_so(document, http):
    runs, body = "POST /v1/threads/{thread_id}/runs", {"input": "x", "agent": "assistant"}
    once = {"idempotency-key": "headers-run", "prefer": "wait=20"}
    first, _ = await asked(document, http, runs, "/v1/threads/h/runs", json=body, headers=once)
    assert first >= {"Location", "Preference-Applied", *RUN_HEADERS}
    assert "Idempotent-Replayed" not in first
    again, response = await asked(document, http, runs, "/v1/threads/h/runs", json=body, headers=once)
    assert again == first | {"Idempotent-Replayed"}
    assert response.headers["Preference-Applied"] == "wait=20"
    accepted, _ = await asked(document, http, runs, "/v1/threads/h/runs", json=body)
    assert {"Preference-Applied", "Idempotent-Replayed"} & accepted == set()
    await asked(document, http, runs, "/v1/threads/h/runs", json=body, headers={"prefer": "wait=20"})
    paged, response = await asked(document, http, "GET /v1/runs", "/v1/runs?limit=1")
    assert "Link" in paged
    next_page = response.links["next"]["url"].relative()
    assert "Link" in (await asked(document, http, "GET /v1/runs", str(next_page)))[0]
    for name, path, repeated in (
        ("POST /v1/keys", "/v1/keys", {"scopes": []}),
        ("POST /v1/responses", "/v1/responses", {"model": "assistant", "input": "x"}),
        ("POST /v1/threads", "/v1/threads", {"thread_id": "h2"}),
        ("POST /v1/agents/{agent}/chat", "/v1/agents/assistant/chat", {"user_input": "x"}),
        ("POST /v1/chat/completions", "/v1/chat/completions", {"model": "assistant", "messages": [{"role": "user", "content": "x"}]}),
    ):
        key = {"idempotency-key": f"headers{path}"}
        assert "Idempotent-Replayed" not in (await asked(document, http, name, path, json=repeated, headers=key))[0]
        assert "Idempotent-Replayed" in (await asked(document, http, name, path, json=repeated, headers=key))[0]
    completion = {"model": "assistant", "messages": [{"role": "user", "content": "x"}]}
    there, response = await asked(
        document, http, "POST /v1/chat/completions", "/v1/chat/completions", json=completion, headers={"x-bulkhead-thread-id": "h3"}
    )
    assert (there >= RUN_HEADERS, response.headers["x-bulkhead-thread-id"]) == (True, "h3")
    talk = {
        "threadId": "h4", "runId": "h4-run", "state": {}, "tools": [], "context": [], "forwardedProps": {},
        "messages": [{"id": "m", "role": "user", "content": "x"}],
    }  # fmt: skip
    there, response = await asked(document, http, "POST /ag-ui/{agent}", "/ag-ui/assistant", json=talk)
    assert (there >= RUN_HEADERS, response.headers["x-bulkhead-run-id"]) == (True, "h4-run")
    forked, _ = await asked(document, http, "POST /v1/threads/{thread_id}/fork", "/v1/threads/h/fork", json={"continue_run": True})
    assert forked >= {"Location", *RUN_HEADERS}
