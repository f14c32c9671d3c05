"""`bulkhead runs watch` while the gateway that serves it, and then the orchestrator that owns the run, are killed."""

import json
import os
import signal

import httpx2 as httpx
import pytest

from services.common import testing
from services.common.testing import Process, eventually
from tests.e2e.api import Api
from tests.e2e.harness import start_platform

pytestmark = pytest.mark.system


@pytest.fixture
def own(otlp, tmp_path):
    """A platform of this test's own, because it breaks it."""
    receiver, port = otlp
    running = start_platform(tmp_path / "data", testing.free_port_base(), receiver, port, "--replicas", "orchestrator=2")
    yield running
    running.process.stop()


def replaced(platform, number, old):
    """Whether another orchestrator has taken the place of `old`; between the two there is no file."""
    path = platform.data_dir / f"run/orchestrator-{number}.pid"
    return path.exists() and path.read_text().strip() not in ("", str(old))


def test_a_watch_tells_every_event_once_whoever_was_killed_in_between(own, tmp_path):
    fault = {"match": {"contains": "tortoise"}, "fault": {"tokens_per_s": 12}}
    httpx.post(f"{own.simulator}/sim/faults", json=fault).raise_for_status()
    with Api(own.url, own.key) as api:
        body = {"input": "Write 100 words about the tortoise.", "agent": "plain", "run_id": "run-watched"}
        api.post("/v1/threads/watched/runs", body)
        env = {"BULKHEAD_URL": own.url, "BULKHEAD_API_KEY": own.key}
        watch = Process(testing.python("-m", "services.cli", "runs", "watch", "run-watched", "--json"), env=env, log=tmp_path / "watch.log")

        def told() -> list[dict]:
            # The last line may be half written.
            return [json.loads(line) for line in watch.output().splitlines(keepends=True) if line.endswith("\n")]

        eventually(lambda: len(told()) >= 5, "it tells of the run")
        gateway = own.pid("gateway")
        os.kill(gateway, signal.SIGKILL)
        eventually(lambda: own.replaced("gateway", gateway), "there is another gateway")
        seen = len(told())
        eventually(lambda: len(told()) > seen + 3, "it goes on at the other gateway")
        for number in (0, 1):
            old = own.pid("orchestrator", number)
            os.kill(old, signal.SIGKILL)
            eventually(lambda number=number, old=old: replaced(own, number, old), "there is another orchestrator")
        assert watch.wait(90) == 0, watch.output()[-2000:]
        logged = api.get("/replay/watched")["events"]
    assert [event["type"] for event in told()].count("attempt_superseded") >= 1
    assert told() == [event for event in logged if event["run_id"] == "run-watched"]
