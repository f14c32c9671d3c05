"""Runs with tools of their client, and the results that the client brings."""

from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.harness import Client

SUM = 'tool calculator {"expression": "2+3"}'
ASK = 'tool ask_user {"question": "which one?"}'
MIXED = f"tools\n{ASK}\n{SUM}\ntool show {{}}"
PLAN = 'tool update_plan {"steps": [{"title": "do it", "status": "pending"}]}'
TOOLS = [
    pb.ClientTool(name="ask_user", description="Asks.", parameters_json=b'{"type":"object","properties":{"question":{"type":"string"}}}'),
    pb.ClientTool(name="show", strict=True),
]


async def made(client: Client, *said: pb.InputMessage, agent: str = "quick", **fields: Any) -> pb.CreateRunResponse:
    """Asks for a run."""
    with client.calling():
        return await client.runs.CreateRun(pb.CreateRunRequest(agent=agent, input=said, **fields))


async def ended(client: Client, *said: pb.InputMessage, **fields: Any) -> pb.Run:
    """A run that has ended."""
    return await client.wait((await made(client, *said, **fields)).run.run_id)


def user(text: str) -> pb.InputMessage:
    """What a user says."""
    return pb.InputMessage(role="user", text=text)


def results(run: pb.Run, *texts: str) -> list[pb.InputMessage]:
    """What the client brings of each call that the run asked for."""
    return [
        pb.InputMessage(role="tool", text=text, tool_call_id=call.tool_call_id)
        for call, text in zip(run.client_tool_calls, texts, strict=True)
    ]  # fmt: skip


def hold(behind: Fakes) -> None:
    """Has the model say nothing until its gate is opened."""
    behind.models.hold_after = 0
    behind.models.gate.close()


def given(behind: Fakes) -> list[tuple[str, str, str]]:
    """What the last model call was given but for the prompt."""
    return [(m.role, m.text, m.tool_call_id) for m in behind.models.calls[-1].request.messages if m.role != "system"]
