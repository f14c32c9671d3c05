"""`bulkhead hooks` at a gateway, and a sender that uses what it printed."""

import aiohttp
import pytest

from services.gateway import fakes
from tests.integration.hook_sender import signed
from tests.unit.cli.command_line import command


@pytest.fixture
async def served(identities, state_url, monkeypatch):
    async with fakes.gateway(identities, state_url) as gateway:
        monkeypatch.setenv("BULKHEAD_URL", gateway.url)
        monkeypatch.setenv("BULKHEAD_API_KEY", gateway.key)
        yield gateway


async def status_of(url, secret):
    async with aiohttp.ClientSession() as http, http.post(url, data=b"x", headers=signed(secret, "x")) as response:
        return response.status


async def test_a_hook_from_its_making_to_its_end(served, tmp_path):
    assert "no hooks yet" in (await command("hooks", "list")).out
    made = await command("hooks", "create", "assistant", "--thread", "news", "--instructions", "File it.", "--description", "crm")
    (url,) = [word.rstrip(";") for word in made.err.split() if word.startswith(served.url)]
    hook_id, secret = url.partition("hook_id=")[2], made.out.strip()
    assert await status_of(url, secret) == 202
    assert secret not in made.err
    ((hook, _),) = served.hooks.hooks.values()
    assert (hook.agent, hook.thread_id, hook.instructions, hook.description) == ("assistant", "news", "File it.", "crm")
    (listed,) = (await command("hooks", "list", "--json")).json()
    assert (listed["hook_id"], "secret" in listed) == (hook_id, False)
    table = (await command("hooks", "list")).out
    assert all(words in table for words in (hook_id, "assistant", "news", "crm"))
    rotated = await command("hooks", "rotate", hook_id, "--overlap-hours", "0")
    assert served.log.records.asked[-1].overlap.ToMilliseconds() == 0
    assert [await status_of(url, one) for one in (secret, rotated.out.strip())] == [401, 202]
    assert (await command("hooks", "delete", hook_id, status=None)).status != 0, "nobody was asked"
    assert (await command("hooks", "delete", hook_id, "--yes", "--json")).json() == [{"hook_id": hook_id, "deleted": True}]
    gone = await command("hooks", "rotate", hook_id, status=None)
    assert (gone.status, "there is no such hook" in gone.err) == (1, True), gone


async def test_a_secret_that_the_sender_brings_is_read_from_a_file(served, tmp_path):
    path = tmp_path / "secret"
    path.write_text("whsec_" + "A" * 32 + "\n")
    (made,) = (await command("hooks", "create", "assistant", "--secret-file", str(path), "--json")).json()
    assert made["secret"] == "whsec_" + "A" * 32
    assert await status_of(served.url + made["url"], made["secret"]) == 202
    path.write_bytes(b"\xff\xfe")
    wrong = await command("hooks", "create", "assistant", "--secret-file", str(path), status=2)
    assert "has no secret in it" in wrong.err
    missing = await command("hooks", "create", "assistant", "--secret-file", str(tmp_path / "none"), status=None)
    assert missing.status == 2
