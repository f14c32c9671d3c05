"""docs/keys.md: its example is run as it stands, and its tables and numbers are those of the code."""

import asyncio
import os
import re
import sys

from services.common.accounts import ACCOUNT_CACHE, MOST_KEYS
from services.common.idempotency import KEPT
from services.common.testing import ROOT
from services.gateway import fakes
from services.gateway.surfaces.native import keys_models, keys_reach
from tests.e2e import pages
from tests.integration.whole_gateway import native_routes

PAGE = ROOT / "docs/keys.md"


async def test_the_example_makes_uses_rotates_and_ends_a_key(identities, state_url):
    (example,) = pages.blocks(PAGE, "python")
    async with fakes.gateway(identities, state_url) as served:
        env = {**os.environ, "BULKHEAD_URL": served.url, "BULKHEAD_API_KEY": served.key, "no_proxy": "127.0.0.1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", example, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        first, threads, until = out.decode().splitlines()
        assert re.fullmatch(r"key_[0-9a-f]{16} ends with \S{4}", first)
        assert threads == "0 threads"
        assert re.fullmatch(r"the secret until now works until 2\d{3}-\d\d-\d\dT\S+Z", until)
        assert len(await served.accounts.list_keys("acme")) == 1
        routes = {route for route in await native_routes(served.url) if "/v1/keys" in route}
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| keys:", text, re.M)
    told = {route.replace("{id}", "{key_id}") for row in rows for route in re.findall(r"`([A-Z]+ /\S+)`", row)}
    assert told == routes


def test_the_page_has_every_field_and_the_numbers_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    told = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    assert told == set(keys_models.KeyCreate.model_fields)
    days = keys_models.MOST_OVERLAP_MS // 86_400_000
    for said in (
        f"at most {days} days", f"at most {keys_reach.MOST_BY_TOKEN.days} days", f"{MOST_KEYS:,} keys",
        f"after {ACCOUNT_CACHE.total_seconds():.0f} s", f"kept for {KEPT.total_seconds() / 3600:.0f} h",
    ):  # fmt: skip
        assert said in text, said
