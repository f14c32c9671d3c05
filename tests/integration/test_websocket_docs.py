"""The guide to `/ws`: its example is run as it stands, and its tables name what there is."""

import asyncio
import os
import re
import sys

from services.common.testing import ROOT
from services.gateway import fakes
from services.gateway.surfaces.websocket import rules
from services.gateway.surfaces.websocket.commands import VERBS
from tests.e2e import pages

PAGE = ROOT / "docs/websocket.md"


async def test_the_example_starts_a_run_and_prints_its_answer(identities, state_url):
    (example,) = pages.blocks(PAGE, "python")
    async with fakes.gateway(identities, state_url) as served:
        env = {**os.environ, "BULKHEAD_URL": served.url, "BULKHEAD_API_KEY": served.key, "no_proxy": "127.0.0.1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", example, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (out.decode(), process.returncode) == ("You said: What is 6 * 7?\n", 0), err.decode()


def test_the_tables_name_each_command_and_each_close():
    text = PAGE.read_text()
    rows = re.findall(r"^\| (`[a-z_`,; ]+) \|", text, re.M)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == set(VERBS)
    told = {(int(code), reason) for code, reason in re.findall(r"^\| (\d{4}) \| `(\w+)`", text, re.M)}
    assert told == {(one.code, one.reason) for one in vars(rules).values() if isinstance(one, rules.Farewell)}
