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
