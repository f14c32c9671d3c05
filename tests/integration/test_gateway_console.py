"""The console: what it is served with. What it shows in a browser: tests/system/test_console.py."""

import re

import aiohttp
import pytest

from services.gateway.surfaces.console import STATIC


@pytest.mark.asyncio(loop_scope="module")
async def test_pages_need_no_key_and_may_load_from_here_only(front):
    async with aiohttp.ClientSession(front.url) as http:
        for path, kind in [("/", "html"), ("/docs", "html"), ("/console/app.js", "javascript"), ("/console/app.css", "css")]:
            async with http.get(path) as response:
                assert response.status == 200
                assert response.headers["content-type"].startswith(f"text/{kind}")
                policy = response.headers["content-security-policy"]
                assert "default-src 'self'" in policy
                assert "require-trusted-types-for 'script'" in policy
                assert not re.search(r"unsafe|https?:|data:|\*", policy)
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


def test_the_console_is_small():
    sizes = {path.name: path.stat().st_size for path in STATIC.iterdir()}
    assert sum(sizes.values()) <= 300 * 1024, sizes
    lines = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in STATIC.iterdir()}
    assert max(lines.values()) <= 400, lines


def test_every_module_is_asked_for_at_once():
    """Modules that import one another come one after the other, unless the page names them all."""
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'modulepreload" href="/console/([\w.]+)"', page)) | {"app.js"}
    imported: set[str] = set()
    waiting = ["app.js"]
    while waiting:
        name = waiting.pop()
        if name not in imported:
            imported.add(name)
            waiting += re.findall(r'from "\./([\w.]+)"', (STATIC / name).read_text(encoding="utf-8"))
    assert named == imported
    assert imported | {"docs.js"} == {path.name for path in STATIC.glob("*.js")}
