"""/v1/schedules over real HTTP and real gRPC, with an orchestrator in memory."""

import pytest
from bulkhead.orchestrator.v1 import schedules_pb2 as pb

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLAN = {
    "timing": {"cron": "0 9 * * MON-FRI", "time_zone": "Europe/Lisbon", "start_at": "2030-01-01T00:00:00+01:00", "jitter_ms": 1500},
    "input": "What is new?",
    "name": "morning",
    "agent": "assistant",
    "thread_policy": "one",
    "thread_id": "t-morning",
    "overlap_policy": "queue",
    "catch_up_policy": "last",
    "metadata": {"team": "blue"},
}
EVERY_HOUR = {
    "timing": {"interval_ms": 3_600_000},
    "input": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hi"}],
}


@pytest.fixture(autouse=True)
def nobody_meddles(front):
    front.log.records.meddlers = 0
    front.log.records.masks = True


async def make(http, body=None, **headers):
    async with http.post("/v1/schedules", json=body or EVERY_HOUR, headers=headers) as response:
        assert response.status == 201, await response.text()
        return await response.json()


async def patch(http, schedule_id, status=200, headers=None, **body):
    async with http.patch(f"/v1/schedules/{schedule_id}", json=body, headers=headers) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def test_a_schedule_is_made_as_it_was_asked_for_and_read_again(ana, front):
    async with ana.post("/v1/schedules", json=PLAN, headers={"idempotency-key": "k-made"}) as response:
        assert response.status == 201, await response.text()
        made = await response.json()
        assert response.headers["location"] == f"/v1/schedules/{made['schedule_id']}"
    asked = front.log.records.asked[-1]
    assert asked.idempotency_key == "k-made"
    assert asked.definition.timing.start_at.ToJsonString() == "2029-12-31T23:00:00Z"
    async with ana.get(response.headers["location"]) as response:
        assert await response.json() == made
    asked_for = {**PLAN, "input": [{"role": "user", "content": "What is new?"}]}
    asked_for["timing"] = {**PLAN["timing"], "start_at": "2029-12-31T23:00:00.000000Z", "interval_ms": None, "end_at": None}
    assert {name: made[name] for name in asked_for} == asked_for
    assert (made["state"], made["version"], made["next_tick_at"], made["last_tick"]) == ("active", 1, None, None)


async def test_what_is_not_said_is_the_default(ana, front):
    made = await make(ana)
    assert made["timing"] == {
        "cron": None, "interval_ms": 3_600_000, "time_zone": "UTC", "start_at": None, "end_at": None, "jitter_ms": 0,
    }  # fmt: skip
    assert (made["thread_policy"], made["thread_id"], made["overlap_policy"], made["catch_up_policy"]) == ("new", None, "skip", "none")
    assert [message["role"] for message in made["input"]] == ["system", "user"]
    assert not front.log.records.asked[-1].definition.timing.HasField("start_at")


async def test_the_same_key_makes_one_schedule(ana):
    headers = {"idempotency-key": "k-once"}
    first, second = await make(ana, **headers), await make(ana, **headers)
    assert first["schedule_id"] == second["schedule_id"]
    async with ana.post("/v1/schedules", json={**EVERY_HOUR, "name": "other"}, headers=headers) as response:
        assert (response.status, (await response.json())["reason"]) == (422, "IDEMPOTENCY_MISMATCH")


async def test_schedules_are_listed_newest_first_in_pages(ana, front):
    headers = {"authorization": f"Bearer {await front.issue(user='lister')}"}
    made = []
    for _ in range(3):
        async with ana.post("/v1/schedules", json=EVERY_HOUR, headers=headers) as response:
            made.append((await response.json())["schedule_id"])
    seen, path = [], "/v1/schedules?limit=2"
    while path:
        async with ana.get(path, headers=headers) as response:
            page = await response.json()
            seen += [one["schedule_id"] for one in page["data"]]
            link = response.links.get("next")
            path = str(link["url"].relative()) if link else None
    assert seen == made[::-1]


async def test_a_change_leaves_what_it_does_not_name(ana):
    made = await make(ana, PLAN)
    changed = await patch(ana, made["schedule_id"], name="evening", overlap_policy="cancel", metadata={})
    assert changed["version"] == 2
    same = {name: value for name, value in made.items() if name not in ("name", "overlap_policy", "metadata", "version", "updated_at")}
    assert {name: changed[name] for name in same} == same
    assert (changed["name"], changed["overlap_policy"], changed["metadata"]) == ("evening", "cancel", {})
    changed = await patch(
        ana, made["schedule_id"], timing={"interval_ms": 60_000}, input="What else?", agent="hang", catch_up_policy="none"
    )
    assert (changed["timing"]["cron"], changed["timing"]["interval_ms"], changed["timing"]["start_at"]) == (None, 60_000, None)
    assert (changed["input"], changed["agent"], changed["catch_up_policy"]) == ([{"role": "user", "content": "What else?"}], "hang", "none")
    changed = await patch(ana, made["schedule_id"], thread_id="t-other")
    assert (changed["thread_policy"], changed["thread_id"]) == ("one", "t-other")
    changed = await patch(ana, made["schedule_id"], thread_policy="new")
    assert (changed["thread_policy"], changed["thread_id"]) == ("new", None)


async def test_a_change_keeps_what_somebody_else_changes_at_the_same_time(ana, front):
    made = await make(ana, PLAN)
    front.log.records.meddlers = 1
    changed = await patch(ana, made["schedule_id"], overlap_policy="skip")
    assert (changed["overlap_policy"], changed["name"]) == ("skip", "of another 2")
    front.log.records.meddlers = 1
    changed = await patch(ana, made["schedule_id"], headers={"idempotency-key": "k-keeps"}, overlap_policy="cancel")
    assert (changed["overlap_policy"], changed["name"]) == ("cancel", "of another 4")
    assert list(front.log.records.asked[-1].update_mask.paths) == ["overlap_policy"]


async def test_a_change_leaves_what_it_does_not_name_also_where_the_orchestrator_knows_no_mask(ana, front):
    made = await make(ana, PLAN)
    front.log.records.masks = False
    changed = await patch(ana, made["schedule_id"], overlap_policy="skip", metadata={})
    assert {**changed, "version": 1, "updated_at": None} == {**made, "overlap_policy": "skip", "metadata": {}, "updated_at": None}


async def test_a_change_takes_no_right_to_read(ana, front):
    made = await make(ana, PLAN)
    headers = {"authorization": f"Bearer {await front.issue(scopes=('schedules:write', 'runs:write'))}"}
    assert (await patch(ana, made["schedule_id"], headers=headers, name="evening"))["metadata"] == PLAN["metadata"]
    assert front.log.records.asked[-1].definition == pb.ScheduleDefinition(name="evening")


async def test_a_change_of_a_version_that_is_gone_is_refused(ana, front):
    made = await make(ana)
    await patch(ana, made["schedule_id"], name="a", expected_version=1)
    before = len(front.log.records.asked)
    problem = await patch(ana, made["schedule_id"], 409, name="b", expected_version=1)
    assert (problem["reason"], len(front.log.records.asked) - before) == ("SCHEDULE_CHANGED", 1)


@pytest.mark.parametrize("version", [{}, {"expected_version": 1}])
async def test_a_change_that_is_repeated_under_its_key_is_made_once(ana, version):
    made = await make(ana)
    headers = {"idempotency-key": f"k-change-{len(version)}"}
    for _ in range(2):
        changed = await patch(ana, made["schedule_id"], headers=headers, name="a", thread_policy="one", **version)
        assert (changed["version"], changed["name"]) == (2, "a")
    assert (await patch(ana, made["schedule_id"], 422, headers=headers, name="b", **version))["reason"] == "IDEMPOTENCY_MISMATCH"


async def test_a_schedule_is_paused_resumed_and_deleted(ana, front):
    path = f"/v1/schedules/{(await make(ana))['schedule_id']}"
    for verb, state in (("pause", "paused"), ("resume", "active")):
        async with ana.post(f"{path}/{verb}", headers={"idempotency-key": f"k-{verb}"}) as response:
            assert (response.status, (await response.json())["state"]) == (200, state)
        assert front.log.records.asked[-1].idempotency_key == f"k-{verb}"
    for _ in range(2):
        async with ana.delete(path, headers={"idempotency-key": "k-delete"}) as response:
            assert (response.status, await response.read()) == (204, b"")
    async with ana.get(path) as response:
        assert (response.status, (await response.json())["reason"]) == (404, "SCHEDULE_NOT_FOUND")


async def test_one_that_has_ended_is_not_paused(ana, front):
    made = await make(ana)
    front.log.records.schedules[("acme", "ana", made["schedule_id"])].state = pb.SCHEDULE_STATE_ENDED
    async with ana.get(f"/v1/schedules/{made['schedule_id']}") as response:
        assert (await response.json())["state"] == "ended"
    async with ana.post(f"/v1/schedules/{made['schedule_id']}/pause") as response:
        assert (response.status, (await response.json())["reason"]) == (409, "SCHEDULE_ENDED")


async def test_ticks_say_what_came_of_them(ana, front):
    results = [pb.TICK_RESULT_FIRED, pb.TICK_RESULT_SKIPPED, pb.TICK_RESULT_MISSED, pb.TICK_RESULT_REFUSED]
    ticks = [pb.ScheduleTick(result=result) for result in results]
    ticks[0].run_id, ticks[0].thread_id, ticks[3].reason = "run_1", "t_1", "AGENT_NOT_FOUND"
    for number, tick in enumerate(ticks):
        tick.tick_at.FromSeconds(1_900_000_000 - number)
        tick.decided_at.FromSeconds(1_900_000_001 - number)
    front.log.records.ticks = ticks
    made = await make(ana)
    front.log.records.schedules[("acme", "ana", made["schedule_id"])].last_tick.CopyFrom(ticks[0])
    async with ana.get(f"/v1/schedules/{made['schedule_id']}/ticks?limit=3") as response:
        page = await response.json()
        assert "next" in response.links
    assert page["data"][0] == {
        "tick_at": "2030-03-17T17:46:40.000000Z", "result": "fired", "run_id": "run_1", "thread_id": "t_1", "reason": None,
        "decided_at": "2030-03-17T17:46:41.000000Z",
    }  # fmt: skip
    async with ana.get(f"/v1/schedules/{made['schedule_id']}/ticks?limit=3&after={page['next_after']}") as response:
        rest = await response.json()
    assert [tick["result"] for tick in page["data"] + rest["data"]] == ["fired", "skipped", "missed", "refused"]
    assert (rest["data"][0]["run_id"], rest["data"][0]["reason"], rest["next_after"]) == (None, "AGENT_NOT_FOUND", None)
    async with ana.get(f"/v1/schedules/{made['schedule_id']}") as response:
        assert (await response.json())["last_tick"] == page["data"][0]


def but(**fields):
    return {**EVERY_HOUR, **fields}


def timed(**fields):
    return but(timing=fields)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": "x"}, "timing"),
        ({"timing": {"interval_ms": 60_000}}, "input"),
        (but(surprise=1), "surprise"),
        (timed(), "timing"),
        (timed(cron="@daily", interval_ms=60_000), "timing"),
        (timed(cron=""), "timing.cron"),
        (timed(cron="@daily", surprise=1), "timing.surprise"),
        (timed(interval_ms=0), "timing.interval_ms"),
        (timed(interval_ms="60000"), "timing.interval_ms"),
        (timed(interval_ms=2**60), "timing.interval_ms"),
        (timed(cron="@daily", jitter_ms=3_600_001), "timing.jitter_ms"),
        (timed(cron="@daily", start_at="tomorrow"), "timing.start_at"),
        (timed(cron="@daily", start_at="2030-01-01T00:00:00"), "timing.start_at"),
        (timed(cron="@daily", start_at=1_900_000_000), "timing.start_at"),
        (timed(cron="@daily", end_at="1969-12-31T23:59:59Z"), "timing.end_at"),
        (timed(cron="@daily", end_at="9999-12-31T23:59:59-14:00"), "timing.end_at"),
        (but(thread_policy="both"), "thread_policy"),
        (but(thread_id="a b"), "thread_id"),
        (but(overlap_policy="SKIP"), "overlap_policy"),
        (but(catch_up_policy="all"), "catch_up_policy"),
        (but(name="x" * 257), "name"),
        (but(agent="a/b"), "agent"),
        (but(metadata={f"k{n}": "" for n in range(17)}), "metadata"),
    ],
)
async def test_what_is_wrong_with_a_new_schedule_is_named(ana, body, field):
    async with ana.post("/v1/schedules", json=body) as response:
        assert response.status == 422, await response.text()
        assert (await response.json())["errors"][0]["field"] == field


async def test_what_the_orchestrator_refuses_is_named_as_the_body_has_it(ana):
    made = await make(ana)
    too_often = {"interval_ms": 1000}
    async with ana.post("/v1/schedules", json=timed(**too_often)) as response:
        assert (response.status, (await response.json())["errors"][0]["field"]) == (400, "timing.interval_ms")
    assert (await patch(ana, made["schedule_id"], 400, timing=too_often))["errors"][0]["field"] == "timing.interval_ms"
    async with ana.post("/v1/schedules", json=timed(cron="0 0 31 2 *")) as response:
        assert (response.status, (await response.json())["reason"]) == (400, "SCHEDULE_NEVER_FIRES")


@pytest.mark.parametrize(
    ("body", "field"), [({}, "body"), ({"expected_version": 1}, "body"), ({"expected_version": 0}, "expected_version")]
)
async def test_a_change_of_nothing_is_refused(ana, body, field):
    problem = await patch(ana, "sch_none", 422, **body)
    assert problem["errors"][0]["field"] == field


ROUTES = [
    ("GET", "/v1/schedules/{id}", {"schedules:read"}), ("PATCH", "/v1/schedules/{id}", {"schedules:write", "runs:write"}),
    ("DELETE", "/v1/schedules/{id}", {"schedules:write"}), ("POST", "/v1/schedules/{id}/pause", {"schedules:write"}),
    ("POST", "/v1/schedules/{id}/resume", {"schedules:write", "runs:write"}), ("GET", "/v1/schedules/{id}/ticks", {"schedules:read"}),
    ("POST", "/v1/schedules", {"schedules:write", "runs:write"}), ("GET", "/v1/schedules", {"schedules:read"}),
]  # fmt: skip


BODIES = {("PATCH", "/v1/schedules/{id}"): {"name": "x"}, ("POST", "/v1/schedules"): EVERY_HOUR}


@pytest.mark.parametrize(("method", "path", "scopes"), ROUTES)
async def test_each_route_asks_for_its_scopes(ana, front, method, path, scopes):
    headers = {"authorization": f"Bearer {await front.issue(scopes=('threads:read',))}"}
    async with ana.request(method, path.format(id="sch_none"), headers=headers, json=BODIES.get((method, path))) as response:
        problem = await response.json()
    assert (response.status, problem["reason"]) == (403, "SCOPE_MISSING")
    assert set(problem["missing_scopes"].split(", ")) == scopes


@pytest.mark.parametrize(("method", "path", "_"), [route for route in ROUTES if "{id}" in route[1]])
async def test_what_is_another_users_or_no_id_at_all_is_not_there(ana, front, method, path, _):
    made = await make(ana)
    for who in ({"tenant": "globex"}, {"user": "bo"}):
        headers = {"authorization": f"Bearer {await front.issue(**who)}"}
        async with ana.request(method, path.format(id=made["schedule_id"]), headers=headers, json=BODIES.get((method, path))) as response:
            assert (response.status, (await response.json())["reason"]) == (404, "SCHEDULE_NOT_FOUND")
    async with ana.request(method, path.format(id="a%20b"), json=BODIES.get((method, path))) as response:
        assert (response.status, (await response.json())["errors"][0]["field"]) == (400, "schedule_id")
    async with ana.get(f"/v1/schedules/{made['schedule_id']}") as response:
        assert (await response.json())["version"] == 1
