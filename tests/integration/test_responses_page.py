"""docs/responses.md: its examples are run as they stand, one behind the other, before a real orchestrator."""

import pytest
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.gateway.surfaces.responses.request import SUPPORTED, UNUSED
from tests.e2e.pages import blocks
from tests.integration.documented import platform_of_a_reader, run_all

PAGE = testing.ROOT / "docs/responses.md"
ASSISTANT = '  assistant:\n    current: "1"\n    versions:\n      "1": {prompt: helper.md, model: m}\n'


def talkative(request):
    """Sends mail when it is told to, and else has something to say."""
    said = request.messages[-1]
    if said.role == "user" and said.text.startswith("How is the weather"):
        call = llm_pb2.ToolCall(tool_call_id="c1", name="weather", arguments_json=b'{"city":"Lisbon"}')
        return llm_pb2.Message(role="assistant", tool_calls=[call])
    if said.role == "user" and said.text.startswith("Work out "):
        return llm_pb2.Message(role="assistant", text='{"result":42}')
    if said.role == "user" and said.text.startswith("Send "):
        call = llm_pb2.ToolCall(tool_call_id="c0", name="send_mail", arguments_json=b'{"to":"bo"}')
        return llm_pb2.Message(role="assistant", tool_calls=[call])
    return llm_pb2.Message(role="assistant", text=f"This is what I have to say about it: {said.text}")


async def test_the_examples_run_as_they_stand(identities, state_url, behind, tmp_path, monkeypatch, capsys):
    behind.models.reply = talkative
    async with platform_of_a_reader(identities, state_url, behind, tmp_path, monkeypatch, ASSISTANT):
        names = await run_all(PAGE, blocks(PAGE, "python"))
    shown = capsys.readouterr().out
    assert "This is what I have to say about it: What is 6 * 7?" in shown
    assert 'send_mail {"to":"bo"}' in shown
    assert "what I have to say about it: sunny in Lisbon\n" in shown
    assert "\n42\n" in shown
    assert names["seen"][-1].type == "response.completed"
    assert names["job"].status == "completed"


@pytest.mark.parametrize("name", sorted(SUPPORTED | (UNUSED.keys() - {"tool_choice", "parallel_tool_calls", "top_p", "top_logprobs"})))
def test_every_field_is_on_the_page(name):
    assert f"`{name}" in PAGE.read_text(encoding="utf-8")
