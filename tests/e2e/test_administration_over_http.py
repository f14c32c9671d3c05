"""Schedules that fire, webhooks that arrive, threads that fork, and a user who is forgotten: over HTTP, on the whole platform."""

import base64
import hashlib
import hmac
import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.common import testing
from services.common.testing import eventually
from tests.e2e.api import Api, answer_of


@pytest.fixture(scope="module")
def api(platform):
    with Api(platform.url, platform.key) as client:
        yield client


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list]]:
    """URL of a receiver, and (headers, body) of what it got."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", got
    server.shutdown()
    server.server_close()


def signed_by(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """As docs/webhooks.md tells receivers to."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    mine = "v1," + base64.b64encode(hmac.digest(key, content, hashlib.sha256)).decode()
    return mine in headers["webhook-signature"].split(" ")


def test_a_schedule_fires_is_changed_and_is_gone(api):
    thread = f"clock-{uuid.uuid4().hex[:6]}"
    soon = (datetime.now(UTC) + timedelta(seconds=1)).isoformat()
    plan = {
        "timing": {"interval_ms": 60_000, "start_at": soon}, "input": "What is 6 * 7?", "agent": "assistant", "thread_policy": "one",
        "thread_id": thread, "metadata": {"team": "blue"},
    }  # fmt: skip
    made = api.post("/v1/schedules", plan)
    path = f"/v1/schedules/{made['schedule_id']}"
    assert made["state"] == "active"
    assert made["next_tick_at"] == made["timing"]["start_at"]
    tick = eventually(lambda: next(iter(api.get(f"{path}/ticks")["data"]), None), "the schedule fires")
    assert (tick["result"], tick["thread_id"], tick["tick_at"]) == ("fired", thread, made["next_tick_at"])
    run = eventually(lambda: (r := api.run(tick["run_id"]))["status"] == "succeeded" and r, "its run ends")
    assert "42" in run["output_text"]
    assert api.get(path)["last_tick"]["run_id"] == run["run_id"]
    assert api.post(f"{path}/pause")["state"] == "paused"
    changed = api.http.patch(path, json={"timing": {"cron": "@daily", "time_zone": "Europe/Lisbon"}}).json()
    assert (changed["state"], changed["timing"]["cron"], changed["metadata"], changed["thread_id"]) == (
        "paused", "@daily", {"team": "blue"}, thread,
    )  # fmt: skip
    resumed = api.post(f"{path}/resume")
    assert resumed["state"] == "active"
    assert resumed["next_tick_at"] > tick["tick_at"]
    assert made["schedule_id"] in [one["schedule_id"] for one in api.get("/v1/schedules")["data"]]
    refused = api.http.patch(path, json={"timing": {"interval_ms": 1000}})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (400, "timing.interval_ms")
    assert api.http.delete(path).status_code == 204
    assert api.http.get(path).status_code == 404


def test_a_change_that_is_repeated_under_its_key_is_made_once(api):
    path = f"/v1/schedules/{api.post('/v1/schedules', {'timing': {'cron': '@yearly'}, 'input': 'x'})['schedule_id']}"
    headers = {"idempotency-key": uuid.uuid4().hex}
    for _ in range(2):
        changed = api.http.patch(path, json={"name": "a", "thread_policy": "one"}, headers=headers)
        assert (changed.status_code, changed.json()["version"]) == (200, 2)
    assert api.http.patch(path, json={"name": "b"}, headers=headers).json()["reason"] == "IDEMPOTENCY_MISMATCH"
    assert api.http.delete(path).status_code == 204


def test_a_webhook_hears_of_a_run_and_is_told_again(api, endpoint):
    url, got = endpoint
    made = api.post("/v1/webhooks", {"url": url, "event_types": ["run.finished"]})
    path = f"/v1/webhooks/{made['webhook_id']}"
    ended = api.turn(f"hook-{uuid.uuid4().hex[:6]}", "What is 6 * 7?", agent="assistant")[-1]
    eventually(lambda: got, "the webhook is told")
    headers, body = got[0]
    assert json.loads(body)["data"]["run_id"] == ended["run_id"]
    assert signed_by(made["secret"], headers, body)
    delivery = eventually(lambda: next((d for d in api.get(f"{path}/deliveries")["data"] if d["status"] == "delivered"), None), "the log")
    assert (delivery["run_id"], delivery["attempts"][-1]["response_code"]) == (ended["run_id"], 204)
    rotated = api.post(f"{path}/rotate", {"overlap_ms": 600_000})
    assert api.post(f"/v1/deliveries/{delivery['delivery_id']}/redeliver")["delivery_id"] == delivery["delivery_id"]
    eventually(lambda: len(got) == 2, "the webhook is told again")
    assert got[1][0]["webhook-id"] == headers["webhook-id"]
    assert signed_by(rotated["secret"], *got[1])
    assert signed_by(made["secret"], *got[1])
    assert "secret" not in api.get(path)
    assert api.http.delete(path).status_code == 204
    assert api.http.get(path).status_code == 404


def test_a_thread_forks_goes_back_and_is_deleted(api):
    thread = f"river-{uuid.uuid4().hex[:6]}"
    first = api.turn(thread, "My project has the code name Heron.", agent="assistant")
    answer_of(api.turn(thread, "My project has the code name Osprey from now on.", agent="assistant"))
    question = "What is the code name of my project?"
    forked = api.post(f"/v1/threads/{thread}/fork", {"at": {"run_id": first[0]["run_id"]}, "metadata": {"try": "2"}})["thread"]
    assert (forked["parent_thread_id"], forked["forked_at_seq"]) == (thread, first[-1]["seq"])
    assert "Heron" in answer_of(api.turn(forked["thread_id"], question, agent="assistant"))
    back = api.post(f"/v1/threads/{thread}/rollback", {"to": {"seq": first[-1]["seq"]}})
    assert back["seq"] == back["thread"]["last_seq"]
    log = api.get(f"/replay/{thread}?after={back['seq'] - 1}")["events"]
    assert [event["type"] for event in log] == ["thread_rolled_back"]
    inside = api.http.post(f"/v1/threads/{thread}/fork", json={"at": {"seq": 2}})
    assert (inside.status_code, inside.json()["reason"]) == (400, "SEQ_INSIDE_STEP")
    for _ in range(2):
        assert api.http.delete(f"/v1/threads/{thread}").status_code == 204
    assert api.http.get(f"/v1/threads/{thread}").status_code == 404
    assert api.get(f"/v1/threads/{forked['thread_id']}")["metadata"] == {"try": "2"}
    assert api.http.delete("/v1/threads/t-never").status_code == 404


def test_quota_is_what_the_tier_allows_and_a_forgotten_user_has_nothing(platform, api):
    assert api.get("/v1/quota")["tier"] == "enterprise"
    wanted = "-m services.cli keys create --user leaving --tier free"
    wanted += " --max-budget 5 --budget-period 1d --rpm 1000"
    command = testing.python(*wanted.split(), "--data-dir", str(platform.data_dir))
    key = subprocess.run(command, capture_output=True, text=True, check=True, cwd=testing.ROOT).stdout.strip()
    with Api(platform.url, key) as leaving:
        quota = leaving.get("/v1/quota")
        assert (quota["tier"], quota["concurrent_runs"]["used"]) == ("free", 0)
        assert quota["task_time_ms"] > 0
        thread = f"left-{uuid.uuid4().hex[:6]}"
        answer_of(leaving.turn(thread, "Tell me about herons.", agent="plain"))
        budget = next(one for one in leaving.get("/v1/quota")["budgets"] if one["scope"] == "key")
        assert (budget["limit_microusd"], budget["period"]) == (5_000_000, "1d")
        assert "requests_per_minute" in [limit["kind"] for limit in leaving.get("/v1/quota")["rate_limits"]]
        for user in ("leaving", "somebody-else"):
            assert leaving.http.post("/v1/erasures", json={"user": user}).status_code == 403
    begun = api.http.post("/v1/erasures", json={"user": "leaving"})
    assert begun.status_code == 202
    location = begun.headers["location"]
    receipt = eventually(lambda: (r := api.get(location))["state"] == "done" and r, "the erasure is done", timeout_s=60)
    parts = {part["service"]: part for part in receipt["parts"]}
    assert set(parts) == {"orchestrator", "memory", "tool_executor", "llm_gateway"}
    assert all(part["state"] == "done" for part in parts.values())
    assert parts["orchestrator"]["erased"]["threads"] == 1
    assert "leaving" not in json.dumps(receipt)
