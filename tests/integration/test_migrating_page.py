"""docs/migrating.md: its examples are run as they stand, one behind the other, before a real orchestrator."""

from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from tests.e2e.pages import blocks
from tests.integration.documented import platform_of_a_reader, run_all
from tests.integration.test_responses_page import ASSISTANT

PAGE = testing.ROOT / "docs/migrating.md"


def talkative(request):
    """Has something to say about whatever it is asked."""
    return llm_pb2.Message(role="assistant", text=f"This is what I have to say about it: {request.messages[-1].text}")


async def test_the_examples_run_as_they_stand(identities, state_url, behind, tmp_path, monkeypatch, capsys):
    behind.models.reply = talkative
    async with platform_of_a_reader(identities, state_url, behind, tmp_path, monkeypatch, ASSISTANT):
        await run_all(PAGE, blocks(PAGE, "python"))
    said = [f"This is what I have to say about it: {text}" for text in ("What is 6 * 7?", "Tell me of the sea.", "No, of the wind.")]
    # Between what services log.
    assert [line for line in capsys.readouterr().out.splitlines() if line in said or "have to say" in line] == said
