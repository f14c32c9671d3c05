"""Blobs over HTTP before a real orchestrator: every type that is taken, what is none of them, and what tools of runs have shown."""

import asyncio
import io
import struct
import zipfile
import zlib
from urllib.parse import quote

import aiohttp
import orjson
import pytest

from services.common import testing
from services.gateway.surfaces.native.blobs_models import ENDINGS
from services.orchestrator.testing.harness import served, settings_for
from tests.contract.event_schema import problems
from tests.integration.blob_client import png
from tests.integration.real_gateway import answered, gateway_before
from tests.integration.rows import ASK, rows_outside
from tests.integration.test_gateway_blob_links import changes
from tests.integration.test_orchestrator_content import CODE, IMAGE, PAPER, PARTS, SHOWN, SOUND

CAGE = "sandbox; default-src 'none'"
MIB = 1024 * 1024


class World:
    """A gateway's callers, what stands outside, and its port."""

    def __init__(self, people, outside):
        self.people, self.outside = people, outside


@pytest.fixture
async def world(identities, behind, state_url, tmp_path, impatient):
    async with rows_outside(identities, behind, state_url, tmp_path, b"{}") as (outside, config):
        settings = settings_for(identities, behind, state_url, config, segments_dir=tmp_path / "blobs")
        async with served(settings, identities), gateway_before(identities, state_url, settings.grpc_port) as people:
            yield World(people, outside)


@pytest.fixture
async def ana(world):
    return await world.people.session()


@pytest.fixture
async def anybody(ana):
    async with aiohttp.ClientSession(ana._base_url) as session:
        yield session


def put(http, content, kind, **query):
    return http.post("/v1/blobs", data=content, headers={"content-type": kind}, params=query)


async def linked(http, blob):
    return (await answered(http.post(f"/v1/blobs/{blob['blob_id']}/links"), 201))["url"]


def png_of(width, height):
    """A PNG that claims a size, of one pixel's data."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0\0\0\0")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)


def zip_bomb():
    """A hundred MiB of zeros, packed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bin", bytes(100 * MIB))
    return file.getvalue()


GIF = b"GIF89a" + struct.pack("<HH", 2, 2)
GOOD = {
    "image/png": png(3, 2), "image/jpeg": b"\xff\xd8\xff\xc0\0\x11\x08\0\x02\0\x03" + bytes(20), "image/gif": GIF + bytes(9),
    "image/webp": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + bytes(20), "audio/mpeg": b"ID3\4" + bytes(20),
    "audio/wav": b"RIFF\x24\0\0\0WAVEfmt " + bytes(20), "audio/ogg": b"OggS" + bytes(20), "application/pdf": b"%PDF-1.7\n",
    "text/plain": "\ufeffgröße".encode(), "text/csv": b"a,b\n1,2\n", "text/markdown": b"# A\n", "application/json": b'{"a": 1}',
    "application/zip": b"PK\x05\x06" + bytes(18), "application/octet-stream": b"\0\1\2",
}  # fmt: skip


async def test_every_type_that_the_gateway_takes_is_kept_and_comes_back(ana):
    assert set(GOOD) == set(ENDINGS)
    for kind, content in GOOD.items():
        made = await answered(put(ana, content, kind, name="a." + ENDINGS[kind][0]), 201)
        assert (made["mime_type"], made["size"]) == (kind, len(content))
        async with ana.get(f"/v1/blobs/{made['blob_id']}/content") as response:
            assert (response.status, await response.read()) == (200, content)
            assert response.content_type == kind


# What a browser would run, if it were told a wrong type, or guessed one.
SCRIPT = b"<script>document.title='ran';fetch('//evil.example')</script>"
HTML = b"<!doctype html><html><body onload=\"document.title='ran'\">" + SCRIPT
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="document.title=\'ran\'">' + SCRIPT + b"</svg>"
POLYGLOT = b"GIF89a/*" + struct.pack("<HH", 2, 2)[2:] + b"\0\0*/=1;document.title='ran';"
CORPUS = [
    ("page.html", "text/plain", HTML),
    ("page.html", "application/octet-stream", HTML),
    ("page.htm\u200b", "text/markdown", HTML),
    ("drawing.svg", "text/plain", SVG),
    ("drawing.svg", "application/octet-stream", SVG),
    ("sheet.csv", "text/csv", b"=cmd|' /C calc'!A0," + SCRIPT),
    ("bom.txt", "text/plain", b"\xef\xbb\xbf" + HTML),
    ("a.json", "application/json", b'{"x": "</script>' + SCRIPT.replace(b'"', b"'") + b'"}'),
    ("a.js", "text/plain", b"document.title='ran'"),
    ("both.gif", "image/gif", POLYGLOT),
    ("both.png", "image/png", png(2, 2) + SCRIPT),
    ("bomb.zip", "application/zip", zip_bomb()),
    ("paper.pdf", "application/pdf", b"%PDF-1.7\n" + SCRIPT),
    ('"; filename=evil.html; x="', "application/zip", b"PK\x05\x06" + bytes(18)),
]


async def test_nothing_of_the_corpus_is_served_as_what_a_browser_runs(ana, anybody):
    for name, kind, content in CORPUS:
        made = await answered(put(ana, content, kind, name=name), 201)
        for http, path in ((ana, f"/v1/blobs/{made['blob_id']}/content"), (anybody, await linked(ana, made))):
            async with http.get(path) as response:
                assert (response.status, await response.read()) == (200, content), name
                told = response.headers
            assert (told["x-content-type-options"], told["content-security-policy"]) == ("nosniff", CAGE)
            assert told.getall("content-type") == [kind + ("; charset=utf-8" if kind.startswith("text/") else "")]
            shown, _, saved = told["content-disposition"].partition("; filename=")
            assert shown == ("inline" if kind.startswith("image/") else "attachment")
            assert saved.partition(";")[0].count('"') == 2
            assert not saved.lower().strip('"').endswith((".html", ".htm", ".svg", ".js", ".xml")), saved
            assert told["content-length"] == str(len(content))


REFUSED = [
    (HTML, "text/html", 415, None), (SVG, "image/svg+xml", 415, None), (HTML, "image/png", 400, "is no image/png, by its own bytes"),
    (SVG, "image/gif", 400, "is no image/gif, by its own bytes"), (GOOD["image/gif"], "image/png", 400, "is no image/png"),
    (png_of(60_000, 60_000), "image/png", 400, "more than 50,000,000 pixels"), (png_of(0, 5), "image/png", 400, "tells no size"),
    (b"GIF89a" + b"\xff" * 8, "image/gif", 400, "more than 50,000,000 pixels"), (b"\xff\xfe" + HTML, "text/plain", 400, "is no text/plain"),
    (b"a\0b", "text/csv", 400, "is no text/csv"), (b"<x>", "application/json", 400, "is no application/json"),
    (HTML, "application/pdf", 400, "is no application/pdf"), (HTML, "application/zip", 400, "is no application/zip"),
    (HTML, "audio/mpeg", 400, "is no audio/mpeg"), (b"", "application/octet-stream", 400, None),
]  # fmt: skip


async def test_what_is_not_what_it_says_is_refused_with_the_reason(ana):
    for content, kind, status, why in REFUSED:
        told = await answered(put(ana, content, kind), status)
        if why is not None:
            assert [error["field"] for error in told["errors"]] == ["content"], (kind, told)
            assert why in told["errors"][0]["detail"]


async def test_an_upload_that_was_cut_leaves_its_key_free(ana):
    port, key = ana._base_url.port, ana.headers["authorization"]
    lines = ("POST /v1/blobs HTTP/1.1", "Host: x", f"Authorization: {key}", "Content-Type: text/plain", "Content-Length: 100000")
    whole = b"x" * 100_000
    for number in range(10):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write("\r\n".join([*lines, f"Idempotency-Key: cut-{number}", "", ""]).encode() + whole[: 7_000 * number])
        await writer.drain()
        if number % 2:
            await asyncio.sleep(0.05)
        writer.transport.abort()
        headers = {"content-type": "text/plain", "idempotency-key": f"cut-{number}"}
        made = await answered(ana.post("/v1/blobs", data=whole, headers=headers), 201)
        assert made["size"] == len(whole)


async def test_a_link_with_any_character_changed_leads_nowhere(ana, anybody):
    url = await linked(ana, await answered(put(ana, GOOD["image/png"], "image/png"), 201))
    start, _, token = url.rpartition("/")
    found = {}
    for changed in {"", *changes(token)}:
        async with anybody.get(f"{start}/{quote(changed, safe='')}") as response:
            found[changed] = (response.status, (await response.json(content_type=None))["reason"])
    assert len(found) > 5 * len(token)
    assert set(found.values()) <= {(404, "LINK_NOT_FOUND"), (404, "ROUTE_NOT_FOUND")}
    async with anybody.get(url) as response:
        assert (response.status, await response.read()) == (200, GOOD["image/png"])


async def test_a_link_ends_with_its_blob_and_with_its_time(ana, anybody):
    made = await answered(put(ana, GOOD["image/png"], "image/png"), 201)
    url = await linked(ana, made)
    async with ana.delete(f"/v1/blobs/{made['blob_id']}") as response:
        assert response.status == 204
    assert (await answered(anybody.get(url), 404))["reason"] == "LINK_NOT_FOUND"
    made = await answered(put(ana, GOOD["image/png"], "image/png"), 201)
    short = (await answered(ana.post(f"/v1/blobs/{made['blob_id']}/links", json={"lifetime_s": 1}), 201))["url"]

    async def over():
        async with anybody.get(short) as response:
            return response.status == 404

    await testing.eventually_async(over, "its second is over")


async def test_a_blob_of_a_thread_goes_with_it(ana):
    await answered(ana.post("/v1/threads", json={"thread_id": "t-blobs"}), 201)
    made = await answered(put(ana, GOOD["image/png"], "image/png", thread_id="t-blobs"), 201)
    assert (made["thread_id"], made["expires_at"]) == ("t-blobs", None)
    assert (await answered(put(ana, GOOD["image/png"], "image/png", thread_id="t-none"), 404))["reason"] == "THREAD_NOT_FOUND"
    async with ana.delete("/v1/threads/t-blobs") as response:
        assert response.status in (202, 204)

    async def gone():
        async with ana.get(f"/v1/blobs/{made['blob_id']}") as response:
            return response.status == 404

    await testing.eventually_async(gone, "the blob is gone with its thread")


async def test_what_a_tool_shows_is_told_as_the_schema_says_and_fetched_by_its_ids(world, ana, anybody):
    body = orjson.dumps({"content": PARTS})
    world.outside.answers["/rows"] = [(200, {"Content-Type": "application/json"}, body)]
    asked = {"json": {"input": ASK, "agent": "reader"}, "headers": {"prefer": "wait=30"}}
    assert (await answered(ana.post("/v1/threads/shown/runs", **asked), 200))["status"] == "succeeded"
    events = (await answered(ana.get("/replay/shown"), 200))["events"]
    assert problems(events) == {}
    told = [event for event in events if event["type"] in SHOWN]
    assert [event["type"] for event in told] == SHOWN
    contents = {"image": IMAGE, "audio": SOUND, "file": PAPER}
    eve = await world.people.session("eve")
    for event in told:
        data = event["data"]
        if event["type"] == "code_block":
            assert data["text"] == CODE
        if "blob_id" not in data:
            continue
        path = f"/v1/blobs/{data['blob_id']}"
        kept = await answered(ana.get(path), 200)
        assert {name: kept[name] for name in ("mime_type", "size", "sha256", "name")} == {
            name: data[name] for name in ("mime_type", "size", "sha256", "name")
        }
        assert kept["thread_id"] == "shown"
        for http, at in ((ana, f"{path}/content"), (anybody, await linked(ana, kept))):
            async with http.get(at) as response:
                found = await response.read()
                assert (response.status, len(found)) == (200, data["size"])
        if event["type"] in contents:
            assert found == contents.pop(event["type"])
        await answered(eve.get(f"{path}/content"), 404)
    assert contents == {}
