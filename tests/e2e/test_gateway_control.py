"""The whole platform: an approval that a person edits, a run that is steered and stopped, and what a user thinks of it."""

import shutil

import httpx2 as httpx
import pytest

from services.common import testing
from services.common.testing import ROOT, eventually
from tests.e2e.api import Api
from tests.e2e.harness import start_platform


@pytest.fixture(scope="module")
def own(otlp, tmp_path_factory):
    """A platform whose policies have people asked before anything is calculated."""
    receiver, port = otlp
    folder = tmp_path_factory.mktemp("control")
    config = folder / "config"
    shutil.copytree(ROOT / "k8s/environments/local/config", config)
    policies = config / "policies.yaml"
    plain = policies.read_text()
    asking = plain.replace("    enterprise:\n", "    enterprise:\n      approve_tools: [calculator]\n")
    assert asking != plain
    policies.write_text(asking)
    env = {"BULKHEAD_CONFIG_DIR": str(config)}
    running = start_platform(folder / "data", testing.free_port_base(), receiver, port, "--replicas", "orchestrator=2", env=env)
    yield running
    running.process.stop()


@pytest.fixture
def api(own):
    with Api(own.url, own.key) as made:
        yield made


def start(api, thread, text, **body):
    return api.post(f"/v1/threads/{thread}/runs", {"input": text, **body})["run_id"]


def ended(api, run_id):
    eventually(lambda: api.run(run_id)["ended_at"], f"{run_id} ends")
    return api.run(run_id)


def test_a_call_is_made_with_the_arguments_that_a_person_gives_it(api):
    run_id = start(api, "asked", "Compute 19 * 3", agent="assistant")
    (one,) = eventually(lambda: api.get(f"/v1/approvals?run_id={run_id}&decidable=true")["data"], "somebody is asked")
    assert (one["tool"], one["state"], one["approval_id"].partition("/")[0]) == ("calculator", "open", run_id)
    decision = {"verb": "edit", "arguments": {"expression": "20 * 3"}, "reason": "twenty"}
    decided = api.post(f"/v1/approvals/{one['approval_id']}/decision", decision)
    assert (decided["state"], decided["decisions"][0]["verb"]) == ("approved", "edit")
    run = ended(api, run_id)
    assert (run["status"], "60" in run["output_text"]) == ("succeeded", True)
    late = api.http.post(f"/v1/approvals/{one['approval_id']}/decision", json={"verb": "reject"})
    assert (late.status_code, late.json()["reason"], late.json()["verb"]) == (409, "ALREADY_DECIDED", "edit")


def test_a_run_at_work_is_steered_stopped_and_judged(api, own):
    slow = {"match": {"contains": "harbour"}, "fault": {"tokens_per_s": 5}}
    httpx.post(f"{own.simulator}/sim/faults", json=slow).raise_for_status()
    with api.stream("steered", "Tell me about the harbour", agent="plain") as events:
        first = next(event for event in events if event["type"] == "message_delta")
        run_id = first["run_id"]
        told = api.post(f"/v1/runs/{run_id}/steer", {"text": "Tell me about the lighthouse of the harbour instead"})
        assert told["number"] == 1
        busy = api.http.post("/v1/threads/steered/runs", json={"input": "x", "agent": "plain", "on_busy": "reject"})
        assert (busy.status_code, busy.json()["reason"], busy.json()["run_id"]) == (409, "THREAD_BUSY", run_id)
        # What was said goes into the run: with a message to read, a stop ends the model call and not the run.
        api.post(f"/v1/runs/{run_id}/stop")
        applied = next(event for event in events if event["type"] == "steer_applied")
        assert (applied["data"]["number"], "lighthouse" in applied["data"]["text"]) == (1, True)
        next(event for event in events if event["type"] == "message_delta")
    stopped = api.http.post(f"/v1/runs/{run_id}/stop?wait=true")
    assert stopped.status_code == 200, stopped.text
    run = stopped.json()["run"]
    assert (run["status"], run["finish_reason"], bool(run["output_text"])) == ("succeeded", "stopped", True)
    judged = api.post("/v1/feedback", {"run_id": run_id, "thumbs": "down", "text": "cut short"})
    (found,) = api.get(f"/v1/feedback?run_id={run_id}")["data"]
    assert (found["feedback_id"], found["thumbs"], found["agent"]) == (judged["feedback_id"], "down", "plain")
