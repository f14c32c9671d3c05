"""Tools that reach out: HTTP tools, http_fetch, search_documents, against real servers."""

import gzip
from functools import partial

import orjson
import pytest
from bulkhead.common.v1 import common_pb2
from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc
from opentelemetry import trace

from services.common import testing
from services.common.errors import InvalidInput
from services.common.rpc import context as call_context
from services.common.rpc.server import Service
from services.common.settings import ServiceSettings
from tests.integration.tool_executor.harness import DONE, FAILED, UNKNOWN, executor, http_tool, write_config

READ = {"annotations": {"read_only": True}}


@pytest.fixture
def caller(identities):
    """The calls of a test belong to a user with every scope, on the canary track."""
    with testing.calling(identities, canary=True):
        yield


@pytest.fixture
def run(tmp_path, state_url, identities, caller):
    """Runs an executor with these tools."""

    def made(*tools, **settings):
        write_config(tmp_path, list(tools))
        return executor(tmp_path, state_url, identities, **settings)

    return made


async def test_arguments_are_the_body_and_an_answer_is_the_output(run, outside, monkeypatch):
    monkeypatch.setenv("DESK_TOKEN", "Bearer desk")
    outside.answers["/order"] = [{"id": "a1", "items": [1, 2]}]
    tool = http_tool(outside, "order", "/order", http={"headers": {"Authorization": "os.environ/DESK_TOKEN"}})
    parent = trace.NonRecordingSpan(trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1)))
    async with run(tool) as client:
        with trace.use_span(parent):
            result = await client.result("order", {"n": 4}, "k")
    assert (result.outcome, result.attempts) == (DONE, 1)
    assert orjson.loads(result.output_json) == {"id": "a1", "items": [1, 2]}
    (seen,) = outside.seen
    assert (seen.method, seen.path, seen.body) == ("POST", "/order", {"n": 4})
    assert seen.headers["Authorization"] == "Bearer desk"
    assert seen.headers["x-canary"] == "true"
    assert seen.headers["traceparent"].startswith(f"00-{0xABC:032x}-")
    assert "baggage" not in seen.headers


async def test_a_get_carries_its_arguments_in_the_query(run, outside):
    schema = {"type": "object", "properties": {"q": {"type": "string"}, "ids": {"type": "array"}, "deep": {"type": "boolean"}}}
    tool = http_tool(outside, "find", "/find", **READ, input_schema=schema, http={"method": "GET"})
    async with run(tool) as client:
        assert (await client.result("find", {"q": "a b&c", "ids": [1, 2], "deep": True})).outcome == DONE
    assert outside.seen[0].query == {"q": "a b&c", "ids": "1", "deep": "true"}
    assert outside.seen[0].body is None


@pytest.mark.parametrize(
    ("status", "code", "outcome", "retryable"),
    [
        (400, "upstream.bad_request", FAILED, False),
        (401, "upstream.auth", FAILED, False),
        (403, "upstream.auth", FAILED, False),
        (404, "upstream.not_found", FAILED, False),
        (409, "upstream.conflict", FAILED, False),
        (429, "upstream.rate_limited", FAILED, True),
        (302, "upstream.bad_request", FAILED, False),
        (500, "upstream.server", UNKNOWN, False),
        (503, "upstream.server", UNKNOWN, False),
    ],
)
async def test_a_status_says_what_went_wrong_and_a_side_effect_is_not_tried_again(run, outside, status, code, outcome, retryable):
    outside.answers["/order"] = [status]
    async with run(http_tool(outside, "order", "/order")) as client:
        result = await client.result("order", {"n": 1}, "k")
    assert (result.outcome, result.error.code, result.error.retryable) == (outcome, code, retryable)
    assert result.error.retry_after.seconds == 7
    assert len(outside.seen) == 1


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "GET"])
async def test_a_broken_connection_leaves_a_side_effect_unknown_and_is_not_tried_again(run, outside, method):
    outside.answers["/order"] = ["drop"]
    async with run(http_tool(outside, "order", "/order", http={"method": method})) as client:
        result = await client.result("order", {"n": 1}, "k")
    assert (result.outcome, result.error.code, result.attempts) == (UNKNOWN, "transport.broken", 1)
    assert len(outside.seen) == 1


async def test_a_timeout_is_unknown_with_side_effects_and_failed_without(run, outside):
    outside.gate.clear()
    tools = [http_tool(outside, "order", "/order", timeout_s=0.3), http_tool(outside, "read", "/read", timeout_s=0.3, **READ)]
    async with run(*tools) as client:
        order = await client.result("order", {"n": 1}, "o")
        read = await client.result("read", {"n": 1}, "r")
    assert (order.outcome, order.error.code, order.attempts, order.error.retryable) == (UNKNOWN, "transport.timeout", 1, False)
    assert (read.outcome, read.error.code, read.attempts, read.error.retryable) == (FAILED, "transport.timeout", 3, True)


async def test_a_refused_connection_is_certain(run, outside):
    port = testing.free_port()
    tool = http_tool(outside, "order", "/order", http={"url": f"http://127.0.0.1:{port}/order"})
    async with run(tool) as client:
        result = await client.result("order", {"n": 1}, "k")
    assert (result.outcome, result.error.code, result.error.retryable) == (FAILED, "transport.unreachable", True)


async def test_what_may_be_repeated_is_tried_again_until_it_works(run, outside):
    outside.answers["/read"] = [(503, {}, b""), "drop", {"ok": True}]
    async with run(http_tool(outside, "read", "/read", annotations={"idempotent": True})) as client:
        *events, last = await client.events("read", {"n": 1}, "k")
    assert (last.result.outcome, last.result.attempts) == (DONE, 3)
    assert [e.warning.code for e in events] == ["tool_retried", "tool_retried"]
    assert len(outside.seen) == 3
    assert {s.headers["Idempotency-Key"] for s in outside.seen} == {"k"}


async def test_it_is_tried_three_times_at_most_and_a_refusal_once(run, outside):
    outside.answers.update({"/read": [(500, {}, b"")], "/refuse": [(400, {}, b"")]})
    async with run(http_tool(outside, "read", "/read", **READ), http_tool(outside, "refuse", "/refuse", **READ)) as client:
        read, refuse = await client.result("read"), await client.result("refuse")
    assert (read.outcome, read.attempts) == (FAILED, 3)
    assert (refuse.outcome, refuse.attempts) == (FAILED, 1)
    assert len(outside.seen) == 4


@pytest.mark.parametrize(
    ("answer", "more", "code"),
    [
        ((200, {"Content-Type": "application/json"}, b"{"), {}, "output.invalid"),
        ((200, {"Content-Type": "application/json"}, b'{"id": 5}'), {"output_schema": {"required": ["number"]}}, "output.invalid"),
        ((200, {"Content-Type": "application/json"}, b'"' + b"x" * 200 + b'"'), {"max_output_bytes": 100}, "output.too_large"),
        ((200, {"Content-Type": "text/plain"}, b"x" * 300_000), {}, "output.too_large"),
    ],
)
async def test_an_output_that_cannot_be_used_does_not_hide_that_something_was_done(run, outside, answer, more, code):
    outside.answers.update({"/order": [answer], "/read": [answer]})
    async with run(http_tool(outside, "order", "/order", **more), http_tool(outside, "read", "/read", **READ, **more)) as client:
        order, read = await client.result("order", {"n": 1}, "k"), await client.result("read")
    assert (order.outcome, order.error.code) == (UNKNOWN, code)
    assert (read.outcome, read.error.code) == (FAILED, code)
    assert len(outside.seen) == 2


def fetching(outside, *, private=True, host="127.0.0.1", **options):
    allow = [{"host": host, "port": outside.port, "private": private}]
    return {"name": "http_fetch", "retry": {"times": 0}, "options": {"allow": allow, **options}}


HTML = b"<html><head><title>A  page</title><style>x{}</style></head><body><h1>Head</h1><p>One<br>two &amp; three</p><script>no()</script>"


async def test_a_page_comes_as_text_with_progress(run, outside):
    outside.answers["/page"] = [(200, {"Content-Type": "text/html; charset=utf-8"}, HTML)]
    async with run(fetching(outside)) as client:
        *events, last = await client.events("http_fetch", {"url": f"{outside.url}/page"})
    assert orjson.loads(last.result.output_json) == {
        "url": f"{outside.url}/page",
        "status": 200,
        "content_type": "text/html",
        "text": "A page\nHead\nOne\ntwo & three",
        "truncated": False,
    }
    assert events[-1].progress.fraction == 1.0
    assert "x-canary" not in outside.seen[0].headers
    assert "traceparent" not in outside.seen[0].headers


async def test_a_long_page_is_cut_and_a_small_one_does_not_unfold_into_a_large_one(run, outside):
    outside.answers["/long"] = [(200, {"Content-Type": "text/plain"}, b"x" * 5000)]
    outside.answers["/bomb"] = [(200, {"Content-Type": "text/plain", "Content-Encoding": "gzip"}, gzip.compress(b"y" * 50_000_000))]
    async with run(fetching(outside, max_bytes=1000)) as client:
        for path, letter in (("/long", "x"), ("/bomb", "y")):
            page = orjson.loads((await client.result("http_fetch", {"url": f"{outside.url}{path}"})).output_json)
            assert (page["text"], page["truncated"]) == (letter * 1000, True)


async def test_redirects_are_checked_like_the_first_address(run, outside):
    other = testing.free_port()
    outside.answers.update(
        {
            "/a": [(302, {"Location": "/b"}, b"")],
            "/b": [(307, {"Location": f"{outside.url}/c"}, b"")],
            "/c": [(200, {"Content-Type": "text/plain"}, b"there")],
            "/out": [(302, {"Location": f"http://127.0.0.1:{other}/"}, b"")],
            "/name": [(302, {"Location": f"http://localhost:{outside.port}/c"}, b"")],
            "/file": [(302, {"Location": "file:///etc/passwd"}, b"")],
            "/loop": [(302, {"Location": "/loop"}, b"")],
            "/404": [404],
            "/image": [(200, {"Content-Type": "image/png"}, b"x")],
        }
    )
    async with run(fetching(outside)) as client:

        async def outcome(path):
            result = await client.result("http_fetch", {"url": f"{outside.url}{path}"})
            return result.error.code or orjson.loads(result.output_json)["text"]

        assert await outcome("/a") == "there"
        assert await outcome("/out") == "policy.denied"
        assert await outcome("/name") == "policy.denied"
        assert await outcome("/file") == "input.invalid"
        assert await outcome("/loop") == "upstream.bad_request"
        assert await outcome("/404") == "upstream.not_found"
        assert await outcome("/image") == "output.blocked"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_private_addresses_are_refused_even_where_the_host_is_allowed(run, outside, host):
    async with run(fetching(outside, private=False, host=host)) as client:
        result = await client.result("http_fetch", {"url": f"http://{host}:{outside.port}/"})
    assert (result.outcome, result.error.code) == (FAILED, "policy.denied")
    assert not outside.seen


class Memory(memory_pb2_grpc.DocumentServiceServicer):
    """Stands in for the memory service: two passages, and what it saw of the call."""

    def __init__(self):
        self.seen = []

    async def SearchDocuments(self, request, context):
        self.seen.append((request, call_context.current()))
        if request.query == "refuse":
            raise InvalidInput.field("query", "is wrong")
        citations = [
            common_pb2.Citation(
                citation_id="c9", document_id=f"doc{n}", document_version=3, title="README.md", heading="Layout", char_start=5, char_end=9
            )
            for n in (1, 2)
        ]
        return memory_pb2.SearchDocumentsResponse(
            passages=[memory_pb2.Passage(text=f"passage {c.document_id}", citation=c) for c in citations]
        )


async def test_passages_and_citations_have_the_same_ids(run, identities):
    memory, port = Memory(), testing.free_port()

    def build(_):
        add = partial(memory_pb2_grpc.add_DocumentServiceServicer_to_server, memory)
        return Service("memory", [add], verifier=identities.verifier)

    async with testing.running(ServiceSettings(grpc_port=port, drain_grace_s=0.5), build):
        async with run({"name": "search_documents"}, memory_address=f"127.0.0.1:{port}") as client:
            result = await client.result("search_documents", {"query": "layout", "limit": 2})
            refused = await client.result("search_documents", {"query": "refuse"})
            with testing.calling(identities, testing.principal_of("globex", scopes=["tools:execute", "documents:read"])):
                await client.result("search_documents", {"query": "layout"})
    assert orjson.loads(result.output_json) == {
        "passages": [
            {"citation": "d1", "title": "README.md", "heading": "Layout", "text": "passage doc1"},
            {"citation": "d2", "title": "README.md", "heading": "Layout", "text": "passage doc2"},
        ]
    }
    assert [(c.citation_id, c.document_id, c.document_version, c.char_start, c.char_end) for c in result.citations] == [
        ("d1", "doc1", 3, 5, 9),
        ("d2", "doc2", 3, 5, 9),
    ]
    assert (refused.outcome, refused.error.code) == (FAILED, "upstream.bad_request")
    first, _, last = memory.seen
    assert (first[0].query, first[0].page_size, first[1].canary, first[1].principal.tenant) == ("layout", 2, True, "acme")
    assert last[1].principal.tenant == "globex"


@pytest.mark.parametrize("configured", [True, False])
async def test_without_the_memory_service_only_the_search_fails(run, identities, configured):
    address = f"127.0.0.1:{testing.free_port()}" if configured else ""
    async with run(
        {"name": "search_documents", "retry": {"times": 0}, "timeout_s": 5}, {"name": "calculator"}, memory_address=address
    ) as client:
        found = await client.result("search_documents", {"query": "x"})
        assert (found.outcome, found.error.code) == (FAILED, "transport.unreachable")
        assert (await client.result("calculator", {"expression": "1"})).outcome == DONE
