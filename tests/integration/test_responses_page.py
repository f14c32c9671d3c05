"""docs/responses.md: its examples are run as they stand, one behind the other, before a real orchestrator."""

import asyncio

import pytest
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.gateway.surfaces.responses.request import SUPPORTED, UNUSED
from services.orchestrator.testing.harness import AGENTS, served, settings_for, write_config
from tests.e2e.pages import blocks
from tests.integration.real_gateway import gateway_before

PAGE = testing.ROOT / "docs/responses.md"
ASSISTANT = '  assistant:\n    current: "1"\n    versions:\n      "1": {prompt: helper.md, model: m}\n'


def talkative(request):
    """Sends mail when it is told to, and else has something to say."""
    said = request.messages[-1]
    if said.role == "user" and said.text.startswith("Send "):
        call = llm_pb2.ToolCall(tool_call_id="c0", name="send_mail", arguments_json=b'{"to":"bo"}')
        return llm_pb2.Message(role="assistant", tool_calls=[call])
    return llm_pb2.Message(role="assistant", text=f"This is what I have to say about it: {said.text}")


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
    shown = capsys.readouterr().out
    assert "This is what I have to say about it: What is 6 * 7?" in shown
    assert 'send_mail {"to":"bo"}' in shown
    assert names["seen"][-1].type == "response.completed"
    assert names["job"].status == "completed"


@pytest.mark.parametrize("name", sorted(SUPPORTED | (UNUSED.keys() - {"tool_choice", "parallel_tool_calls", "top_p", "top_logprobs"})))
def test_every_field_is_on_the_page(name):
    assert f"`{name}" in PAGE.read_text(encoding="utf-8")
