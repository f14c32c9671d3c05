"""docs/content.md, "Blobs over HTTP": its example is run as it stands, and its routes and numbers are those of the code."""

import asyncio
import hashlib
import os
import re
import sys

from services.common.testing import ROOT
from services.gateway import fakes
from services.gateway.edge.admission import VISITS_PER_MINUTE
from services.gateway.settings import Settings
from services.gateway.surfaces.native.blobs import READ, WRITE
from services.gateway.surfaces.native.blobs_models import ENDINGS, MOST_LIFETIME_S, MOST_NAME_CHARS
from tests.e2e import pages
from tests.integration.test_gateway_scopes import NEEDED

PAGE = ROOT / "docs/content.md"
LINK = "GET /v1/blobs/links/{token}"


async def test_the_example_sends_fetches_links_and_deletes(identities, state_url):
    (example,) = pages.blocks(PAGE, "python")
    async with fakes.gateway(identities, state_url) as served:
        env = {**os.environ, "BULKHEAD_URL": served.url, "BULKHEAD_API_KEY": served.key, "no_proxy": "127.0.0.1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", example, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        made, part, same = out.decode().splitlines()
        assert made.split()[1:] == ["22", hashlib.sha256(b"day,sum\n2026-01-31,42\n").hexdigest()]
        assert part == "206 b'day,sum' attachment; filename=\"sums.csv\""
        assert same == "True"
        assert served.blobs.kept == {}


def test_the_page_has_the_routes_scopes_types_and_numbers_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([A-Z]+ /v1/blobs\S*)` \| (\S+) \|", text, re.M))
    needed = {route: scopes[0] for route, scopes in NEEDED.items() if "/v1/blobs" in route}
    assert told == {**needed, LINK: "none"}
    assert set(needed.values()) == {READ, WRITE}
    assert [kind for kind in ENDINGS if f"`{kind}`" not in text] == []
    settings = Settings()
    for said in (
        f"{settings.upload_limit_bytes // 1024**2} MiB", f"within {settings.upload_timeout_s:g} s", f"for {settings.body_timeout_s:g} s",
        f"takes nothing for {settings.slow_reader_s:g} s", f"at most {MOST_NAME_CHARS} characters", f"from 1 to {MOST_LIFETIME_S:,}",
        f"{VISITS_PER_MINUTE} requests a minute",
    ):  # fmt: skip
        assert said in text, said
