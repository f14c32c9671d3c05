"""The admin API of a served gateway: what is generated there limits calls, and what calls cost is shown there."""

import datetime

import pytest

from services.common import testing

MASTER = "sk-operator-of-the-test"


@pytest.fixture
async def gateway(serve, models, sim):
    """A gateway with a master key."""
    async with serve(models(sim.url), master_key=MASTER) as stack:
        yield stack


async def ask(gateway, key: str, model: str = "main", **more):
    """One completion."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 20, **more}
    return await gateway.post("/v1/chat/completions", body, authorization=f"Bearer {key}")


async def admin(gateway, path: str, body=None, key: str = MASTER):
    """A call with the master key."""
    if body is not None:
        status, answer, _ = await gateway.post(path, body, authorization=f"Bearer {key}")
        return status, answer
    async with gateway.http.get(gateway.url + path, headers={"authorization": f"Bearer {key}"}) as answer:
        return answer.status, await answer.json()


async def test_a_generated_keys_budget_is_hard_and_its_spend_is_what_the_answers_said(gateway):
    _, key = await admin(gateway, "/key/generate", {"max_budget": 0.00004, "user_id": "ana", "key_alias": "tiny"})
    spent, refused = 0.0, None
    for _ in range(20):
        status, answer, headers = await ask(gateway, key["key"])
        if status != 200:
            refused = (status, answer["error"]["type"], answer["error"]["code"])
            break
        spent += float(headers["x-litellm-response-cost"])
    assert refused == (429, "insufficient_quota", "budget_exceeded")
    assert 0 < spent <= 0.00004

    async def shown():
        return abs((await admin(gateway, f"/key/info?key={key['key']}"))[1]["info"]["spend"] - spent) < 1e-9

    await testing.eventually_async(shown, "the spend of the key", timeout_s=10)
    # Its holder sees it too, and the operator raises the budget for at once.
    assert (await admin(gateway, "/key/info", key=key["key"]))[1]["info"]["max_budget"] == 0.00004
    assert (await admin(gateway, "/key/update", {"key": key["key"], "max_budget": 1}))[0] == 200

    async def goes_on():
        return (await ask(gateway, key["key"]))[0] == 200

    await testing.eventually_async(goes_on, "the new budget holds", timeout_s=10)
    rows = (await admin(gateway, f"/spend/logs?api_key={key['key']}"))[1]
    assert {(row["user"], row["model"], row["status"]) for row in rows} == {("ana", "main", "ok")}
    today = datetime.datetime.now(datetime.UTC).date()
    dates = f"start_date={today - datetime.timedelta(days=1)}&end_date={today + datetime.timedelta(days=1)}"
    days = (await admin(gateway, f"/spend/logs?{dates}"))[1]
    assert sum(day["requests"] for day in days) == len(rows)
    assert sum(day["spend"] for day in days) == pytest.approx(sum(row["spend"] for row in rows))
    report = (await admin(gateway, f"/global/spend/report?{dates}&group_by=api_key"))[1]
    assert report[0]["api_keys"][0]["api_key"] == key["token"]


async def test_the_models_of_a_key_and_a_team_are_the_only_ones_it_may_ask(gateway):
    assert (await admin(gateway, "/team/new", {"team_id": "blue", "models": ["main", "vectors"]}))[0] == 200
    _, key = await admin(gateway, "/key/generate", {"team_id": "blue", "models": ["main", "backup"]})
    assert (await ask(gateway, key["key"]))[0] == 200
    status, answer, _ = await ask(gateway, key["key"], "backup")
    assert (status, answer["error"]["code"]) == (403, "model_not_allowed")
    async with gateway.http.get(f"{gateway.url}/v1/models", headers={"authorization": f"Bearer {key['key']}"}) as listed:
        assert [entry["id"] for entry in (await listed.json())["data"]] == ["main"]


async def test_a_blocked_key_is_refused_long_before_its_cache_ends(gateway):
    _, key = await admin(gateway, "/key/generate", {})
    assert (await ask(gateway, key["key"]))[0] == 200
    assert (await admin(gateway, "/key/block", {"key": key["key"]}))[0] == 200
    status, answer, _ = await ask(gateway, key["key"])
    assert (status, answer["error"]["code"]) == (401, "blocked_api_key")


async def test_the_master_key_calls_models_and_nobody_without_it_administrates(gateway):
    assert (await ask(gateway, MASTER))[0] == 200
    assert (await admin(gateway, "/key/list", key=MASTER + "x"))[0] == 401
    info = (await admin(gateway, "/model/info"))[1]
    assert {entry["model_name"] for entry in info["data"]} == {"main", "backup", "vectors"}
