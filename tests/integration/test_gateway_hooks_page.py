"""docs/hooks.md: its examples are run as they stand, and its tables and numbers are those of the code."""

import asyncio
import os
import re
import sys

from standardwebhooks.webhooks import Webhook

from services.common.testing import ROOT
from services.gateway.surfaces.native import hooks, hooks_models
from services.orchestrator.adapters.store import IDEMPOTENCY_KEPT
from services.orchestrator.hooks import accepting, keeping, records, telling
from services.orchestrator.testing.harness import AGENTS, served, settings_for, write_config
from services.orchestrator.webhooks import rotation
from tests.e2e import pages
from tests.integration.hook_sender import signed
from tests.integration.real_gateway import answered, gateway_before

PAGE = ROOT / "docs/hooks.md"
ASSISTANT = (
    AGENTS
    + """  assistant:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m}
"""
)


async def test_the_example_starts_one_run_of_a_message_that_is_sent_twice(identities, state_url, tmp_path, behind):
    example, _ = pages.blocks(PAGE, "python")
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", ASSISTANT))
    async with served(settings, identities), gateway_before(identities, state_url, settings.grpc_port) as people:
        ana = await people.session()
        key = ana.headers["authorization"].removeprefix("Bearer ")
        env = {**os.environ, "BULKHEAD_URL": str(ana._base_url).rstrip("/"), "BULKHEAD_API_KEY": key, "no_proxy": "127.0.0.1"}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", example, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(60):
            out, err = await process.communicate()
        assert process.returncode == 0, err.decode()
        assert out.decode().splitlines() == ["started and then known", "True"]
        (run,) = (await answered(ana.get("/v1/runs"), 200))["data"]
        assert run["agent"] == "assistant"
        (hook,) = (await answered(ana.get("/v1/hooks"), 200))["data"]
        assert (await answered(ana.get(f"/v1/hooks/{hook['hook_id']}"), 200)) == hook


def test_the_signature_without_a_library_is_the_librarys():
    _, without = pages.blocks(PAGE, "python")
    found = {}
    exec(without, found)
    secret, body = "whsec_" + "A" * 32, "ü"
    headers = signed(secret, body, "msg_1")
    assert found["signature"](secret, "msg_1", int(headers["webhook-timestamp"]), body.encode()) == headers["webhook-signature"]
    Webhook(secret).verify(body, headers, json_parse=False)


def test_the_page_has_every_field_and_the_numbers_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    fields = text.partition("| field of a hook |")[2].partition("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", fields, re.M)) == set(hooks_models.HookCreate.model_fields)
    for label in (records.LABEL, records.LABEL_MESSAGE, records.LABEL_DIGEST):
        assert f"`{label}`" in text
    assert accepting.MOST_BODY_BYTES == hooks.MOST_BODY_BYTES == 256 * 1024
    assert hooks_models.MOST_INSTRUCTIONS == keeping.MOST_INSTRUCTIONS_BYTES == 8 * 1024
    assert rotation.MOST_OVERLAP.total_seconds() * 1000 == hooks_models.MOST_OVERLAP_MS
    assert (accepting.TOLERANCE_S, keeping.MOST_SECRETS) == (300, 4)
    for said in (
        f"at most {keeping.MOST_HOOKS} hooks",
        f"at most {keeping.MOST_DESCRIPTION} characters",
        f"at most {rotation.MOST_OVERLAP.days} days",
        f"{keeping.LEAST_SECRET_BYTES} to {keeping.MOST_SECRET_BYTES} bytes",
        f"{IDEMPOTENCY_KEPT.total_seconds() / 3600:.0f} hours",
        f"`<{telling.FENCE}>`",
        "at most 256 KiB",
        "at most 8 KiB",
        "at most five minutes",
    ):
        assert said in text, said
