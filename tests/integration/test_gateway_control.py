"""Control of runs over HTTP: before an orchestrator in memory, and before a real one."""

from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from services.common import testing
from services.gateway.fake_control import CALL_ID, PLAN_VERSION
from services.orchestrator.testing.harness import AGENTS, data_of, served, settings_for, shown_text, write_config
from tests.integration.real_gateway import answered, gateway_before
from tests.integration.test_orchestrator_plans import PLANNER, planned

MODULE = pytest.mark.asyncio(loop_scope="module")
STEPS = [{"title": "look", "status": "done"}, {"title": "tell", "status": "pending"}]
# Each route, and a body that it takes.
BODIES = {
    "stop": ("POST", {}),
    "steer": ("POST", {"text": "faster"}),
    "plan": ("PUT", {"version": PLAN_VERSION, "steps": STEPS}),
    f"tool-calls/{CALL_ID}/cancel": ("POST", {"continuation": "skip"}),
}


async def start(http, thread, agent="hang", **body):
    run = await answered(http.post(f"/v1/threads/{thread}/runs", json={"input": "say hello", "agent": agent, **body}), 202)
    return run["run_id"]


@MODULE
@pytest.mark.parametrize("verb", BODIES)
async def test_each_verb_reaches_the_orchestrator_with_its_key_and_answers_its_number(ana, front, verb):
    run_id = await start(ana, f"t-{verb[:4]}")
    method, body = BODIES[verb]
    headers = {"idempotency-key": f"k-{verb}"}
    async with ana.request(method, f"/v1/runs/{run_id}/{verb}", json=body, headers=headers) as response:
        assert response.status == 202, await response.text()
        assert response.headers["location"] == f"/v1/runs/{run_id}"
        told = await response.json()
    assert (told["run_id"], told["number"]) == (run_id, 1)
    if "run" in told:
        assert told["run"]["run_id"] == run_id
    assert front.log.desk.asked[-1].idempotency_key == f"k-{verb}"


@MODULE
async def test_what_is_said_of_a_command_is_what_the_orchestrator_hears(ana, front):
    run_id = await start(ana, "t-heard")
    await answered(ana.post(f"/v1/runs/{run_id}/steer", json={"text": "über Öl"}), 202)
    assert front.log.desk.asked[-1].text == "über Öl"
    await answered(ana.put(f"/v1/runs/{run_id}/plan", json={"version": PLAN_VERSION, "steps": STEPS}), 202)
    assert [(step.title, step.status) for step in front.log.desk.asked[-1].steps] == [("look", "done"), ("tell", "pending")]
    cancel = f"/v1/runs/{run_id}/tool-calls/{CALL_ID}/cancel"
    for continuation, number in (("skip", 1), ("fail", 2), ("retry", 3)):
        await answered(ana.post(cancel, json={"continuation": continuation}), 202)
        assert (front.log.desk.asked[-1].continuation, front.log.desk.asked[-1].result_json) == (number, b"")
    for result in (None, {"total": 1.5}):
        await answered(ana.post(cancel, json={"continuation": "substitute", "result": result}), 202)
        assert front.log.desk.asked[-1].continuation == 4
        assert front.log.desk.asked[-1].result_json == (b"null" if result is None else b'{"total":1.5}')


@MODULE
async def test_a_stop_can_be_waited_for(ana):
    run_id = await start(ana, "t-stop-wait")
    told = await answered(ana.post(f"/v1/runs/{run_id}/stop?wait=true"), 200)
    assert told["run"]["ended_at"]


@MODULE
async def test_refusals_say_what_to_do_instead(ana):
    run_id = await start(ana, "t-refused")
    old = await answered(ana.put(f"/v1/runs/{run_id}/plan", json={"version": 1, "steps": STEPS}), 409)
    assert (old["reason"], old["version"]) == ("PLAN_CHANGED", str(PLAN_VERSION))
    no_call = await answered(ana.post(f"/v1/runs/{run_id}/tool-calls/a%2Fb/cancel", json={"continuation": "skip"}), 404)
    assert no_call["reason"] == "ROUTE_NOT_FOUND"
    no_call = await answered(ana.post(f"/v1/runs/{run_id}/tool-calls/other/cancel", json={"continuation": "skip"}), 404)
    assert no_call["reason"] == "TOOL_CALL_NOT_FOUND"
    await answered(ana.post(f"/v1/runs/{run_id}/cancel?wait=true"), 200)
    ended = await answered(ana.post(f"/v1/runs/{run_id}/steer", json={"text": "more"}), 409)
    assert (ended["reason"], ended["thread_id"], ended["offer"]) == ("RUN_ENDED", "t-refused", "CreateRun")
    assert (ended["status"], ended["run_status"]) == (409, "cancelled")


@MODULE
async def test_many_runs_are_cancelled_page_by_page_under_one_key(ana, front):
    runs = [await start(ana, f"t-many-{n}", metadata={"batch": "7"}) for n in range(3)]
    other = await start(ana, "t-many-other")
    body = {"filter": {"metadata": {"batch": "7"}, "statuses": ["running", "queued"], "agent": "hang"}, "reason": "enough", "limit": 2}
    headers = {"idempotency-key": "bulk-1"}
    async with ana.post("/v1/runs/cancel", json=body, headers=headers) as response:
        assert response.status == 202, await response.text()
        assert await response.json() == {"matched_count": 2, "requested_count": 2, "done": False}
        assert response.headers["location"] == "/v1/runs"
    told = await answered(ana.post("/v1/runs/cancel", json=body, headers=headers), 200)
    assert told == {"matched_count": 3, "requested_count": 3, "done": True}
    asked = front.log.desk.asked[-1]
    assert (asked.reason, asked.page_size, list(asked.filter.statuses), asked.filter.agent) == ("enough", 2, [2, 1], "hang")
    for run_id in runs:
        assert (await answered(ana.get(f"/v1/runs/{run_id}"), 200))["cancel_requested"] is True
    assert (await answered(ana.get(f"/v1/runs/{other}"), 200))["cancel_requested"] is False
    nameless = await answered(ana.post("/v1/runs/cancel", json=body), 400)
    assert nameless["errors"][0]["field"] == "Idempotency-Key"


@MODULE
async def test_a_run_says_when_it_starts_how_urgent_it_is_and_what_becomes_of_others(ana, front):
    body = {
        "on_busy": "reject", "priority": -3, "start_at": "2030-01-31T12:00:00.5+02:00", "reset_memory": True, "append_only_output": True,
    }  # fmt: skip
    request = front.log.runs[("acme", await start(ana, "t-said", **body))].request
    assert (request.on_busy, request.priority, request.reset_memory, request.append_only_output) == (2, -3, True, True)
    assert request.start_at.ToJsonString() == "2030-01-31T10:00:00.500Z"
    plain = front.log.runs[("acme", await start(ana, "t-plain"))].request
    assert (plain.on_busy, plain.HasField("start_at"), plain.priority) == (1, False, 0)


@MODULE
async def test_a_message_for_a_busy_thread_steers_its_run_and_leaving_does_not_end_that(ana, front):
    run_id = await start(ana, "t-busy")
    body = {"input": "more", "on_busy": "steer", "on_disconnect": "cancel"}
    async with ana.post("/v1/threads/t-busy/runs", json=body) as response:
        told = await response.json()
        assert (response.status, told["run_id"], told["steer_number"]) == (202, run_id, 1)
        assert "idempotent-replayed" not in response.headers
    own = {"input": "x", "agent": "hang", "run_id": "run-own", "on_disconnect": "cancel"}
    for path, left in (("/v1/threads/t-busy/runs", body), ("/v1/threads/t-busy-own/runs", own)):
        with pytest.raises(TimeoutError):
            await ana.post(path, json=left, headers={"prefer": "wait=30"}, timeout=aiohttp.ClientTimeout(0.5))
    # Who left later is noticed by now, so whoever left before is too.
    await testing.eventually_async(lambda: front.log.runs[("acme", "run-own")].run.cancel_requested, "the second leaving is noticed")
    assert (await answered(ana.get(f"/v1/runs/{run_id}"), 200))["cancel_requested"] is False


@MODULE
@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("stop", {"surprise": 1}, "surprise"),
        ("steer", {"text": "x", "surprise": 1}, "surprise"),
        ("steer", {"text": ""}, "text"),
        ("steer", {"text": "x" * 70_000}, "text"),
        ("plan", {"version": 1, "steps": STEPS, "surprise": 1}, "surprise"),
        ("plan", {"version": 0, "steps": STEPS}, "version"),
        ("plan", {"version": 1, "steps": []}, "steps"),
        ("plan", {"version": 1, "steps": [{"title": "x", "status": "maybe"}]}, "steps.0.status"),
        ("tool-calls/c/cancel", {"continuation": "skip", "surprise": 1}, "surprise"),
        ("tool-calls/c/cancel", {"continuation": "explode"}, "continuation"),
        ("tool-calls/c/cancel", {"continuation": "substitute"}, "result"),
        ("tool-calls/c/cancel", {"continuation": "skip", "result": 1}, "result"),
        ("../cancel", {"filter": {"agent": "x"}, "surprise": 1}, "surprise"),
        ("../cancel", {"filter": {}}, "filter"),
        ("../cancel", {"filter": {"statuses": ["succeeded"]}}, "filter.statuses.0"),
        ("../cancel", {"filter": {"agent": "x"}, "limit": 0}, "limit"),
    ],
)
async def test_bodies_that_no_route_takes_name_the_field(ana, verb, body, field):
    path = "/v1/runs/cancel" if verb == "../cancel" else f"/v1/runs/r/{verb}"
    method = "PUT" if verb == "plan" else "POST"
    problem = await answered(ana.request(method, path, json=body, headers={"idempotency-key": "bad"}), 422)
    assert problem["errors"][0]["field"] == field


@MODULE
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"on_busy": "wait"}, "on_busy"),
        ({"priority": 11}, "priority"),
        ({"start_at": "tomorrow"}, "start_at"),
        ({"start_at": 1_900_000_000}, "start_at"),
        ({"start_at": "1900000000"}, "start_at"),
        ({"start_at": "2030-01-31T12:00:00"}, "start_at"),
        ({"start_at": "2030-02-31T12:00:00Z"}, "start_at"),
        ({"start_at": "9999-12-31T23:59:59-14:00"}, "start_at"),
        ({"start_at": "1969-12-31T23:59:59Z"}, "start_at"),
        ({"reset_memory": "yes"}, "reset_memory"),
    ],
)
async def test_runs_that_nobody_could_start_name_the_field(ana, body, field):
    problem = await answered(ana.post("/v1/threads/t-none/runs", json={"input": "x", **body}), 422)
    assert problem["errors"][0]["field"] == field


@MODULE
async def test_ids_of_others_scopes_and_ids_that_are_none(ana, front):
    run_id = await start(ana, "t-private")
    other = {"authorization": f"Bearer {await front.issue('globex')}"}
    reader = {"authorization": f"Bearer {await front.issue(scopes=('runs:read',))}"}
    for verb, (method, body) in BODIES.items():
        await answered(ana.request(method, f"/v1/runs/{run_id}/{verb}", json=body, headers=other), 404)
        problem = await answered(ana.request(method, f"/v1/runs/{run_id}/{verb}", json=body, headers=reader), 403)
        assert problem["missing_scopes"] == "runs:write"
        bad = await answered(ana.request(method, f"/v1/runs/a%20b/{verb}", json=body), 400)
        assert bad["errors"][0]["field"] == "run_id"
    await answered(ana.post("/v1/runs/cancel", json={"filter": {"agent": "hang"}}, headers={**reader, "idempotency-key": "k"}), 403)
    told = await answered(
        ana.post("/v1/runs/cancel", json={"filter": {"thread_id": "t-private"}}, headers={**other, "idempotency-key": "k"}), 200
    )
    assert told["matched_count"] == 0


# --- before a real orchestrator ---


@pytest.fixture
async def real(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", AGENTS + PLANNER))
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        yield client, await people.session()
        behind.models.gate.open()
        behind.tools.gate.open()


async def generating(http, client, behind, thread):
    """A run whose model has said two words and is held."""
    behind.models.gate.close()
    run_id = await start(http, thread, agent="quick", input="say one two three four")

    async def shown():
        return shown_text(await client.log(run_id)) == "one two"

    await testing.eventually_async(shown, "two words are shown")
    return run_id


async def test_a_real_run_is_steered_and_its_model_reads_it(real, behind):
    client, http = real
    run_id = await generating(http, client, behind, "t-real")
    told = await answered(http.post(f"/v1/runs/{run_id}/steer", json={"text": "say instead"}, headers={"idempotency-key": "s"}), 202)
    again = await answered(http.post(f"/v1/runs/{run_id}/steer", json={"text": "say instead"}, headers={"idempotency-key": "s"}), 202)
    assert (told["number"], again["number"], told["run"]["status"]) == (1, 1, "running")
    other = await answered(http.post("/v1/threads/t-real/runs", json={"input": "say third", "on_busy": "steer", "agent": "quick"}), 202)
    assert (other["run_id"], other["steer_number"]) == (run_id, 2)
    busy = await answered(http.post("/v1/threads/t-real/runs", json={"input": "say no", "on_busy": "reject", "agent": "quick"}), 409)
    assert (busy["reason"], busy["run_id"]) == ("THREAD_BUSY", run_id)
    behind.models.gate.open()
    await client.wait(run_id)
    assert (await answered(http.get(f"/v1/runs/{run_id}"), 200))["output_text"] == "third"
    applied = [data_of(e) for e in await client.log(run_id) if e.type == "steer_applied"]
    assert [entry["number"] for entry in applied] == [1, 2]


async def test_a_real_run_is_stopped_and_keeps_its_text(real, behind):
    client, http = real
    run_id = await generating(http, client, behind, "t-real-stop")
    told = await answered(http.post(f"/v1/runs/{run_id}/stop?wait=true"), 200)
    assert (told["run"]["status"], told["run"]["finish_reason"], told["run"]["output_text"]) == ("succeeded", "stopped", "one two")


async def test_a_call_of_a_real_run_is_replaced_by_a_result_and_its_plan_by_another(real, behind):
    client, http = real
    run, seen = await planned(client, behind)
    stale = await answered(http.put(f"/v1/runs/{run.run_id}/plan", json={"version": 7, "steps": STEPS}), 409)
    assert (stale["reason"], stale["version"]) == ("PLAN_CHANGED", "1")
    await answered(http.put(f"/v1/runs/{run.run_id}/plan", json={"version": 1, "steps": STEPS}), 202)
    body = {"continuation": "substitute", "result": {"value": "from a person"}}
    await answered(http.post(f"/v1/runs/{run.run_id}/tool-calls/c1/cancel", json=body), 202)
    # The gate stays shut: the call is not waited for.
    await client.wait(run.run_id)
    assert "[done] look\n[pending] tell" in seen[-1]
    assert "from a person" in str([m.text for m in behind.models.calls[-1].request.messages])


async def test_real_runs_wait_for_their_time_and_are_cancelled_together(real):
    _, http = real
    body = {"start_at": "2099-01-01T00:00:00Z"}
    problem = await answered(http.post("/v1/threads/t-far/runs", json={"input": "x", "agent": "quick", **body}), 400)
    assert problem["errors"][0]["field"] == "start_at"
    soon = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    runs = [await start(http, "t-later", agent="quick", start_at=soon, priority=5, metadata={"b": "1"}) for _ in range(2)]
    found = await answered(http.get(f"/v1/runs/{runs[0]}"), 200)
    assert (found["status"], found["priority"], found["start_at"][:19]) == ("queued", 5, soon[:19])
    headers = {"idempotency-key": "all"}
    told = await answered(http.post("/v1/runs/cancel", json={"filter": {"metadata": {"b": "1"}}}, headers=headers), 200)
    assert told == {"matched_count": 2, "requested_count": 2, "done": True}

    async def all_cancelled():
        found = (await answered(http.get("/v1/threads/t-later/runs"), 200))["data"]
        return {run["status"] for run in found} == {"cancelled"}

    await testing.eventually_async(all_cancelled, "both are cancelled")
