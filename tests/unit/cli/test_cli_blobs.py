"""`bulkhead blobs` at a server that answers as the API does."""

import asyncio
import hashlib
import json
import os
import stat

import pytest
from aiohttp import web

from services.cli import blobs
from services.common import testing
from tests.unit.cli.command_line import command, on_a_terminal

pytestmark = pytest.mark.asyncio
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))


class Kept:
    """Blobs in memory, over the routes of the API."""

    def __init__(self):
        self.blobs, self.contents, self.asked, self.lost = {}, {}, [], 0

    async def add(self, request: web.Request) -> web.StreamResponse:
        content = await request.read()
        self.asked.append((request.headers["idempotency-key"], request.content_type, dict(request.query), content))
        if self.lost:
            self.lost -= 1
            request.transport.abort()
        blob = {
            "blob_id": f"blob_{len(self.blobs)}", "mime_type": request.content_type, "size": len(content),
            "name": request.query.get("name", ""), "thread_id": request.query.get("thread_id"),
            "sha256": hashlib.sha256(content).hexdigest(), "created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-02-01T00:00:00Z",
        }  # fmt: skip
        self.blobs[blob["blob_id"]], self.contents[blob["blob_id"]] = blob, content
        return web.json_response(blob, status=201)

    async def show(self, request: web.Request) -> web.StreamResponse:
        blob = self.blobs.get(request.match_info["id"])
        if blob is None:
            return web.json_response({"detail": "there is no such blob", "status": 404, "instance": request.path}, status=404)
        return web.json_response(blob)

    async def content(self, request: web.Request) -> web.StreamResponse:
        if self.lost:
            self.lost -= 1
            stream = web.StreamResponse(headers={"content-length": str(len(PNG))})
            await stream.prepare(request)
            await stream.write(PNG[:9])
            request.transport.abort()
            return stream
        return web.Response(body=self.contents[request.match_info["id"]], content_type="image/png")

    async def link(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(await request.json())
        return web.json_response({"url": "/v1/blobs/links/tok\x1b[2J", "expires_at": "2026-01-01T01:00:00Z"})

    async def delete(self, request: web.Request) -> web.StreamResponse:
        del self.blobs[request.match_info["id"]]
        return web.Response(status=204)


@pytest.fixture
async def kept(monkeypatch, tmp_path):
    made, app = Kept(), web.Application(client_max_size=2 * blobs.MOST_BYTES)
    app.router.add_post("/v1/blobs", made.add)
    app.router.add_get("/v1/blobs/{id}", made.show)
    app.router.add_delete("/v1/blobs/{id}", made.delete)
    app.router.add_get("/v1/blobs/{id}/content", made.content)
    app.router.add_post("/v1/blobs/{id}/links", made.link)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    monkeypatch.setenv("BULKHEAD_URL", f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setenv("BULKHEAD_API_KEY", "bh_x")
    monkeypatch.chdir(tmp_path)
    yield made
    await runner.cleanup()


async def test_a_file_is_kept_once_though_its_answers_are_lost_with_its_name_and_kind(kept, tmp_path):
    (tmp_path / "Chart.PNG").write_bytes(PNG)
    kept.lost = 2
    done = await command("blobs", "upload", "Chart.PNG", "--thread", "t-1", constants={"client.RETRY_EVERY_S": 0.0})
    assert (done.out, done.err) == ("blob_2\n", "image/png, 264 bytes, kept until 2026-02-01 00:00:00 UTC\n")
    assert (len(kept.asked), len(set(map(repr, kept.asked)))) == (3, 1)
    key, kind, query, content = kept.asked[0]
    assert (key[:4], kind, query, content) == ("cli-", "image/png", {"name": "Chart.PNG", "thread_id": "t-1"}, PNG)
    (told,) = (await command("blobs", "upload", "Chart.PNG", "--name", "x.bin", "--json")).json()
    assert (told["name"], told["mime_type"]) == ("x.bin", "application/octet-stream")
    (told,) = (await command("blobs", "upload", "Chart.PNG", "--type", "image/gif", "--json")).json()
    assert told["mime_type"] == "image/gif"


async def test_what_comes_on_stdin_is_kept_and_what_is_kept_goes_to_stdout_byte_for_byte(kept):
    upload = testing.python("-m", "services.cli", "blobs", "upload", "-", "--name", "a.png")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*upload, stdin=pipe, stdout=pipe)
    assert (await process.communicate(PNG))[0] == b"blob_0\n"
    download = testing.python("-m", "services.cli", "blobs", "download", "blob_0", "--output", "-")
    process = await asyncio.create_subprocess_exec(*download, stdout=pipe, stderr=pipe)
    assert await process.communicate() == (PNG, b"")


async def test_a_blob_is_written_as_a_whole_or_not_at_all(kept, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    await command("blobs", "upload", "a.png")
    (tmp_path / "a.png").write_bytes(b"mine")
    refused = await command("blobs", "download", "blob_0", status=6)
    assert ("--force" in refused.err, (tmp_path / "a.png").read_bytes()) == (True, b"mine")
    kept.lost = 1
    assert (await command("blobs", "download", "blob_0", "--force", constants={"client.RETRY_EVERY_S": 0.0})).out == "a.png\n"
    assert (tmp_path / "a.png").read_bytes() == PNG
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) & 0o700 == 0o600
    (tmp_path / "folder").mkdir()
    assert (await command("blobs", "download", "blob_0", "-o", "folder", "--json")).json()[0]["path"] == "folder/a.png"
    kept.lost = 99
    broken = await command("blobs", "download", "blob_0", "-o", "b.png", status=3, constants={"client.RETRY_EVERY_S": 0.0})
    assert "broke off" in broken.err
    kept.lost = 0
    kept.contents["blob_0"] = b"other"
    assert "SHA-256" in (await command("blobs", "download", "blob_0", "-o", "b.png", status=1)).err
    assert sorted(os.listdir(tmp_path)) == ["a.png", "folder"]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../etc/passwd", "passwd"), ("..\\up.png", "up.png"), (".bashrc", "bashrc"), ("..", "blob_0"), ("", "blob_0"),
        ("a\x1b[2Jb\n.png", "a[2Jb .png"), ("/", "blob_0"),
    ],
)  # fmt: skip
async def test_a_name_that_somebody_else_has_chosen_leads_to_no_other_folder_and_hides_nothing(kept, tmp_path, name, file):
    (tmp_path / "in").write_bytes(b"x")
    await command("blobs", "upload", "in", "--name", "n")
    kept.blobs["blob_0"]["name"] = name
    assert (await command("blobs", "download", "blob_0")).out == f"{file}\n"
    assert sorted(os.listdir(tmp_path)) == sorted(["in", file])


async def test_a_blob_is_shown_linked_and_deleted(kept, tmp_path):
    (tmp_path / "a.txt").write_text("hi")
    await command("blobs", "upload", "a.txt", "--name", "a\x1b[2J.txt")
    assert json.loads((await command("blobs", "show", "blob_0")).out)["mime_type"] == "text/plain"
    link = await command("blobs", "link", "blob_0", "--lifetime-seconds", "90")
    assert (link.out, kept.asked[-1]) == (f"{os.environ['BULKHEAD_URL']}/v1/blobs/links/tok[2J\n", {"lifetime_s": 90})
    assert "without a key, until 2026-01-01 01:00:00 UTC" in link.err
    assert (await command("blobs", "link", "blob_0", "--json")).json()[0]["expires_at"] == "2026-01-01T01:00:00Z"
    assert kept.asked[-1] == {}
    assert "--yes" in (await command("blobs", "delete", "blob_0", status=2)).err
    assert (await command("blobs", "delete", "blob_0", "--yes")).out == "blob_0: deleted\n"
    assert "no such blob" in (await command("blobs", "show", "blob_0", status=1)).err


async def test_bytes_are_not_written_to_a_terminal(kept, tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    await command("blobs", "upload", "a.png")
    async with on_a_terminal("blobs", "download", "blob_0", "-o", "-") as (written, process, _):
        assert await process.wait() == 2
    assert b"nothing for a terminal" in written


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("upload", "nowhere.png"), 1, "nowhere.png cannot be read"),
        (("upload", "."), 1, "cannot be read"),
        (("upload", "empty"), 2, "is empty"),
        (("upload", "large"), 2, "25 MiB"),
        (("show", ".."), 2, "is no id"),
        (("download", "blob_9"), 1, "no such blob"),
        (("download", "blob_9", "--json", "-o", "-"), 2, "both write to stdout"),
        (("link", "blob_9", "--lifetime-seconds", "0"), 2, "--lifetime-seconds"),
        (("link", "blob_9", "--lifetime-seconds", "nan"), 2, "--lifetime-seconds"),
    ],
)
async def test_what_goes_wrong_is_one_line_and_a_status(kept, tmp_path, arguments, status, told):
    (tmp_path / "empty").write_bytes(b"")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(blobs.MOST_BYTES + 1)
    done = await command("blobs", *arguments, status=status)
    assert (done.out, done.err.startswith("bulkhead: "), done.err.count("\n"), told in done.err) == ("", True, 1, True), done.err
    assert not kept.asked
