"""Feedback over HTTP: before an orchestrator in memory, and before a real one."""

import pytest

from services.orchestrator.testing.harness import data_of, served, settings_for, write_config
from tests.integration.real_gateway import answered, gateway_before

MODULE = pytest.mark.asyncio(loop_scope="module")


async def ended_run(http, thread, agent="assistant", text="hello"):
    body = {"input": text, "agent": agent}
    return (await answered(http.post(f"/v1/threads/{thread}/runs", json=body, headers={"prefer": "wait=20"}), 200))["run_id"]


@MODULE
async def test_feedback_reaches_the_orchestrator_and_is_listed_newest_first(ana, front):
    run_id = await ended_run(ana, "t-judged")
    body = {"run_id": run_id, "rating": 2, "thumbs": "down", "text": "wrong", "corrected_answer": "hullo"}
    async with ana.post("/v1/feedback", json=body, headers={"idempotency-key": "f"}) as response:
        assert response.status == 201, await response.text()
        first = await response.json()
        assert response.headers["location"] == f"/v1/feedback?run_id={run_id}"
    assert (front.log.desk.asked[-1].idempotency_key, first["run_id"]) == ("f", run_id)
    await answered(ana.post("/v1/feedback", json={"run_id": run_id, "signal": "dwell", "dwell_ms": 1500}), 201)
    found = (await answered(ana.get(f"/v1/feedback?run_id={run_id}"), 200))["data"]
    assert [(f["rating"], f["thumbs"], f["text"], f["corrected_answer"], f["signal"], f["dwell_ms"]) for f in found] == [
        (None, None, None, None, "dwell", 1500), (2, "down", "wrong", "hullo", None, None),
    ]  # fmt: skip
    assert (found[1]["feedback_id"], found[1]["model"], found[1]["agent"]) == (first["feedback_id"], "m", "assistant")
    for signal in ("regenerate", "edit", "copy", "abandon", "correction", "scroll"):
        await answered(ana.post("/v1/feedback", json={"run_id": run_id, "signal": signal}), 201)
        assert (await answered(ana.get("/v1/feedback?limit=1"), 200))["data"][0]["signal"] == signal


@MODULE
async def test_feedback_is_filtered_by_agent_and_time_and_paged(ana):
    run_id = await ended_run(ana, "t-tools", agent="tools")
    for rating in (1, 5):
        await answered(ana.post("/v1/feedback", json={"run_id": run_id, "rating": rating}), 201)
    ours = "/v1/feedback?agent=tools&limit=1&since=2020-01-01T00:00:00Z"
    async with ana.get(ours) as response:
        page = await response.json()
        following = str(response.links["next"]["url"].relative())
    assert [f["rating"] for f in page["data"]] == [5]
    last = await answered(ana.get(following), 200)
    assert ([f["rating"] for f in last["data"]], last["next_after"]) == ([1], None)
    assert (await answered(ana.get("/v1/feedback?agent=tools&since=2999-01-01T00:00:00%2B02:00"), 200))["data"] == []


@MODULE
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"rating": 1, "surprise": 1}, "surprise"),
        ({"rating": 6}, "rating"),
        ({"rating": 0}, "rating"),
        ({}, "rating"),
        ({"thumbs": "sideways"}, "thumbs"),
        ({"signal": "sigh"}, "signal"),
        ({"rating": 1, "dwell_ms": 5}, "dwell_ms"),
        ({"signal": "dwell", "dwell_ms": 86_400_001}, "dwell_ms"),
        ({"text": "x" * 8193}, "text"),
        ({"run_id": "a b", "rating": 1}, "run_id"),
    ],
)
async def test_feedback_that_says_nothing_or_too_much_names_the_field(ana, front, body, field):
    asked = len(front.log.desk.asked)
    problem = await answered(ana.post("/v1/feedback", json={"run_id": "r", **body}), 422)
    assert problem["errors"][0]["field"] == field
    assert len(front.log.desk.asked) == asked


@MODULE
async def test_runs_of_others_scopes_and_bad_parameters(ana, front):
    run_id = await ended_run(ana, "t-private")
    other = {"authorization": f"Bearer {await front.issue('globex')}"}
    await answered(ana.post("/v1/feedback", json={"run_id": run_id, "rating": 1}, headers=other), 404)
    assert (await answered(ana.get("/v1/feedback", headers=other), 200))["data"] == []
    user = {"authorization": f"Bearer {await front.issue(scopes=('runs:write', 'runs:read'))}"}
    await answered(ana.post("/v1/feedback", json={"run_id": run_id, "rating": 1}, headers=user), 201)
    assert (await answered(ana.get("/v1/feedback", headers=user), 403))["missing_scopes"] == "admin"
    admin = {"authorization": f"Bearer {await front.issue(scopes=('admin',))}"}
    await answered(ana.get("/v1/feedback", headers=admin), 200)
    problem = await answered(ana.post("/v1/feedback", json={"run_id": run_id, "rating": 1}, headers=admin), 403)
    assert problem["missing_scopes"] == "runs:write"
    for query in ("since=yesterday", "since=5", "since=2020-01-01T00:00:00", "run_id=a%20b", "agent=a%20b", "after=x", "limit=0", "x=1"):
        await answered(ana.get(f"/v1/feedback?{query}"), 400)


# --- before a real orchestrator ---


async def test_a_real_run_is_judged_once_a_key_and_told_in_its_thread(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        http, eve = await people.session(), await people.session("eve", ("runs:write", "runs:read"))
        run_id = await ended_run(http, "t-real", agent="quick", text="say hello")
        body, key = {"run_id": run_id, "rating": 4, "thumbs": "up"}, {"idempotency-key": "once"}
        first = await answered(http.post("/v1/feedback", json=body, headers=key), 201)
        assert await answered(http.post("/v1/feedback", json=body, headers=key), 201) == first
        await answered(http.post("/v1/feedback", json={**body, "rating": 1}, headers=key), 422)
        await answered(eve.post("/v1/feedback", json=body), 404)
        long = await answered(http.post("/v1/feedback", json={"run_id": run_id, "text": "ö" * 8000}), 400)
        assert long["errors"][0]["field"] == "text"
        told = [e for e in await client.log(thread_id="t-real") if e.type == "feedback"]
        assert [(e.seq, data_of(e)["rating"]) for e in told] == [(first["seq"], 4)]
        await answered(http.post("/v1/feedback", json={"run_id": run_id, "signal": "dwell", "dwell_ms": 2500}), 201)
        (dwelt, judged) = (await answered(http.get("/v1/feedback?agent=quick&since=2020-01-01T00:00:00Z"), 200))["data"]
        assert (judged["feedback_id"], judged["rating"], judged["thumbs"], judged["agent_version"]) == (first["feedback_id"], 4, "up", "1")
        assert (dwelt["signal"], dwelt["dwell_ms"], dwelt["rating"]) == ("dwell", 2500, None)
        await answered(eve.get("/v1/feedback"), 403)
