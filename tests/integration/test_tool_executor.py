"""The tool executor over real gRPC and a real Valkey."""

import orjson
import pytest
from bulkhead.tools.v1 import tools_pb2, tools_pb2_grpc

from services.common import testing
from services.common.errors import NotFound, PermissionDenied
from services.tool_executor.app import build
from services.tool_executor.settings import Settings

TOOLS = """
tools:
  - {name: calculator, version: "1.0.0"}
  - {name: current_time, scopes: ["time:read"]}
"""
POLICIES = "sets: {prod: {free: {tool_calls_per_minute: 3}, enterprise: {}}}"


@pytest.fixture
async def tools(tmp_path, state_url, identities):
    (tmp_path / "tools.yaml").write_text(TOOLS)
    (tmp_path / "policies.yaml").write_text(POLICIES)
    port = testing.free_port()
    settings = Settings(
        env="test", policy_set="prod", grpc_port=port, metrics_port=0, state_url=state_url, config_dir=tmp_path, **identities.settings()
    )
    async with testing.running(settings, build), testing.dialer("orchestrator", {"tool_executor": f"127.0.0.1:{port}"}) as dialer:
        yield tools_pb2_grpc.ToolServiceStub(dialer.channel("tool_executor"))


async def execute(stub, name, arguments, key="", **fields):
    raw = arguments if isinstance(arguments, bytes) else orjson.dumps(arguments)
    request = tools_pb2.ExecuteToolRequest(name=name, arguments_json=raw, idempotency_key=key, **fields)
    return [event async for event in stub.ExecuteTool(request)]


async def test_the_calculator_answers_and_the_result_is_the_last_event(tools, identities):
    with testing.calling(identities):
        *_, last = await execute(tools, "calculator", {"expression": "17 * 23"}, "r/1/1")
        again = await execute(tools, "calculator", {"expression": "17 * 23"}, "r/1/1")
    assert last.result.outcome == tools_pb2.TOOL_OUTCOME_DONE
    assert orjson.loads(last.result.output_json) == {"result": "391", "exact": True}
    assert not last.result.replayed
    assert again[-1].result.replayed
    assert again[-1].result.output_json == last.result.output_json


async def test_only_usable_tools_are_listed(tools, identities):
    with testing.calling(identities, testing.principal_of(scopes=["tools:execute"])):
        listed = await tools.ListTools(tools_pb2.ListToolsRequest())
        assert [t.name for t in listed.tools] == ["calculator"]
        with pytest.raises(PermissionDenied) as caught:
            await execute(tools, "current_time", {})
        assert caught.value.metadata["missing_scopes"] == "time:read"
        with pytest.raises(NotFound):
            await execute(tools, "nothing", {})
