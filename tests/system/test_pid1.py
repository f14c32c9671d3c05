"""Each service as PID 1, where Python ignores SIGTERM unless a handler is installed."""

import signal
import subprocess
import sys

import psutil
import pytest

from services.common import testing
from services.common.testing import ROOT, Process, eventually

pytestmark = pytest.mark.system

GRPC = ["orchestrator", "llm_gateway", "tool_executor", "memory"]
ISSUERS = {"gateway", "orchestrator", "llm_gateway", "memory"}


def environment(service: str, identities, state_url: str, milvus_uri: str, port: int) -> dict[str, str]:
    unused = f"127.0.0.1:{testing.free_port()}"
    env = {
        "BULKHEAD_ENV": "local",
        "BULKHEAD_LOG_FORMAT": "json",
        "BULKHEAD_STATE_URL": state_url,
        "BULKHEAD_CACHE_URL": state_url,
        "BULKHEAD_MILVUS_URI": milvus_uri,
        "BULKHEAD_CONFIG_DIR": str(ROOT / "k8s" / "environments" / "local" / "config"),
        "BULKHEAD_IDENTITY_KEYS_FILE": str(identities.keys_file),
        "BULKHEAD_SIMULATOR_URL": "http://127.0.0.1:9/v1",
        "BULKHEAD_SIMULATOR_KEY": "unused",
        "BULKHEAD_METRICS_PORT": str(testing.free_port()),
        "BULKHEAD_ORCHESTRATOR_ADDRESS": unused,
        "BULKHEAD_LLM_GATEWAY_ADDRESS": unused,
        "BULKHEAD_TOOL_EXECUTOR_ADDRESS": unused,
        "BULKHEAD_MEMORY_ADDRESS": unused,
        ("BULKHEAD_GRPC_PORT" if service in GRPC else "BULKHEAD_HTTP_PORT"): str(port),
    }
    if service in ISSUERS:
        env["BULKHEAD_IDENTITY_SIGNING_KEY_FILE"] = str(identities.signing_key(service))
    return env


@pytest.mark.parametrize("service", [*GRPC, "gateway", "simulator"])
def test_sigterm_as_pid_1_ends_with_status_0_within_the_grace(service, identities, state_url, milvus_uri, tmp_path):
    port = testing.free_port()
    command = ["unshare", "--fork", "--pid", "--mount-proc", "--kill-child", sys.executable, "-m", f"services.{service}"]
    process = Process(command, env=environment(service, identities, state_url, milvus_uri, port), log=tmp_path / "log")
    try:
        testing.wait_for_port(port, process)
        inner = eventually(lambda: psutil.Process(process.pid).children(), "unshare has started its child")[0]
        status = subprocess.run(["nsenter", "-t", str(inner.pid), "-p", "-m", "cat", "/proc/1/cmdline"], capture_output=True, check=True)
        assert f"services.{service}".encode() in status.stdout
        inner.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, process.output()[-3000:]
    finally:
        process.stop()
