"""`bulkhead blobs` at a gateway over fakes, as a user types them: what is sent comes back byte for byte."""

import hashlib

import aiohttp
import pytest

from tests.unit.cli.command_line import command

pytestmark = pytest.mark.asyncio(loop_scope="module")
# Larger than one message of the services' protocol.
TEXT = "Zeile, žluť, 行\n".encode() * 100_000


@pytest.fixture(autouse=True)
def _connected(front, monkeypatch, tmp_path):
    monkeypatch.setenv("BULKHEAD_URL", front.url)
    monkeypatch.setenv("BULKHEAD_API_KEY", front.key)
    monkeypatch.chdir(tmp_path)


async def test_a_file_is_kept_shown_linked_fetched_and_deleted(front, tmp_path):
    (tmp_path / "Bericht 1.md").write_bytes(TEXT)
    done = await command("blobs", "upload", "Bericht 1.md", "--thread", "t-blobs")
    blob_id = done.out.strip()
    assert "text/markdown" in done.err
    (shown,) = (await command("blobs", "show", blob_id, "--json")).json()
    assert (shown["name"], shown["size"], shown["thread_id"]) == ("Bericht 1.md", len(TEXT), "t-blobs")
    assert shown["sha256"] == hashlib.sha256(TEXT).hexdigest()
    assert (await command("blobs", "download", blob_id, "-o", "back.md")).out == "back.md\n"
    assert (tmp_path / "back.md").read_bytes() == TEXT
    link = (await command("blobs", "link", blob_id, "--lifetime-seconds", "60")).out.strip()
    async with aiohttp.ClientSession() as stranger, stranger.get(link) as answer:
        assert (answer.status, await answer.read()) == (200, TEXT)
    assert (await command("blobs", "delete", blob_id, "--yes")).out == f"{blob_id}: deleted\n"
    for verb in ("show", "download", "link"):
        assert (await command("blobs", verb, blob_id, status=1)).err.startswith("bulkhead: ")


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("upload", "a.png"), 2, "image/png"),
        (("upload", "a.txt", "--type", "image/svg+xml"), 2, ""),
        (("upload", "a.txt", "--thread", "no thread"), 2, "thread_id"),
        (("upload", "a.txt", "--name", "n" * 300), 2, "name"),
        (("link", "blob_none", "--lifetime-seconds", "604801"), 2, "or equal to 604800"),
        (("show", "blob_none"), 1, ""),
    ],
)
async def test_what_is_refused_is_one_line_with_its_field(tmp_path, arguments, status, told):
    (tmp_path / "a.png").write_bytes(b"no image")
    (tmp_path / "a.txt").write_bytes(b"text")
    done = await command("blobs", *arguments, status=status)
    assert (done.out, done.err.startswith("bulkhead: "), done.err.count("\n"), told in done.err) == ("", True, 1, True), done.err


async def test_a_key_without_the_scope_is_told_which_one_it_needs(front, tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_bytes(b"text")
    monkeypatch.setenv("BULKHEAD_API_KEY", await front.issue(scopes=("blobs:read",)))
    assert "--scope blobs:write" in (await command("blobs", "upload", "a.txt", status=4)).err
