"""Links to blobs: anybody has the content by them for as long as they hold, nobody by another, and nothing tells of them."""

import asyncio
import string
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import testing
from services.gateway.edge import admission, asgi
from tests.integration.real_gateway import answered

pytestmark = pytest.mark.asyncio(loop_scope="module")
GIF = b"GIF89a" + bytes(40)
ALPHABET = string.ascii_letters + string.digits + "-_.~!*'/%+ \0\n\x7fé"


@pytest_asyncio.fixture(loop_scope="module")
async def anybody(front):
    """A session of whoever has no key."""
    async with aiohttp.ClientSession(front.url) as session:
        yield session


async def made(http, **body):
    """(blob, link)"""
    blob = await answered(http.post("/v1/blobs?name=a.gif", data=GIF, headers={"content-type": "image/gif"}), 201)
    return blob, await answered(http.post(f"/v1/blobs/{blob['blob_id']}/links", json=body), 201)


async def test_anybody_has_the_content_by_its_link(ana, anybody):
    blob, link = await made(ana, lifetime_s=60)
    assert link["url"].startswith("/v1/blobs/links/")
    for method in (anybody.get, anybody.head):
        async with method(link["url"]) as response:
            assert (response.status, await response.read()) == (200, GIF if method == anybody.get else b"")
            headers = response.headers
        assert (headers["cache-control"], headers["referrer-policy"]) == ("private, max-age=60", "no-referrer")
        assert headers["content-security-policy"] == "sandbox; default-src 'none'"
        assert (headers["content-disposition"], headers["x-content-type-options"]) == ('inline; filename="a.gif"', "nosniff")
        assert not {"set-cookie", "www-authenticate", "ratelimit", "ratelimit-policy"} & {name.lower() for name in headers}
    async with anybody.get(link["url"], headers={"range": "bytes=0-5"}) as response:
        assert (response.status, await response.read()) == (206, b"GIF89a")
    async with anybody.get(link["url"] + "?utm=x", headers={"if-none-match": f'"{blob["sha256"]}"'}) as response:
        assert response.status == 304


async def test_credentials_make_no_difference_to_a_link(front, ana, anybody):
    _, link = await made(ana)
    for headers in ({"authorization": "Bearer bh_none"}, {"authorization": "nonsense"}, {"cookie": "a=b"}, {"x-api-key": front.key}):
        async with anybody.get(link["url"], headers=headers) as response:
            assert response.status == 200


async def test_how_long_a_link_may_hold_is_bounded(ana):
    blob, _ = await made(ana)
    for lifetime_s in (0, -1, 604_801, "60", 1.5, []):
        told = await answered(ana.post(f"/v1/blobs/{blob['blob_id']}/links", json={"lifetime_s": lifetime_s}), 422)
        assert [error["field"] for error in told["errors"]] == ["lifetime_s"]
    await answered(ana.post(f"/v1/blobs/{blob['blob_id']}/links", json={"lifetime_s": 604_800}), 201)
    await answered(ana.post(f"/v1/blobs/{blob['blob_id']}/links"), 201)


def changes(token):
    """Every token that differs from this one in a character, by one more or by one less."""
    for at in range(len(token)):
        yield token[:at] + token[at + 1 :]
        for other in {ALPHABET[(at * 7 + turn * 13) % len(ALPHABET)] for turn in range(5)} | {
            chr(ord(token[at]) ^ 1),
            token[at].swapcase(),
        }:
            if other != token[at]:
                yield token[:at] + other + token[at + 1 :]
    yield token + "A"
    yield "A" + token
    yield token + "="


async def test_a_link_with_any_character_changed_leads_nowhere(ana, anybody):
    _, link = await made(ana)
    start, _, token = link["url"].rpartition("/")
    tried = {}
    for changed in {"", *changes(token)}:
        async with anybody.get(f"{start}/{quote(changed, safe='')}") as response:
            tried[changed] = response.status, (await response.json(content_type=None))["reason"]
    assert len(tried) > 5 * len(token)
    assert set(tried.values()) <= {(404, "LINK_NOT_FOUND"), (404, "ROUTE_NOT_FOUND")}
    assert await answered(anybody.get(link["url"], headers={"range": "bytes=x"}), 416)


async def test_a_link_ends_with_its_time_and_with_its_blob(ana, anybody):
    _, link = await made(ana, lifetime_s=1)

    async def ended():
        async with anybody.get(link["url"]) as response:
            return response.status == 404

    await testing.eventually_async(ended, "its second is over")
    blob, link = await made(ana)
    await answered(ana.get(f"/v1/blobs/{blob['blob_id']}"), 200)
    async with ana.delete(f"/v1/blobs/{blob['blob_id']}") as response:
        assert response.status == 204
    assert (await answered(anybody.get(link["url"]), 404))["reason"] == "LINK_NOT_FOUND"


@pytest.fixture
def spans(monkeypatch):
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(asgi, "_tracer", provider.get_tracer("test"))
    yield exporter
    provider.shutdown()


async def test_neither_logs_nor_traces_have_the_token(front, ana, anybody, spans):
    _, link = await made(ana)
    token = link["url"].rpartition("/")[2]
    spans.clear()
    with structlog.testing.capture_logs() as lines:
        for path in (
            link["url"],
            f"/v1/blobs/%6Cinks/{token}",
            f"/v1/blobs/links/{token}x",
            f"/v1/blobs/links/{token}/",
            f"/v1/x/links/{token}",
        ):
            async with anybody.get(path) as response:
                told = await response.text()
                assert response.status == 200 or token not in told
        front.blobs.away = True
        try:
            assert token not in str(await answered(anybody.get(link["url"]), 503))
        finally:
            front.blobs.away = False
    assert len(lines) >= 6
    assert token not in str(lines)
    found = [(span.name, dict(span.attributes)) for span in spans.get_finished_spans()]
    assert len(found) == 6
    assert token not in str(found)
    assert ("GET /v1/blobs/links/{token}", "/v1/blobs/links/-") in [(name, about["url.path"]) for name, about in found]


async def test_a_blob_is_read_by_links_only_so_often(front, ana, anybody, monkeypatch):
    monkeypatch.setattr(admission, "VISITS_PER_MINUTE", 3)
    (_, one), (_, other) = await made(ana), await made(ana)

    async def status(url):
        async with anybody.get(url) as response:
            return response.status, response.headers.get("retry-after"), response.headers.get("ratelimit-policy")

    assert [await status(one["url"]) for _ in range(3)] == [(200, None, None)] * 3
    refused, after, policy = await status(one["url"])
    assert (refused, int(after) > 0, policy) == (429, True, '"link_requests_per_minute";q=3;w=60')
    assert (await status(other["url"]))[0] == 200
    await testing.eventually_async(lambda: front.blobs.reading == 0, "what was refused is read no more")


async def test_a_link_is_made_once_under_a_key_and_changes_are_refused(ana, anybody):
    blob, _ = await made(ana)
    path, key = f"/v1/blobs/{blob['blob_id']}/links", {"idempotency-key": "link-1"}
    for _ in range(2):
        link = await answered(ana.post(path, json={"lifetime_s": 60}, headers=key), 201)
        async with anybody.get(link["url"]) as response:
            assert response.status == 200
    assert (await answered(ana.post(path, json={"lifetime_s": 61}, headers=key), 422))["reason"] == "IDEMPOTENCY_MISMATCH"


async def test_answers_with_a_link_are_kept_by_no_cache(ana):
    blob, _ = await made(ana)
    async with ana.post(f"/v1/blobs/{blob['blob_id']}/links") as response:
        assert response.headers["cache-control"] == "no-store"


async def test_many_read_one_link_at_once(ana, anybody):
    _, link = await made(ana)

    async def read():
        async with anybody.get(link["url"]) as response:
            return await response.read()

    assert set(await asyncio.gather(*(read() for _ in range(20)))) == {GIF}
