"""What an operator sees of a call: one span, one log line, the metrics; and none of its arguments."""

import urllib.request

import pytest
import structlog
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from services.common import testing
from services.common.errors import PermissionDenied
from services.tool_executor import execution
from tests.integration.tool_executor.harness import client_of, executor, write_config

SECRET = "31337 + 31337"


@pytest.fixture
def caller(identities):
    """The calls of a test belong to a user with every scope."""
    with testing.calling(identities):
        yield


@pytest.fixture
def spans(monkeypatch):
    """The spans of tool calls."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(execution, "_tracer", provider.get_tracer("test"))
    return exporter


async def test_a_call_is_one_span_and_one_line_without_its_arguments(tmp_path, state_url, identities, caller, spans):
    write_config(tmp_path, [{"name": "calculator"}])
    async with executor(tmp_path, state_url, identities) as client:
        with structlog.testing.capture_logs() as lines:
            await client.result("calculator", {"expression": SECRET}, "r/1/2", run_id="r", thread_id="t")
            await client.result("calculator", {"expression": SECRET}, "r/1/2", run_id="r", thread_id="t")
            await client.result("calculator", {"expression": "1/0"}, "r/1/3", run_id="r", thread_id="t")
    done, again, failed = spans.get_finished_spans()
    assert done.name == "execute_tool calculator"
    assert dict(done.attributes) == {
        "gen_ai.operation.name": "execute_tool",
        "gen_ai.tool.name": "calculator",
        "gen_ai.tool.call.id": "r/1/2",
        "bulkhead.tool.version": "1.0.0",
        "bulkhead.run_id": "r",
        "bulkhead.thread_id": "t",
        "bulkhead.tool.outcome": "done",
        "bulkhead.tool.attempts": 1,
        "bulkhead.tool.replayed": False,
    }
    assert again.attributes["bulkhead.tool.replayed"] is True
    assert (failed.attributes["bulkhead.tool.outcome"], failed.attributes["error.type"]) == ("failed", "input.invalid")
    calls = [line for line in lines if line["event"] == "tool_call"]
    assert [(c["tool"], c["outcome"], c["code"], c["replayed"]) for c in calls] == [
        ("calculator", "done", "", False),
        ("calculator", "done", "", True),
        ("calculator", "failed", "input.invalid", False),
    ]
    assert (calls[0]["call"], calls[0]["run"], calls[0]["thread"], calls[0]["attempts"]) == ("r/1/2", "r", "t", 1)
    assert calls[0]["duration_ms"] > 0
    assert "31337" not in str(lines)
    assert "62674" not in str(lines)


async def test_outcomes_are_counted(tmp_path, state_url, identities, caller):
    write_config(tmp_path, [{"name": "calculator", "scopes": ["math"]}])
    metrics_port, port = testing.free_port(), testing.free_port()
    env = {
        "BULKHEAD_ENV": "test",
        "BULKHEAD_GRPC_PORT": str(port),
        "BULKHEAD_METRICS_PORT": str(metrics_port),
        "BULKHEAD_STATE_URL": state_url,
        "BULKHEAD_CONFIG_DIR": str(tmp_path),
        "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
    }
    process = testing.Process(testing.python("-m", "services.tool_executor"), env=env, log=tmp_path / "log")
    try:
        await testing.wait_ready(f"127.0.0.1:{port}")
        async with client_of(port) as client:
            for expression, key in (("1", "a"), ("1", "a"), ("1/0", "b")):
                await client.result("calculator", {"expression": expression}, key)
            with testing.calling(identities, testing.principal_of(scopes=["tools:execute"])), pytest.raises(PermissionDenied):
                await client.result("calculator", {"expression": "1"})
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
    finally:
        process.stop()
    counted = {
        line.split("} ")[0]: float(line.split("} ")[1]) for line in text.splitlines() if line.startswith("bulkhead_tool_calls_total{")
    }
    for outcome in ("done", "replayed", "failed", "refused"):
        (found,) = [value for labels, value in counted.items() if f'outcome="{outcome}"' in labels and 'tool="calculator"' in labels]
        assert found == 1
    assert "bulkhead_tool_call_duration_seconds_bucket" in text


async def test_a_wrong_start_tells_all_that_is_wrong_and_where(tmp_path, identities):
    write_config(tmp_path, "tools: [{name: abacus}, {name: calculator, timeout_s: 5}, {name: calculator}]")
    env = {
        "BULKHEAD_STATE_URL": "",
        "BULKHEAD_CONFIG_DIR": str(tmp_path / "nowhere"),
        "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
    }
    process = testing.Process(testing.python("-m", "services.tool_executor"), env=env, log=tmp_path / "settings.log")
    assert process.wait() == 2
    assert "BULKHEAD_STATE_URL is required" in process.output()
    assert "nowhere does not exist" in process.output()
    env |= {"BULKHEAD_STATE_URL": "redis://127.0.0.1:1/0", "BULKHEAD_CONFIG_DIR": str(tmp_path), "BULKHEAD_METRICS_PORT": "0"}
    process = testing.Process(testing.python("-m", "services.tool_executor"), env=env, log=tmp_path / "start.log")
    assert process.wait() == 1
    assert "tools.0 (abacus): no built-in tool has this name" in process.output()
    assert "tools.2 (calculator): version 1.0.0 stands twice" in process.output()


async def test_readiness_follows_the_store_and_liveness_does_not(tmp_path, identities):
    write_config(tmp_path, [{"name": "calculator"}])
    port, state_port = testing.free_port(), testing.free_port()
    env = {
        "BULKHEAD_ENV": "test",
        "BULKHEAD_GRPC_PORT": str(port),
        "BULKHEAD_METRICS_PORT": "0",
        "BULKHEAD_STATE_URL": f"redis://127.0.0.1:{state_port}/0",
        "BULKHEAD_CONFIG_DIR": str(tmp_path),
        "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
    }
    process = testing.Process(testing.python("-m", "services.tool_executor"), env=env, log=tmp_path / "log")
    try:
        await testing.wait_ready(f"127.0.0.1:{port}", "liveness")
        with pytest.raises(AssertionError, match="never happened"):
            await testing.wait_ready(f"127.0.0.1:{port}", "readiness", timeout_s=1.5)
        with testing.valkey_server("state", state_port):
            await testing.wait_ready(f"127.0.0.1:{port}", "readiness")
    finally:
        process.stop()
