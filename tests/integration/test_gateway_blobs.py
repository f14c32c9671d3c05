"""Blobs over HTTP, with an orchestrator in memory: contents go both ways as they come, and clients that stop are ended."""

import asyncio
import hashlib
import json

import aiohttp
import pytest
import pytest_asyncio
import structlog

from services.common import testing
from services.gateway import fakes
from tests.integration.real_gateway import answered

pytestmark = pytest.mark.asyncio(loop_scope="module")
MIB = 1024 * 1024
LIMIT = 25 * MIB
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
# What a connection and two channels hold of a content that nobody takes.
UNDERWAY = 8 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(identities, _state_server):
    """A gateway whose patience is short."""
    async with fakes.gateway(identities, _state_server, slow_reader_s=0.5, body_timeout_s=1.0) as gateway:
        yield gateway


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def mended(front):
    yield
    front.blobs.away, front.blobs.cut_after = False, 0
    front.blobs.taking.set()


async def put(http, content=PNG, kind="image/png", status=201, headers=None, **query):
    sent = http.post("/v1/blobs", data=content, params=query, headers={"content-type": kind, **(headers or {})})
    return await answered(sent, status)


async def test_what_is_sent_is_what_is_fetched(ana):
    async with ana.post("/v1/blobs?name=chart.png&thread_id=t", data=PNG, headers={"content-type": "image/png"}) as response:
        made = await response.json()
        assert (response.status, response.headers["location"]) == (201, f"/v1/blobs/{made['blob_id']}")
    digest = hashlib.sha256(PNG).hexdigest()
    assert made == {**made, "mime_type": "image/png", "size": len(PNG), "sha256": digest, "name": "chart.png", "thread_id": "t"}
    assert (made["expires_at"], made["created_at"][-1]) == (None, "Z")
    path = f"/v1/blobs/{made['blob_id']}"
    assert await answered(ana.get(path), 200) == made
    for method in (ana.get, ana.head):
        async with method(f"{path}/content") as response:
            assert (response.status, await response.read()) == (200, PNG if method == ana.get else b"")
            headers = response.headers
        assert {name.lower(): headers[name] for name in headers if name.lower() not in ("x-request-id", "x-accel-buffering")} == {
            "etag": f'"{digest}"', "cache-control": "private, no-cache", "accept-ranges": "bytes", "content-length": str(len(PNG)),
            "content-type": "image/png", "content-disposition": 'inline; filename="chart.png"', "referrer-policy": "no-referrer",
            "content-security-policy": "sandbox; default-src 'none'", "x-content-type-options": "nosniff",
        }  # fmt: skip
    async with ana.delete(path) as response:
        assert response.status == 204
    for gone in (path, f"{path}/content"):
        assert (await answered(ana.get(gone), 404))["reason"] == "BLOB_NOT_FOUND"


async def test_a_form_is_taken_as_clients_make_it(ana):
    form = aiohttp.FormData(quote_fields=False)
    form.add_field("file", PNG, filename="größe 2.png", content_type="image/png")
    made = await answered(ana.post("/v1/blobs", data=form), 201)
    assert (made["mime_type"], made["size"], made["name"], made["thread_id"]) == ("image/png", len(PNG), "größe 2.png", None)
    form = aiohttp.FormData()
    form.add_field("file", PNG, filename="a.png", content_type="image/png")
    assert (await answered(ana.post("/v1/blobs?name=b.png", data=form), 201))["name"] == "b.png"
    form = aiohttp.FormData()
    form.add_field("file", PNG, filename="a.png", content_type="image/png")
    form.add_field("more", "text")
    assert (await answered(ana.post("/v1/blobs", data=form), 400))["reason"] == "INVALID_FORM"


async def test_who_has_it_already_is_not_sent_it_again(ana):
    path = f"/v1/blobs/{(await put(ana))['blob_id']}/content"
    async with ana.get(path) as response:
        tag = response.headers["etag"]
    for value in (tag, f'W/{tag}, "x"', "*"):
        for method in (ana.get, ana.head):
            async with method(path, headers={"if-none-match": value}) as response:
                assert (response.status, response.headers["etag"], await response.read()) == (304, tag, b"")
                assert response.headers["content-security-policy"] == "sandbox; default-src 'none'"
    async with ana.get(path, headers={"if-none-match": '"other"'}) as response:
        assert response.status == 200


async def test_one_range_is_served_and_no_more(ana):
    content = bytes(range(256)) * 9000
    path = f"/v1/blobs/{(await put(ana, content, 'application/zip'))['blob_id']}/content"
    size = len(content)
    wanted = [
        ("bytes=0-0", 0, 0), ("bytes=5-", 5, size - 1), ("bytes=-7", size - 7, size - 1), (f"bytes=1048570-{MIB * 2}", 1048570, MIB * 2),
        (f"bytes=7-{size * 9}", 7, size - 1),
    ]  # fmt: skip
    for value, first, last in wanted:
        async with ana.get(path, headers={"range": value}) as response:
            found = await response.read()
            assert (response.status, response.headers["content-range"]) == (206, f"bytes {first}-{last}/{size}")
        assert found == content[first : last + 1]
    for value in (f"bytes={size}-", "bytes=1-2,5-6", "bytes=9-3", "bytes=x"):
        async with ana.get(path, headers={"range": value}) as response:
            told = await response.json(content_type=None)
            assert (response.status, response.headers["content-range"]) == (416, f"bytes */{size}")
        assert (told["reason"], told["title"]) == ("RANGE_NOT_SATISFIABLE", "No such range")
    for headers in ({"range": "lines=1-2"}, {"range": "bytes=0-1", "if-range": '"other"'}):
        async with ana.get(path, headers=headers) as response:
            assert (response.status, len(await response.read())) == (200, size)
    async with ana.head(path, headers={"range": "bytes=0-1"}) as response:
        assert (response.status, response.headers["content-length"]) == (200, str(size))


async def test_texts_are_saved_as_utf8_and_whatever_runs_is_no_text(ana):
    made = await put(ana, "\ufeffhällo".encode(), "text/plain; charset=UTF-8", name="page.html")
    async with ana.get(f"/v1/blobs/{made['blob_id']}/content") as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["content-disposition"] == 'attachment; filename="page.html.txt"'
        assert await response.read() == "\ufeffhällo".encode()
    for kind in ("text/html", "image/svg+xml", "application/javascript", "text/xml"):
        assert (await put(ana, b"<script>", kind, 415))["reason"] == "UNSUPPORTED_MEDIA_TYPE"


async def test_what_the_content_is_not_is_told_by_its_name(ana):
    told = await put(ana, b"GIF89a", "image/png", 400)
    assert (told["reason"], told["errors"]) == (
        "BLOB_REFUSED", [{"field": "content", "detail": "is no image/png, by its own bytes"}]
    )  # fmt: skip
    for name in ("../x.png", "x" * 300, "a\u202eb"):
        told = await put(ana, name=name, status=400)
        assert [error["field"] for error in told["errors"]] == ["name"]
    async with ana.post("/v1/blobs?name=%ED%A0%80&kind=x", data=PNG, headers={"content-type": "image/png"}) as response:
        assert response.status == 400
    assert (await put(ana, b"", "text/plain", 400))["reason"] == "EMPTY_BODY"
    assert [error["field"] for error in (await put(ana, thread_id="a b", status=400))["errors"]] == ["thread_id"]


async def test_the_same_key_and_content_are_the_same_blob(ana):
    key = {"idempotency-key": "blob-1"}
    first, again = await put(ana, headers=key), await put(ana, headers=key)
    assert first == again
    assert (await put(ana, PNG + b"x", headers=key, status=422))["reason"] == "IDEMPOTENCY_MISMATCH"
    path = f"/v1/blobs/{first['blob_id']}"
    for number in range(3):
        async with ana.delete(path, headers={"idempotency-key": "gone"} if number < 2 else {}) as response:
            assert (response.status, "idempotent-replayed" in response.headers) == (204, number == 1)
    await answered(ana.get(path), 404)


async def test_blobs_are_of_their_user_alone(front, ana):
    made = await put(ana)
    path = f"/v1/blobs/{made['blob_id']}"
    for who in ({"user": "eve"}, {"tenant": "globex"}):
        other = {"authorization": f"Bearer {await front.issue(**who)}"}
        for method, at in (("GET", path), ("GET", f"{path}/content"), ("POST", f"{path}/links")):
            assert (await answered(ana.request(method, at, headers=other), 404))["reason"] == "BLOB_NOT_FOUND"
        async with ana.delete(path, headers=other) as response:
            assert response.status == 204
        async with ana.head(f"{path}/content", headers=other) as response:
            assert response.status == 404
    assert await answered(ana.get(path), 200) == made


async def test_head_asks_for_the_same_scope_as_get(front, ana):
    path = f"/v1/blobs/{(await put(ana))['blob_id']}/content"
    for scopes, status in ((("blobs:write",), 403), (("blobs:read",), 200)):
        key = {"authorization": f"Bearer {await front.issue(scopes=scopes)}"}
        async with ana.head(path, headers=key) as response:
            assert response.status == status


# --- sizes, and clients that stop ---


async def raw(front, head, *, key=True):
    """A connection on which the head of a request was sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", front.settings.http_port)
    lines = [*head, "Host: x", *([f"Authorization: Bearer {front.key}"] if key else []), "", ""]
    writer.write("\r\n".join(lines).encode())
    await writer.drain()
    return reader, writer


async def status_of(reader):
    async with asyncio.timeout(testing.PATIENCE_S):
        return int((await reader.readline()).split()[1])


async def test_more_than_may_be_is_refused_before_it_is_sent(front):
    for form in ("image/png", "multipart/form-data; boundary=b"):
        size = LIMIT + (100_000 if "form" in form else 1)
        head = ["POST /v1/blobs HTTP/1.1", f"Content-Type: {form}", f"Content-Length: {size}"]
        reader, writer = await raw(front, head)
        assert await status_of(reader) == 413
        rest = await reader.read()
        assert json.loads(rest.partition(b"\r\n\r\n")[2])["limit"].startswith("26")
        assert b"connection: close" in rest
        writer.close()


async def test_what_is_not_announced_is_cut_at_the_limit(front):
    reader, writer = await raw(front, ["POST /v1/blobs HTTP/1.1", "Content-Type: image/png", "Transfer-Encoding: chunked"])
    before, piece = len(front.blobs.kept), bytes(MIB)
    answer = asyncio.create_task(status_of(reader))
    sent = 0
    while sent < 2 * LIMIT and not answer.done():
        try:
            writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await writer.drain()
        except ConnectionError:
            break
        sent += len(piece)
    assert await answer == 413
    assert len(front.blobs.kept) == before
    await testing.eventually_async(lambda: front.blobs.putting == 0, "the call has ended")
    writer.close()


async def test_the_largest_there_may_be_goes_through(ana):
    content = PNG + bytes(LIMIT - len(PNG))
    made = await put(ana, content)
    async with ana.get(f"/v1/blobs/{made['blob_id']}/content") as response:
        assert hashlib.sha256(await response.read()).hexdigest() == made["sha256"]


async def test_a_client_that_sends_faster_than_is_taken_is_held_up(front):
    front.blobs.taking.clear()
    head = ["POST /v1/blobs HTTP/1.1", "Content-Type: application/zip", f"Content-Length: {LIMIT}"]
    _, writer = await raw(front, head)
    sent, piece = 0, bytes(64 * 1024)
    with pytest.raises(TimeoutError):
        while sent < LIMIT:
            async with asyncio.timeout(2.0):
                writer.write(piece)
                await writer.drain()
            sent += len(piece)
    assert sent < UNDERWAY
    front.blobs.taking.set()
    writer.close()
    await testing.eventually_async(lambda: front.blobs.putting == 0, "the call has ended")


@pytest.mark.parametrize("how", ["silent", "gone"])
async def test_a_client_that_stops_sending_is_ended_and_nothing_is_kept(front, how):
    before = len(front.blobs.kept)
    head = ["POST /v1/blobs HTTP/1.1", "Content-Type: image/png", f"Content-Length: {MIB}"]
    reader, writer = await raw(front, head)
    writer.write(PNG)
    await writer.drain()
    await testing.eventually_async(lambda: front.blobs.putting == 1, "it has begun")
    if how == "silent":
        assert await status_of(reader) == 408
    writer.close()
    await testing.eventually_async(lambda: front.blobs.putting == 0, "the call has ended")
    assert len(front.blobs.kept) == before


@pytest.mark.parametrize("how", ["silent", "gone"])
async def test_a_client_that_stops_reading_is_ended_and_little_was_read_for_it(front, ana, how):
    made = await put(ana, bytes(LIMIT), "application/zip")
    before = front.blobs.sent
    reader, writer = await raw(front, [f"GET /v1/blobs/{made['blob_id']}/content HTTP/1.1"])
    assert await status_of(reader) == 200
    if how == "gone":
        writer.close()
    await testing.eventually_async(lambda: front.blobs.reading == 0, "the call has ended")
    assert (front.blobs.sent - before) * MIB < LIMIT
    writer.close()


async def test_a_store_that_is_away_has_a_status_of_its_own(front, ana):
    path = f"/v1/blobs/{(await put(ana))['blob_id']}/content"
    front.blobs.away = True
    for asking in (ana.get(path), ana.post("/v1/blobs", data=PNG, headers={"content-type": "image/png"})):
        told = await answered(asking, 503)
        assert (told["reason"], told["store"], told["retryable"]) == ("BLOBS_UNAVAILABLE", "blobs", True)


async def test_a_content_that_ends_midway_is_not_taken_for_a_whole_one(front, ana):
    path = f"/v1/blobs/{(await put(ana, bytes(5 * MIB), 'application/zip'))['blob_id']}/content"
    front.blobs.cut_after = 2
    with structlog.testing.capture_logs() as lines, pytest.raises(aiohttp.ClientPayloadError):
        async with ana.get(path) as response:
            assert response.status == 200
            await response.read()
    told = {line["event"]: line.get("reason") for line in lines if line["event"] in ("answer_broken_off", "internal_error")}
    assert told == {"answer_broken_off": "BLOBS_UNAVAILABLE"}
