"""An agent that reads many rows at once: a real tool executor, which gets them of a server outside."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.orchestrator.testing.fakes import Fakes, obedient
from services.orchestrator.testing.harness import AGENTS, write_config
from services.tool_executor.app import build
from services.tool_executor.settings import Settings
from tests.integration.tool_executor.harness import Outside, http_tool, outside_server
from tests.integration.tool_executor.harness import write_config as write_tools

READERS = (
    AGENTS
    + """  reader:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, tools: [read_rows], recall: {documents: false, memories: false, token_budget: 500}}
"""
)
ASK = "tool read_rows {}"


def reply(request: llm_pb2.CompletionInput) -> llm_pb2.Message:
    """Reads the rows, and tells how much of them it was given."""
    if request.messages[-1].role == "tool":
        return llm_pb2.Message(role="assistant", text=f"given {len(request.messages[-1].text)}")
    return obedient(request)


@asynccontextmanager
async def rows_outside(
    identities: testing.Identities, behind: Fakes, state_url: str, folder: Path, rows: bytes
) -> AsyncIterator[tuple[Outside, Path]]:
    """The server that has the JSON `rows`, and the configuration of orchestrators with the agent `reader`."""
    behind.models.reply = reply
    async with outside_server() as outside:
        outside.answers["/rows"] = [(200, {"Content-Type": "application/json"}, rows)]
        write_tools(folder / "tools", [http_tool(outside, "read_rows", "/rows", annotations={"read_only": True, "idempotent": True})])
        port = testing.free_port()
        settings = Settings(
            env="test", grpc_port=port, metrics_port=0, state_url=state_url, config_dir=folder / "tools", drain_grace_s=1.0,
            **identities.settings(),
        )  # fmt: skip
        async with testing.running(settings, build):
            behind.addresses["tool_executor"] = f"127.0.0.1:{port}"
            yield outside, write_config(folder / "config", READERS)
