"""Ends and beginnings: SIGTERM of each service during work, SIGKILL of an owner, a restart of everything."""

import os
import signal
import time
import uuid

import httpx2 as httpx
import pytest

from services.common import testing
from services.common.testing import eventually
from tests.e2e.api import TERMINAL, Api, answer_of
from tests.e2e.harness import start_platform

pytestmark = pytest.mark.system

SERVICES = ["gateway", "orchestrator", "llm_gateway", "tool_executor", "memory"]


@pytest.fixture(scope="module")
def own(otlp, tmp_path_factory):
    """A platform of this module's own, because its tests break it."""
    receiver, port = otlp
    data_dir = tmp_path_factory.mktemp("lifecycle") / "data"
    running = start_platform(data_dir, testing.free_port_base(), receiver, port, "--replicas", "orchestrator=2")
    yield running
    running.process.stop()


def slow(platform, marker: str, **fault) -> None:
    httpx.post(f"{platform.simulator}/sim/faults", json={"match": {"contains": marker}, "fault": fault}).raise_for_status()


def healed(platform) -> None:
    httpx.delete(f"{platform.simulator}/sim/faults").raise_for_status()


def follow(api: Api, run_id: str) -> list[dict]:
    """Events of a run from its start, reconnecting with the cursor as a client would."""
    from tests.e2e.api import events_of

    found: list[dict] = []
    end = time.monotonic() + 90
    while time.monotonic() < end:
        after = found[-1]["seq"] if found else None
        path = f"/v1/runs/{run_id}/events" + (f"?after={after}" if after else "")
        try:
            with api.http.stream("GET", path, headers={"accept": "text/event-stream"}) as answer:
                if answer.status_code != 200:
                    time.sleep(0.2)
                    continue
                for event in events_of(answer.iter_lines()):
                    found.append(event)
                    if event["type"] in TERMINAL:
                        return found
        except httpx.HTTPError:
            time.sleep(0.2)
    raise AssertionError(f"no end within 90 s: {[e['type'] for e in found]}")


def start(api: Api, thread: str, text: str, **body) -> str:
    answer = api.post(f"/v1/threads/{thread}/runs", {"input": text, **body})
    return answer.get("run_id") or answer["run"]["run_id"]


@pytest.mark.parametrize("service", SERVICES)
def test_sigterm_during_work_ends_cleanly_and_loses_nothing(own, service):
    with Api(own.url, own.key) as api:
        thread = f"term-{service}-{uuid.uuid4().hex[:6]}"
        slow(own, thread, tokens_per_s=20)
        try:
            run_id = start(api, thread, f"Tell me about {thread} and compute 19 * 3", agent="assistant")
            eventually(lambda: api.run(run_id)["status"] == "running", "the run has an owner")
            pid = own.pid(service)
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: not alive(pid), f"{service} ends within its grace", timeout_s=30)
        finally:
            healed(own)
        events = follow(api, run_id)
        answer = answer_of(events)
        assert "57" in answer
        assert sum(e["type"] in TERMINAL for e in events) == 1
        eventually(lambda: own.replaced(service, pid), f"{service} is started again", timeout_s=60)
        eventually(lambda: httpx.get(f"{own.url}/ready").status_code == 200, "ready again", timeout_s=60)
    text = own.process.output()
    assert f"{service}" in text


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[0] != "Z"


def test_an_owner_that_is_killed_mid_stream_is_taken_over_with_the_same_answer(own):
    with Api(own.url, own.key) as api:
        marker = f"takeover-{uuid.uuid4().hex[:6]}"
        reference = answer_of(api.turn(f"{marker}-a", f"Tell me about {marker}", agent="plain"))
        slow(own, marker, tokens_per_s=4)
        run_id = start(api, f"{marker}-b", f"Tell me about {marker}", agent="plain")
        with api.http.stream("GET", f"/v1/runs/{run_id}/events") as stream:
            for line in stream.iter_lines():
                if "message_delta" in line:
                    break
        healed(own)
        for number in (0, 1):
            os.kill(own.pid("orchestrator", number), signal.SIGKILL)
        events = follow(api, run_id)
        assert answer_of(events) == reference
        assert "attempt_superseded" in [e["type"] for e in events]
        assert sum(e["type"] in TERMINAL for e in events) == 1
        seqs = [e["seq"] for e in events]
        assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))


# Two starts of a platform; what the commands see of a restart is in test_up_commands.py.
@pytest.mark.system
def test_long_term_memories_threads_and_keys_survive_a_restart(otlp, tmp_path):
    receiver, port = otlp
    data_dir, base = tmp_path / "data", testing.free_port_base()
    first = start_platform(data_dir, base, receiver, port)
    try:
        with Api(first.url, first.key) as api:
            api.post("/v1/memories", {"text": "The user prefers answers in Portuguese."})
            api.post(
                "/v1/documents",
                {"title": "reef.md", "content_type": "text/markdown", "text": "# Reef\n\nThe reef lies north of Cormorant Point.\n"},
            )
            answer_of(api.turn("kept", "My dog has the name Biscuit.", agent="assistant"))
    finally:
        first.process.signal(signal.SIGINT)
        status = first.process.wait(20)
    assert status == 0, first.process.output()[-2000:]
    second = start_platform(data_dir, base, receiver, port)
    try:
        assert second.key == first.key
        with Api(second.url, second.key) as api:
            memories = api.get("/v1/memories")
            assert "Portuguese" in str(memories)
            found = answer_of(api.turn("kept", "What is the name of my dog, and where does the reef lie?", agent="assistant"))
            assert "Biscuit" in found
            assert "Cormorant" in found
    finally:
        second.process.signal(signal.SIGINT)
        assert second.process.wait(20) == 0
