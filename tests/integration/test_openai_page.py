"""docs/openai.md: its examples are run as they stand, one behind the other, before a real orchestrator."""

import re

import pytest
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.gateway.surfaces.openai import request
from tests.e2e.pages import blocks
from tests.integration.blob_client import png
from tests.integration.documented import platform_of_a_reader, run_all

PAGE = testing.ROOT / "docs/openai.md"
ASSISTANT = '  assistant:\n    current: "1"\n    versions:\n      "1": {prompt: helper.md, model: m}\n'


def talkative(asked):
    """Asks for the weather, works out a sum in the form that is wanted, and says what it sees."""
    said = asked.messages[-1]
    if said.role == "user" and "weather" in said.text:
        call = llm_pb2.ToolCall(tool_call_id="c0", name="Weather", arguments_json=b'{"city":"Lisbon"}')
        return llm_pb2.Message(role="assistant", tool_calls=[call])
    if asked.response_format_json:
        return llm_pb2.Message(role="assistant", text='{"steps":["6 * 7"],"result":42}')
    seen = " and saw it" if b"image_url" in said.content_json else ""
    return llm_pb2.Message(role="assistant", text=f"I heard{seen}: {said.text}")


async def test_the_examples_run_as_they_stand(identities, state_url, behind, tmp_path, monkeypatch, capsys):
    behind.models.reply = talkative
    (tmp_path / "chart.png").write_bytes(png())
    kept = tmp_path / "segments"
    async with platform_of_a_reader(identities, state_url, behind, tmp_path, monkeypatch, ASSISTANT, segments_dir=kept):
        monkeypatch.chdir(tmp_path)
        names = await run_all(PAGE, blocks(PAGE, "python"))
    # What the services log in between is none of what is shown.
    shown = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .*\n", "", capsys.readouterr().out)
    assert "I heard: What is 6 * 7?" in shown
    assert "I heard: It is sunny in Lisbon." in shown
    assert "42\n" in shown
    assert "I heard and saw it" in shown
    assert [one["role"] if isinstance(one, dict) else one.role for one in names["messages"]] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize("name", sorted(request._TAKEN - {"model", "messages", "stream", "stream_options", "n"}))
def test_every_field_is_on_the_page(name):
    assert f"`{name}" in PAGE.read_text(encoding="utf-8")
