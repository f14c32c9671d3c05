"""docs/migrating.md: its examples are run as they stand, one behind the other, before a real orchestrator."""

import asyncio

from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.orchestrator.testing.harness import AGENTS, served, settings_for, write_config
from tests.e2e.pages import blocks
from tests.integration.real_gateway import gateway_before
from tests.integration.test_responses_page import ASSISTANT

PAGE = testing.ROOT / "docs/migrating.md"


def talkative(request):
    """Has something to say about whatever it is asked."""
    return llm_pb2.Message(role="assistant", text=f"This is what I have to say about it: {request.messages[-1].text}")


async def test_the_examples_run_as_they_stand(identities, state_url, behind, tmp_path, monkeypatch, capsys):
    behind.models.reply = talkative
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", AGENTS + ASSISTANT))
    async with served(settings, identities), gateway_before(identities, state_url, settings.grpc_port) as people:
        session = await people.session()
        async with session.get("/health") as response:
            monkeypatch.setenv("BULKHEAD_URL", str(response.url.origin()))
        monkeypatch.setenv("BULKHEAD_API_KEY", session.headers["authorization"].removeprefix("Bearer "))
        names = {}
        for example in blocks(PAGE, "python"):
            await asyncio.to_thread(exec, compile(example, str(PAGE), "exec"), names)
    said = [f"This is what I have to say about it: {text}" for text in ("What is 6 * 7?", "Tell me of the sea.", "No, of the wind.")]
    # Between what services log.
    assert [line for line in capsys.readouterr().out.splitlines() if line in said or "have to say" in line] == said
