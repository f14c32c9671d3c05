"""Nothing that a request brings becomes a header of an answer. On raw sockets: client libraries refuse to send most of this."""

import asyncio
import re
from dataclasses import dataclass
from urllib.parse import parse_qs, quote, urlsplit

import orjson
import pytest
import pytest_asyncio

from services.gateway.edge.problems import is_ag_ui, is_openai

pytestmark = pytest.mark.asyncio(loop_scope="module")

LINE = "x-evil: 1"
CORPUS = {
    "CR": f"a\r{LINE}",
    "LF": f"a\n{LINE}",
    "CRLF": f"a\r\n{LINE}",
    "an answer": f"a\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\n{LINE}\r\n\r\n",
    "a folded line": f"a\r\n {LINE}",
    "escaped": f"a%0d%0a{LINE}",
    "NUL": f"a\0{LINE}",
    "tabs": f"a\t{LINE}\t",
    "other breaks": f"a\x0b\x0c\x1c\x85{LINE}",
    "latin-1": f"a\xe9\xff{LINE}",
    # Where only the lower byte of each is kept, it is CR and LF.
    "beyond latin-1": f"a\u560d\u560a{LINE}\u2028\U0001f600",
    "a parameter": 'a"; filename="b.html"; x-evil=1, <https://evil.example>; rel="next',
    "very long": "a" * 9000,
}
# Of these the listener sees on the wire that they are no HTTP, before there is a path and a surface.
NO_HTTP = {"CR", "LF", "a folded line", "NUL", "other breaks"}
REFUSED_BY_LISTENER = b"Invalid HTTP request received."
# Every header that an answer may have.
NAMES = {
    "accept-ranges", "allow", "cache-control", "connection", "content-disposition", "content-length", "content-range",
    "content-security-policy", "content-type", "date", "etag", "idempotent-replayed", "link", "location", "preference-applied",
    "ratelimit", "ratelimit-policy", "referrer-policy", "retry-after", "retry-after-ms", "sec-websocket-accept",
    "sec-websocket-protocol", "transfer-encoding", "upgrade", "vary", "www-authenticate", "x-accel-buffering",
    "x-bulkhead-run-id", "x-bulkhead-thread-id", "x-content-type-options", "x-request-id", "x-should-retry",
}  # fmt: skip
FIELD = re.compile(rb"([A-Za-z0-9-]+): ([!-~](?:[ -~]*[!-~])?)")
AT_ONCE = 16

CHAT = {"model": "assistant", "messages": [{"role": "user", "content": "x"}]}
AG_UI = {"threadId": "t-ag", "runId": "r-ag", "messages": [{"id": "m", "role": "user", "content": "x"}], "state": {}, "tools": []}
AG_UI |= {"context": [], "forwardedProps": {}}
RUN = {"input": "x"}
EVERYWHERE = ("x-request-id", "idempotency-key", "authorization", "host", "accept", "content-type", "traceparent", "baggage", "x-canary")
# Where something of a request comes back, and the headers that come back there beside those that do everywhere.
PLACES = [
    ("GET", "/v1/threads?limit=1", None, ("x-api-key", "x-request-timeout-ms", "forwarded", "x-forwarded-host", "x-forwarded-prefix")),
    ("POST", "/v1/threads/t/runs", RUN, ("prefer",)),
    ("GET", "/v1/blobs/{blob}/content", None, ("range", "if-none-match", "if-range")),
    ("GET", "/v1/threads/t/events", None, ("last-event-id",)),
    ("POST", "/v1/chat/completions", CHAT, ("openai-organization",)),
    ("POST", "/v1/responses", {"model": "assistant", "input": "x"}, ()),
    ("POST", "/ag-ui/assistant", AG_UI, ("last-event-id",)),
    ("POST", "/v1/hooks/assistant?hook_id=h", {}, ("webhook-id", "webhook-timestamp", "webhook-signature")),
    ("GET", "/ws", None, ("sec-websocket-protocol", "sec-websocket-key", "origin")),
    ("PUT", "/v1/threads", {}, ()),
    ("GET", "/nowhere", None, ()),
]
# Bodies with a name that comes back in a header; `None` stands for the name.
BODIES = [
    ("/v1/threads", {"thread_id": None}),
    ("/v1/threads/t/runs", {"input": "x", "run_id": None}),
    ("/v1/threads/t/fork", {"thread_id": None}),
    ("/v1/documents", {"title": "x", "text": "x", "document_id": None}),
    ("/v1/feedback", {"run_id": None, "rating": 1}),
    ("/v1/agents/assistant/chat", {"user_input": "x", "thread_id": None}),
    ("/v1/chat/completions", {**CHAT, "model": None}),
    ("/v1/responses", {"model": "assistant", "input": "x", "conversation": None}),
    ("/v1/responses", {"model": "assistant", "input": "x", "previous_response_id": None}),
    ("/ag-ui/assistant", {**AG_UI, "threadId": None}),
    ("/ag-ui/assistant", {**AG_UI, "runId": None}),
    ("/v1/schedules", {"timing": {"cron": "@daily"}, "input": "x", "thread_id": None}),
    ("/v1/keys", {"scopes": [], "name": None}),
]


@dataclass
class Answer:
    """What came back, once it is sure that it is one whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes


class Wire:
    """Sends requests as they are, each on its own connection."""

    def __init__(self, front):
        self.front = front
        self._some = asyncio.Semaphore(AT_ONCE)

    async def ask(self, method, target, body=None, **headers):
        """`target`, `body` and the values of `headers` may be bytes that are no HTTP."""
        sent = {"host": "gateway", "connection": "close", "authorization": f"Bearer {self.front.key}"}
        content = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
        if body is not None:
            sent |= {"content-type": "application/json", "content-length": str(len(content))}
        head = b"%s %s HTTP/1.1\r\n" % (method.encode(), raw(target))
        head += b"".join(b"%s: %s\r\n" % (name.replace("_", "-").encode(), raw(value)) for name, value in (sent | headers).items())
        async with self._some, asyncio.timeout(30):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.front.settings.http_port)
            asked = f"{method} {target!r:.120} {headers!r:.120}"
            try:
                writer.write(head + b"\r\n" + content)
                answer = await reader.readuntil(b"\r\n\r\n")
                if b" 101 " not in answer[:16] and b"\r\ncontent-type: text/event-stream" not in answer:
                    answer += await reader.read()
            except EOFError:
                pytest.fail(f"no answer: {asked}")
            finally:
                writer.close()
        return checked(answer, asked, method, target.partition("?")[0])


def raw(value):
    return value if isinstance(value, bytes) else value.encode("utf-8")


def checked(answer, asked, method, path):
    """One answer with no header but ours, whose refusals are in the form of the surface that `path` belongs to."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    began = re.fullmatch(rb"HTTP/1\.1 (\d{3}) [A-Za-z -]*", first)
    fields = [FIELD.fullmatch(line) for line in lines]
    assert began, f"{asked}: {head!r}"
    assert all(fields), f"{asked}: {head!r}"
    names = [field.group(1).decode().lower() for field in fields]
    assert set(names) <= NAMES, f"{asked}: {names}"
    assert len(set(names)) == len(names), f"{asked}: {names}"
    headers = {field.group(1).decode().lower(): field.group(2).decode() for field in fields}
    if "content-length" in headers and method != "HEAD":
        assert len(body) == int(headers["content-length"]), f"{asked}: {answer!r}"
    status = int(began.group(1))
    assert status < 500, f"{asked}: {answer!r}"
    if status >= 400:
        assert is_refusal(path, status, headers, body), f"{asked}: {answer!r}"
    return Answer(status, headers, body)


def is_refusal(path, status, headers, body):
    kind = headers["content-type"]
    if kind.startswith("text/plain"):
        if path == "/ws" and "date" in headers:  # of the WebSocket library, which reads a handshake before anybody else does
            return status in (400, 431) and headers["connection"] == "close"
        return (status, body, headers["connection"]) == (400, REFUSED_BY_LISTENER, "close")
    told = orjson.loads(body)
    if is_openai(path):
        return kind == "application/json" and set(told) == {"error"} and set(told["error"]) == {"message", "type", "param", "code"}
    if is_ag_ui(path):
        return kind == "application/json" and told["type"] == "RUN_ERROR" and bool(told["message"] and told["code"])
    return kind == "application/problem+json" and told["status"] == status and told["request_id"] == headers["x-request-id"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wire(front):
    """Two threads, each with a run, and a blob."""
    wire = Wire(front)
    for name in "tu":
        assert (await wire.ask("POST", f"/v1/threads/{name}/runs", {"input": "x"}, prefer="wait=5")).status == 200
    made = await wire.ask("POST", "/v1/blobs?name=a.txt", b"content", content_type="text/plain")
    wire.blob = orjson.loads(made.body)["blob_id"]
    return wire


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def operations(wire):
    """(method, path, names in the path, names in the query) of every route."""
    document = orjson.loads((await wire.ask("GET", "/openapi.json")).body)
    found = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            given = operation.get("parameters", [])
            found.append((method.upper(), path, *([p["name"] for p in given if p["in"] == place] for place in ("path", "query"))))
    return found


@pytest.mark.parametrize(("method", "path", "body", "of_place"), PLACES)
async def test_no_header_of_a_request_makes_one_of_its_answer(wire, method, path, body, of_place):
    async def ask(name, kind, value):
        answer = await wire.ask(method, path.format(blob=wire.blob), body, **{name: value})
        if kind in NO_HTTP:
            assert (answer.status, set(answer.headers)) == (400, {"content-type", "content-length", "connection"}), f"{name}: {kind}"
        elif name in answer.headers and name == "x-request-id":
            assert re.fullmatch('[0-9a-f]{32}|a(%0d%0ax-evil: 1|"; filename.*)?', answer.headers[name]), f"{name}: {kind}"

    await asyncio.gather(*(ask(name, kind, raw(value)) for name in (*EVERYWHERE, *of_place) for kind, value in CORPUS.items()))


@pytest.mark.parametrize("name", ["x-request-id", "sec-websocket-protocol", "sec-websocket-key", "sec-websocket-extensions", "origin"])
async def test_no_header_of_a_websocket_handshake_makes_one_of_its_answer(wire, name):
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    good = {"sec-websocket-protocol": "bulkhead.v1, ", "origin": "http://gateway"}.get(name, "")
    sent = [raw(good + value) for value in ("", *CORPUS.values())]
    answers = await asyncio.gather(*(wire.ask("GET", "/ws", **{**upgrade, name: value}) for value in sent))
    assert name == "sec-websocket-key" or answers[0].status == 101
    assert all(answer.status in (101, 400, 403, 431) for answer in answers)


async def test_no_name_in_a_path_makes_a_header(wire, operations):
    def paths():
        for method, path, names, _ in operations:
            for name in names:
                for value in CORPUS.values():
                    others = dict.fromkeys(names, "t")
                    yield method, path.format(**{**others, name: quote(value, safe="")}), {} if method in ("POST", "PUT", "PATCH") else None

    answers = await asyncio.gather(*(wire.ask(*one) for one in paths()))
    assert len(answers) > 500
    assert {a.status for a in answers} <= {400, 404, 405, 409, 415, 422}


async def test_no_value_of_a_query_makes_a_header(wire, operations):
    asked = [
        wire.ask(method, f"{path.format(**dict.fromkeys(names, 't'))}?{name}={quote(value, safe='')}")
        for method, path, names, in_query in operations
        for name in in_query
        for value in CORPUS.values()
    ]
    assert len(asked) > 300
    await asyncio.gather(*asked)


async def test_a_link_to_the_next_page_has_what_was_asked_for_and_nothing_more(wire):
    for value in (text for text in CORPUS.values() if len(text) <= 128):
        for run in wire.front.log.runs.values():
            run.run.agent = value
        answer = await wire.ask("GET", f"/v1/runs?limit=1&agent={quote(value, safe='')}")
        found = re.fullmatch(r'<([^<>" ]+)>; rel="next"', answer.headers["link"])
        asked = urlsplit(found.group(1))
        assert (asked.path, parse_qs(asked.query)) == ("/v1/runs", {"limit": ["1"], "agent": [value], "after": ["1"]})


@pytest.mark.parametrize("target", ["/v1/threads/{}", "/v1/threads?after={}", "/v1/chat/{}", "/{}"])
async def test_a_request_line_that_is_no_http_is_refused(wire, target):
    for kind, value in CORPUS.items():
        answer = await wire.ask("GET", target.format(value))
        # A line that ends early is one of HTTP/0.9 and of what stands before its end.
        assert answer.status in (400, 401, 404), kind
        if kind in NO_HTTP - {"LF"} or not value.isascii() or " " in value.partition("\n")[0]:
            assert answer.body == REFUSED_BY_LISTENER, kind


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_no_name_in_a_body_makes_a_header(wire, path, body):
    named = [{name: value if own is None else own for name, own in body.items()} for value in CORPUS.values()]
    answers = await asyncio.gather(*(wire.ask("POST", path, one) for one in named))
    assert path == "/v1/keys" or {answer.status for answer in answers} <= {400, 404, 422}


def form(disposition):
    head = raw(f"--b\r\ncontent-disposition: form-data; name=file; {disposition}\r\ncontent-type: text/plain\r\n\r\n")
    return head + b"content\r\n--b--\r\n"


async def test_no_name_of_a_blob_makes_a_header(wire):
    for kind, value in CORPUS.items():
        escaped = quote(value, safe="")
        answers = [
            await wire.ask("POST", f"/v1/blobs?name={escaped}", b"content", content_type="text/plain"),
            *[
                await wire.ask("POST", "/v1/blobs", form(named), content_type="multipart/form-data; boundary=b")
                for named in (f'filename="{value}"', f"filename*=UTF-8''{escaped}")
            ],
        ]
        # Whoever has checked it before, a name is made safe where it is told.
        wire.front.blobs.kept[wire.blob].blob.name = value
        for blob_id in (wire.blob, *(orjson.loads(answer.body)["blob_id"] for answer in answers if answer.status == 201)):
            for method in ("GET", "HEAD"):
                told = await wire.ask(method, f"/v1/blobs/{blob_id}/content")
                assert told.status == 200, kind
                wanted = r"""attachment; filename="[^"\\]*"(; filename\*=UTF-8''[\w.~%-]+)?"""
                assert re.fullmatch(wanted, told.headers["content-disposition"], re.ASCII), kind
