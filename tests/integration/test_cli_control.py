"""Plans, tool calls, many runs, feedback, schedules that change, and erasures, at a gateway over fakes, as a user types them."""

import asyncio
import json

import pytest
from bulkhead.orchestrator.v1 import admin_pb2, schedules_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.gateway import fake_scripts
from services.gateway.fake_control import CALL_ID, PLAN_VERSION
from tests.unit.cli.command_line import command, on_a_terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")
PLAN = [{"title": "Look\x1b[2J", "status": "done"}, {"title": "Count", "status": "in_progress"}, {"title": "Tell", "status": "pending"}]


@pytest.fixture(autouse=True)
def _connected(front, monkeypatch):
    monkeypatch.setenv("BULKHEAD_URL", front.url)
    monkeypatch.setenv("BULKHEAD_API_KEY", front.key)


async def planner(run):
    """Makes a plan, and another, calls a tool, and works until it is cancelled."""
    yield "plan_updated", {"version": 1, "steps": [{"title": "Guess", "status": "pending"}]}, False
    yield "plan_updated", {"version": PLAN_VERSION, "steps": PLAN}, False
    yield "tool_call_started", {"call_id": "t0", "tool": "search", "arguments": {}}, False
    yield "tool_call_completed", {"call_id": "t0", "tool": "search", "output": {}}, False
    yield "tool_call_started", {"call_id": CALL_ID, "tool": "calculator", "arguments": {}}, False
    await run.cancelled.wait()
    yield "run_cancelled", {"output_text": "", "usage": {}}, False


@pytest.fixture
def _planner(monkeypatch):
    monkeypatch.setitem(fake_scripts.SCRIPTS, "planner", planner)


async def start(ana, thread, agent="hang", **body):
    """A run that works until it is ended; its id."""
    async with ana.post(f"/v1/threads/{thread}/runs", json={"input": "hi", "agent": agent, **body}) as answer:
        return (await answer.json())["run_id"]


async def planned(ana, thread):
    """A run whose plan stands and whose call is at work."""
    run_id = await start(ana, thread, "planner")

    async def there():
        async with ana.get(f"/replay/{thread}") as answer:
            return any(event["data"].get("call_id") == CALL_ID for event in (await answer.json())["events"])

    await testing.eventually_async(there, "the call is at work")
    return run_id


@pytest.mark.usefixtures("_planner")
async def test_the_plan_that_stands_is_shown_and_changed_step_by_step_or_as_a_whole(ana, front):
    await start(ana, "t-plan", "assistant")
    run_id = await planned(ana, "t-plan")
    shown = await command("runs", "plan", run_id)
    assert [line.split() for line in shown.out.splitlines()] == [
        ["STEP", "STATUS", "TITLE"], ["1", "done", "Look[2J"], ["2", "in_progress", "Count"], ["3", "pending", "Tell"]
    ]  # fmt: skip
    assert shown.err == f"version {PLAN_VERSION}\n"
    assert (await command("runs", "plan", run_id, "--json")).json() == [{"run_id": run_id, "version": PLAN_VERSION, "steps": PLAN}]

    changes = ("--mark", "2=done", "--title", "3=Tell all", "--remove", "1", "--add", "Rest", "--add", "Sleep")
    assert "change 1" in (await command("runs", "plan", run_id, *changes)).out
    asked = front.log.desk.asked[-1]
    assert (asked.version, asked.idempotency_key[:4]) == (PLAN_VERSION, "cli-")
    assert [(step.title, step.status) for step in asked.steps] == [
        ("Count", "done"), ("Tell all", "pending"), ("Rest", "pending"), ("Sleep", "pending")
    ]  # fmt: skip
    whole = json.dumps([{"title": "Only this", "status": "pending"}])
    (told,) = (await command("runs", "plan", run_id, "--steps", whole, "--version", str(PLAN_VERSION), "--json")).json()
    assert (told["number"], [step.title for step in front.log.desk.asked[-1].steps]) == (2, ["Only this"])
    lost = await command("runs", "plan", run_id, "--mark", "1=done", "--version", "1", status=6)
    assert "`bulkhead runs plan RUN`" in lost.err
    other = await start(ana, "t-no-plan")
    assert "has no plan" in (await command("runs", "plan", other, status=1)).err


@pytest.mark.usefixtures("_planner")
async def test_a_tool_call_is_cancelled_with_each_way_on_and_offered_by_its_id(ana, front):
    run_id = await planned(ana, "t-call")
    for how in ("skip", "fail", "retry"):
        assert f"{CALL_ID}: asked to end" in (await command("runs", "cancel-tool", run_id, CALL_ID, how)).out
    result = ("substitute", "--result", '{"value": 42}', "--json")
    (told,) = (await command("runs", "cancel-tool", run_id, CALL_ID, *result)).json()
    assert (told["call_id"], told["number"]) == (CALL_ID, 4)
    asked = front.log.desk.asked[-1]
    assert (asked.continuation, json.loads(asked.result_json)) == (pb.TOOL_CALL_CONTINUATION_SUBSTITUTE, {"value": 42})
    gone = await command("runs", "cancel-tool", run_id, "t0", "skip", status=1)
    assert "`bulkhead runs watch RUN`" in gone.err
    completing = {"_BULKHEAD_COMPLETE": "complete_bash", "COMP_WORDS": f"bulkhead runs cancel-tool {run_id} ", "COMP_CWORD": "4"}
    offered = await asyncio.create_subprocess_exec(
        *testing.python("-m", "services.cli"), stdout=asyncio.subprocess.PIPE, env={**connected(front), **completing}
    )
    assert (await offered.communicate())[0].split() == [CALL_ID.encode()]


def connected(front):
    return {"PATH": "/usr/bin:/bin", "BULKHEAD_URL": front.url, "BULKHEAD_API_KEY": front.key}


async def test_all_runs_that_fit_are_cancelled_and_no_others(ana, front):
    named = [await start(ana, "t-many", metadata={"team": "blue"}) for _ in range(2)]
    other = await start(ana, "t-many-else")
    refused = await command("runs", "cancel", "--all", "--thread", "t-many", "--label", "team=blue", status=2)
    assert "cancel all your runs of thread t-many with team=blue that have not ended?" in refused.err
    assert "--yes" in refused.err
    done = await command("runs", "cancel", "--all", "--thread", "t-many", "--label", "team=blue", "--yes", "--reason", "enough")
    assert (done.out, done.err) == ("2 runs asked to end\n", "")
    asked = front.log.desk.asked[-1]
    assert (asked.filter.thread_id, dict(asked.filter.metadata), asked.reason) == ("t-many", {"team": "blue"}, "enough")
    for run_id in named:
        async with ana.get(f"/v1/runs/{run_id}") as answer:
            assert (await answer.json())["cancel_requested"]
    more = ("--agent", "hang", "--status", "queued", "--status", "running", "--schedule", "sch-1", "--json")
    (told,) = (await command("runs", "cancel", "--all", *more, "--key", "op-1")).json()
    asked = front.log.desk.asked[-1]
    assert (told["done"], asked.idempotency_key, asked.filter.agent, asked.filter.schedule_id) == (True, "op-1", "hang", "sch-1")
    assert list(asked.filter.statuses) == [pb.RUN_STATUS_QUEUED, pb.RUN_STATUS_RUNNING]
    async with on_a_terminal("runs", "cancel", "--all") as (written, process, say):
        await testing.eventually_async(lambda: b"cancel all your runs that have not ended? [y/N]" in written, "it asks")
        say("y\n")
        assert await process.wait() == 0
    assert len(front.log.desk.asked[-1].filter.statuses) == 3
    assert front.log.runs[("acme", other)].run.cancel_requested


async def test_feedback_of_the_tenant_is_listed_and_takes_an_administrator(ana, front, monkeypatch):
    run_id = await start(ana, "t-judged", "assistant")
    assert (await command("feedback", "list", "--run", run_id)).out == "no feedback yet\n"
    for judged in ({"rating": 2, "text": "wrong\x1b[31m sum"}, {"signal": "dwell", "dwell_ms": 900}, {"thumbs": "up"}):
        async with ana.post("/v1/feedback", json={"run_id": run_id, **judged}) as answer:
            assert answer.status == 201, await answer.text()
    table = (await command("feedback", "list", "--run", run_id)).out
    assert all(told in table for told in (run_id, "wrong[31m sum", "dwell 900 ms", "up", "assistant"))
    listed = (await command("feedback", "list", "--run", run_id, "--agent", "assistant", "--limit", "2", "--json")).json()
    assert [(one["thumbs"], one["signal"]) for one in listed] == [("up", None), (None, "dwell")]
    assert (await command("feedback", "list", "--since", "2999-01-01T00:00:00Z", "--json")).out == ""
    monkeypatch.setenv("BULKHEAD_API_KEY", await front.issue(scopes=("runs:write",)))
    assert "admin" in (await command("feedback", "list", status=4)).err


async def test_a_schedule_is_changed_in_what_is_named_and_in_nothing_else(front):
    timing = ("--cron", "0 9 * * *", "--time-zone", "Europe/Lisbon", "--start-at", "2026-01-01T00:00:00Z", "--jitter-seconds", "90")
    made = (await command("schedules", "create", "What is new?", "--name", "news", *timing, "--label", "team=news", "--agent", "hang")).out
    schedule_id = made.strip()

    async def updated(*options, **more):
        done = await command("schedules", "update", schedule_id, *options, **more)
        return done, front.log.records.asked[-1]

    done, asked = await updated("--name", "old news", "--overlap", "queue")
    assert done.out.startswith(f"{schedule_id}: changed, active")
    assert sorted(asked.update_mask.paths) == ["name", "overlap_policy"]
    assert asked.idempotency_key.startswith("cli-")
    _, asked = await updated("--cron", "30 7 * * *", "--end-at", "2999-01-01T00:00:00Z")
    assert (asked.update_mask.paths, asked.expected_version) == (["timing"], 2)
    assert (asked.definition.timing.cron, asked.definition.timing.time_zone) == ("30 7 * * *", "Europe/Lisbon")
    assert (asked.definition.timing.start_at.seconds, asked.definition.timing.jitter.seconds) == (1767225600, 90)
    _, asked = await updated(
        "--every-minutes", "90", "--start-at", "", "--jitter-seconds", "0", "--message", "Again?", "--catch-up", "last"
    )
    assert asked.definition.timing.interval.seconds == 5400
    assert (asked.definition.timing.HasField("start_at"), asked.definition.timing.HasField("end_at")) == (False, True)
    assert (asked.definition.input[0].text, asked.definition.catch_up_policy) == ("Again?", schedules_pb2.CATCH_UP_POLICY_LAST)
    _, asked = await updated("--thread", "t-news", "--label", "a=b", "--label", "c=d", "--agent", "assistant")
    assert (asked.definition.thread_policy, asked.definition.thread_id) == (schedules_pb2.THREAD_POLICY_ONE, "t-news")
    assert (dict(asked.definition.metadata), asked.definition.agent) == ({"a": "b", "c": "d"}, "assistant")
    done, asked = await updated("--new-threads", "--label", "", "--name", "", "--json")
    assert asked.definition.thread_policy == schedules_pb2.THREAD_POLICY_NEW
    (told,) = done.json()
    assert (told["thread_id"], told["metadata"], told["name"]) == (None, {}, "")
    # Somebody else changes it between the look and the change.
    front.log.records.meddlers = 1
    lost, _ = await updated("--jitter-seconds", "5", status=6)
    assert "`bulkhead schedules show ID`" in lost.err
    lost, _ = await updated("--name", "x", "--version", "1", status=6)
    assert "changed by somebody else" in lost.err


async def test_an_erasure_is_begun_by_the_name_said_twice_and_watched_to_its_end(front):
    assert "Nobody can be asked here: say --confirm zoe" in (await command("erasures", "create", "zoe", status=2)).err
    assert "names another than zoe" in (await command("erasures", "create", "zoe", "--confirm", "zo", status=2)).err
    assert not front.log.records.erasures
    done = await command("erasures", "create", "zoe", "--confirm", "zoe")
    erasure_id = done.out.strip()
    assert f"`bulkhead erasures watch {erasure_id}`" in done.err
    assert json.loads((await command("erasures", "show", erasure_id)).out)["state"] == "pending"
    (_, erasure) = front.log.records.erasures[("acme", erasure_id)]
    del erasure.parts[:]
    erasure.parts.add(service="memory", state=admin_pb2.ERASURE_STATE_DONE, attempts=1).erased.add(kind="mem\x1b[2Jories", count=12)
    erasure.parts.add(service="llm_gateway", state=admin_pb2.ERASURE_STATE_PENDING, attempts=1, last_reason="UNREACHABLE")
    watch = await asyncio.create_subprocess_exec(
        *testing.python("-m", "services.cli", "erasures", "watch", erasure_id), stdout=asyncio.subprocess.PIPE, env=connected(front)
    )
    assert await watch.stdout.readline() == b"memory: done, 12 mem[2Jories\n"
    assert await watch.stdout.readline() == b"llm_gateway: pending, UNREACHABLE\n"
    erasure.parts[1].state = erasure.state = admin_pb2.ERASURE_STATE_DONE
    erasure.done_at.FromJsonString("2026-01-01T00:00:00Z")
    rest = await watch.stdout.read()
    assert rest.decode().splitlines() == ["llm_gateway: done, nothing there", f"{erasure_id}: done at 2026-01-01 00:00:00 UTC"]
    assert await watch.wait() == 0
    assert [one["state"] for one in (await command("erasures", "watch", erasure_id, "--json")).json()] == ["done"]
    async with on_a_terminal("erasures", "create", "yan") as (written, process, say):
        await testing.eventually_async(lambda: b"Type yan to go on:" in written, "it asks for the name")
        say("y\n")
        assert await process.wait() == 1
    assert b"nothing was done" in written
    async with on_a_terminal("erasures", "create", "yan") as (written, process, say):
        await testing.eventually_async(lambda: b"Type yan to go on:" in written, "it asks for the name")
        say("yan\n")
        assert await process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("runs", "cancel"), 2, "--all"),
        (("runs", "cancel", "run-x", "--all"), 2, "--all"),
        (("runs", "cancel", "run-x", "--agent", "a"), 2, "go with --all"),
        (("runs", "cancel", "--all", "--wait", "--yes"), 2, "--wait"),
        (("runs", "--thread", "t", "cancel", "--all", "--yes"), 2, "runs cancel --thread"),
        (("runs", "--limit", "20", "list"), 2, "runs list --limit"),
        (("runs", "--json", "show", "run-x"), 2, "runs show --json"),
        (("runs", "cancel", "--all", "--label", "x", "--yes"), 2, "NAME=VALUE"),
        (("runs", "cancel", "--all", "--status", "ended", "--yes"), 2, "--status"),
        (("runs", "cancel", "--all", "--thread", "bad thread", "--yes"), 2, "filter.thread_id"),
        (("runs", "cancel", "--all", "--key", "not visible", "--thread", "t\x1b[2J"), 2, "filter.thread_id"),
        (("runs", "cancel-tool", "run-x", "c", "sing"), 2, "sing"),
        (("runs", "cancel-tool", "run-x", "c", "substitute"), 2, "--result"),
        (("runs", "cancel-tool", "run-x", "c", "skip", "--result", "1"), 2, "--result"),
        (("runs", "cancel-tool", "run-x", "c", "substitute", "--result", "{"), 2, "--result is no JSON"),
        (("runs", "cancel-tool", "run-nowhere", "c", "skip"), 1, "`bulkhead runs list`"),
        (("runs", "cancel-tool", "run-x", "..", "skip"), 2, "is no id"),
        (("runs", "plan", "run-nowhere"), 1, "`bulkhead runs list`"),
        (("runs", "plan", "run-x", "--mark", "done"), 2, "NUMBER=VALUE"),
        (("runs", "plan", "run-x", "--mark", "²=done"), 2, "NUMBER=VALUE"),
        (("runs", "plan", "run-x", "--mark", "1=finished"), 2, "in_progress"),
        (("runs", "plan", "run-x", "--steps", "{}"), 2, "list of objects"),
        (("runs", "plan", "run-x", "--steps", "[]", "--add", "x"), 2, "whole plan"),
        (("runs", "plan", "run-x", "--steps", "[]", "--version", "1"), 2, "steps"),
        (("runs", "plan", "run-x", "--version", "1"), 2, "--version goes with a change"),
        (("feedback", "list", "--since", "yesterday"), 2, "since"),
        (("feedback", "list", "--limit", "0"), 2, "--limit"),
        (("schedules", "update", "sch-x"), 2, "name what is to change"),
        (("schedules", "update", "sch-nowhere", "--name", "x"), 1, "`bulkhead schedules list`"),
        (("schedules", "update", "sch-nowhere", "--cron", "@daily"), 1, "`bulkhead schedules list`"),
        (("schedules", "update", "sch-x", "--cron", "@daily", "--every-minutes", "5"), 2, "--cron and --every-minutes"),
        (("schedules", "update", "sch-x", "--one-thread", "--new-threads"), 2, "--new-threads"),
        (("schedules", "update", "sch-x", "--label", "x"), 2, "NAME=VALUE"),
        (("erasures", "show", "er-nowhere"), 1, "no such"),
        (("erasures", "watch", "er-nowhere"), 1, "no such"),
        (("erasures", "create", "", "--confirm", "x"), 2, "names another"),
        (("memories", "search", ""), 2, "query"),
        (("memories", "add", ""), 2, "text"),
    ],
)
async def test_what_goes_wrong_is_one_line_with_the_way_out_and_a_status(arguments, status, told):
    done = await command(*arguments, status=status)
    assert (done.out, done.err.startswith("bulkhead: "), done.err.count("\n"), told in done.err) == ("", True, 1, True), done.err


async def test_a_step_that_failed_must_be_marked_anew_and_one_that_is_not_there_is_named(ana, front, monkeypatch):
    async def failing(run):
        yield "plan_updated", {"version": PLAN_VERSION, "steps": [{"title": "Try", "status": "failed"}]}, False
        await run.cancelled.wait()
        yield "run_cancelled", {"output_text": "", "usage": {}}, False

    monkeypatch.setitem(fake_scripts.SCRIPTS, "failing", failing)
    run_id = await start(ana, "t-failed", "failing")

    async def there():
        return (await command("runs", "plan", run_id, status=None)).status == 0

    await testing.eventually_async(there, "the plan stands")
    assert "--mark 1=skipped" in (await command("runs", "plan", run_id, "--add", "x", status=2)).err
    assert "no step 2" in (await command("runs", "plan", run_id, "--remove", "2", status=2)).err
    await command("runs", "plan", run_id, "--add", "x", "--mark", "1=skipped")
    assert [step.status for step in front.log.desk.asked[-1].steps] == ["skipped", "pending"]
