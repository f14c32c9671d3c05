"""The console: what it is served with, and, in a headless Chromium, what it shows."""

import json
import re
import shutil
import subprocess

import aiohttp
import pytest

from services.common import testing
from services.gateway import fakes
from services.gateway.surfaces.console import STATIC

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
]  # fmt: skip


@pytest.fixture
async def served(identities, state_url):
    async with fakes.gateway(identities, state_url) as gateway:
        yield gateway


async def test_pages_need_no_key_and_may_load_from_here_only(served):
    async with aiohttp.ClientSession(served.url) as http:
        for path, kind in [("/", "html"), ("/docs", "html"), ("/console/app.js", "javascript"), ("/console/app.css", "css")]:
            async with http.get(path) as response:
                assert response.status == 200
                assert response.headers["content-type"].startswith(f"text/{kind}")
                policy = response.headers["content-security-policy"]
                assert "default-src 'self'" in policy
                assert "unsafe" not in policy
                text = await response.text()
            for found in re.findall(r'(?:src|href)="(/[^"]+)"', text):
                async with http.get(found) as response:
                    assert response.status == 200, found


def test_files_name_no_other_address_and_hold_no_inline_code():
    for path in STATIC.iterdir():
        text = path.read_text(encoding="utf-8")
        assert set(re.findall(r"https?://[^\s\"')]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text), path.name
        if path.suffix == ".html":
            assert not re.search(r"<script(?![^>]*\ssrc=)|\son\w+=|\sstyle=", text), path.name


class Page:
    """A page of a headless Chromium, driven over its debugging protocol."""

    def __init__(self, socket):
        self._socket = socket
        self._number = 0
        self.complaints = []

    async def command(self, method, **params):
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            message = (await self._socket.receive()).json()
            if message.get("id") == self._number:
                return message["result"]
            if message.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.complaints.append(json.dumps(message["params"]))

    async def run(self, script):
        answer = await self.command("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        return answer["result"].get("value")

    async def until(self, script):
        await testing.eventually_async(lambda: self.run(f"Boolean({script})"), script, 30)

    async def say(self, agent, text):
        await self.run(f"document.getElementById('agent').value = {json.dumps(agent)}")
        await self.run("document.getElementById('input').focus()")
        await self.command("Input.insertText", text=text)
        await self.command("Input.dispatchKeyEvent", type="keyDown", key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")


@pytest.fixture
async def page(tmp_path):
    chromium = shutil.which("chromium")
    assert chromium, "the package chromium is needed"
    log = tmp_path / "chromium.log"
    with log.open("wb") as output:
        process = subprocess.Popen([chromium, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "about:blank"], stderr=output)
    try:
        found = await testing.eventually_async(lambda: re.search(r"ws://127.0.0.1:(\d+)", log.read_text(errors="replace")), "chromium")
        async with aiohttp.ClientSession() as http:
            async with http.get(f"http://127.0.0.1:{found[1]}/json") as response:
                target = next(entry for entry in await response.json() if entry["type"] == "page")
            async with http.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                for domain in ("Page", "Runtime", "Log"):
                    await page.command(f"{domain}.enable")
                yield page
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.system
async def test_a_conversation_in_the_browser(served, page):
    await page.command("Page.navigate", url=f"{served.url}/?thread=seen")
    await page.until("document.getElementById('thread')?.value === 'seen'")
    await page.run(f"document.getElementById('key').value = '{served.key}'; document.getElementById('session').requestSubmit()")
    await page.until("document.getElementById('agent').value === 'assistant'")
    idle = "document.getElementById('state').dataset.state === 'idle'"

    await page.say("tools", "How much is it?")
    await page.until(f"{idle} && document.querySelector('.turn:last-child .foot')")
    shown = await page.run("document.querySelector('.turn').innerText")
    for text in ("How much is it?", "calculator", "6*7", "42", "I cannot remember.", "README.md", "finished", "simulator"):
        assert text in shown
    assert await page.run("document.querySelector('.tool').dataset.outcome") == "done"

    await page.say("takeover", "Again")
    await page.until(f"{idle} && document.querySelectorAll('.foot').length === 2")
    assert "The answer is forty-two." in await page.run("document.querySelector('.turn:last-child').innerText")
    assert "is foThe" not in await page.run("document.querySelector('.turn:last-child').innerText")

    await page.say("assistant", "<img src=x onerror=alert(1)> **bold**")
    await page.until(f"{idle} && document.querySelectorAll('.foot').length === 3")
    assert await page.run("document.querySelectorAll('#log img').length") == 0
    assert await page.run("document.querySelector('.turn:last-child .prose strong').textContent") == "bold"

    await page.say("hang", "Forever")
    await page.until("document.querySelector('.turn[data-live] .prose')")
    await page.command("Input.dispatchKeyEvent", type="keyDown", key="Escape", code="Escape")
    await page.until(f"{idle} && document.querySelectorAll('.foot').length === 4")
    assert served.log.newest().cancelled.is_set()

    await page.command("Page.reload")
    await page.until("document.querySelectorAll('.foot').length === 4")
    assert "How much is it?" in await page.run("document.querySelector('.turn .user').innerText")
    await page.command("Page.navigate", url=f"{served.url}/docs")
    await page.until("document.querySelectorAll('.route').length > 20")
    # A thread that is new has no log yet; that one 404 is expected.
    assert [c for c in page.complaints if "/replay/seen" not in c] == []
