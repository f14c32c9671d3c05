"""docs/ag-ui.md: its example is run as it stands before a real orchestrator, and what it says of names is so."""

from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.gateway.surfaces.ag_ui.projection import STATE_KEYS
from services.gateway.surfaces.ag_ui.run_input import ON_BUSY
from tests.e2e.pages import blocks
from tests.integration.documented import platform_of_a_reader, run_all

PAGE = testing.ROOT / "docs/ag-ui.md"
ASSISTANT = """  assistant:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [send_mail], approval: {when: always}}
"""


def mails(request):
    """Sends mail when it is told to, and says so when it has."""
    said = request.messages[-1]
    if said.role == "user":
        call = llm_pb2.ToolCall(tool_call_id="c0", name="send_mail", arguments_json=b'{"to":"bo"}')
        return llm_pb2.Message(role="assistant", tool_calls=[call])
    return llm_pb2.Message(role="assistant", text="The mail is on its way.")


async def test_the_example_runs_as_it_stands(identities, state_url, behind, tmp_path, monkeypatch, capsys):
    behind.models.reply = mails
    (example,) = blocks(PAGE, "python")
    async with platform_of_a_reader(identities, state_url, behind, tmp_path, monkeypatch, ASSISTANT):
        await run_all(PAGE, [example])
    shown = capsys.readouterr().out
    assert "{'type': 'success'} The mail is on its way." in shown
    # It was asked, and went on when it had the answer.
    assert (shown.count("RUN_STARTED"), shown.count("RUN_FINISHED"), shown.count("TOOL_CALL_RESULT")) == (2, 2, 1)


def test_the_names_of_the_page_are_those_of_the_code():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in ON_BUSY)
    assert f"`{{{', '.join(sorted(STATE_KEYS, key=['plan', 'citations', 'warnings'].index))}}}`" in text
