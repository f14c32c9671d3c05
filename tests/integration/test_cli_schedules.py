"""`bulkhead schedules` and `memories`, and a word to runs at work, at a gateway over fakes, as a user types them."""

import json

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2, schedules_pb2

from tests.unit.cli.command_line import command

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(autouse=True)
def _connected(front, monkeypatch):
    monkeypatch.setenv("BULKHEAD_URL", front.url)
    monkeypatch.setenv("BULKHEAD_API_KEY", front.key)


async def start(ana, thread, agent="hang"):
    """A run that works until it is ended; its id."""
    async with ana.post(f"/v1/threads/{thread}/runs", json={"input": "hi", "agent": agent}) as answer:
        return (await answer.json())["run_id"]


async def test_a_run_at_work_is_steered_and_stopped_and_judged_afterwards(ana, front):
    run_id = await start(ana, "t-steer")
    (told,) = (await command("runs", "steer", run_id, "only 2025", "--json")).json()
    assert (told["number"], told["run"]["status"]) == (1, "running")
    assert (front.log.desk.asked[-1].text, front.log.desk.asked[-1].idempotency_key[:4]) == ("only 2025", "cli-")
    assert "message 2" in (await command("runs", "steer", run_id, "in short")).out
    (stopped,) = (await command("runs", "stop", run_id, "--wait", "--json")).json()
    assert stopped["run"]["ended_at"]
    again = await command("runs", "steer", run_id, "more", status=6)
    assert "→ say something new with `bulkhead chat --thread t-steer`" in again.err
    other = await start(ana, "t-stop")
    assert (await command("runs", "stop", other)).out == f"{other}: running, stop requested\n"

    feedback = ("--rating", "2", "--thumbs", "down", "--text", "wrong sum", "--corrected", "504", "--signal", "dwell", "--dwell-ms", "900")
    assert f"{run_id}: recorded as fb_" in (await command("runs", "feedback", run_id, *feedback)).out
    asked = front.log.desk.asked[-1]
    assert (asked.rating, asked.thumbs, asked.text, asked.corrected_answer) == (2, orchestrator_pb2.THUMBS_DOWN, "wrong sum", "504")
    assert (asked.signal, asked.dwell.ToMilliseconds()) == (orchestrator_pb2.FEEDBACK_SIGNAL_DWELL, 900)
    (recorded,) = (await command("runs", "feedback", run_id, "--thumbs", "up", "--json")).json()
    assert recorded["run_id"] == run_id


async def test_a_schedule_is_made_looked_at_paused_resumed_and_deleted(front):
    timing = ("--cron", "0 9 * * MON-FRI", "--time-zone", "Europe/Lisbon", "--start-at", "2026-01-01T00:00:00Z", "--jitter-seconds", "90")
    more = ("--thread", "t-news", "--overlap", "queue", "--catch-up", "last", "--label", "team=news", "--agent", "assistant")
    schedule_id = (await command("schedules", "create", "What is new?", "--name", "news", *timing, *more)).out.strip()
    definition = front.log.records.asked[-1].definition
    assert (definition.timing.cron, definition.timing.time_zone) == ("0 9 * * MON-FRI", "Europe/Lisbon")
    assert (definition.timing.jitter.seconds, definition.timing.start_at.seconds) == (90, 1767225600)
    assert (definition.thread_policy, definition.thread_id) == (schedules_pb2.THREAD_POLICY_ONE, "t-news")
    assert definition.overlap_policy == schedules_pb2.OVERLAP_POLICY_QUEUE
    assert definition.catch_up_policy == schedules_pb2.CATCH_UP_POLICY_LAST
    assert (dict(definition.metadata), definition.agent) == ({"team": "news"}, "assistant")
    (every,) = (await command("schedules", "create", "Again?", "--every-minutes", "90", "--one-thread", "--json")).json()
    assert (every["timing"]["interval_ms"], every["thread_policy"]) == (5_400_000, "one")

    table = (await command("schedules", "list")).out
    for told in (schedule_id, "news", "0 9 * * MON-FRI Europe/Lisbon", "every 90 min", "What is new?", "active"):
        assert told in table, told
    listed = await command("schedules", "list", "--json", constants={"client.MOST_A_PAGE": 1})
    assert [one["schedule_id"] for one in listed.json()][:2] == [every["schedule_id"], schedule_id]
    assert json.loads((await command("schedules", "show", schedule_id)).out)["name"] == "news"
    assert (await command("schedules", "pause", schedule_id)).out == f"{schedule_id}: paused\n"
    assert (await command("schedules", "resume", schedule_id, "--json")).json()[0]["state"] == "active"

    assert (await command("schedules", "ticks", schedule_id)).out == "no ticks yet\n"
    ticks = [
        schedules_pb2.ScheduleTick(result=schedules_pb2.TICK_RESULT_REFUSED, reason="QUOTA_EXCEEDED"),
        schedules_pb2.ScheduleTick(result=schedules_pb2.TICK_RESULT_FIRED, run_id="run-ticked"),
    ]
    front.log.records.ticks.extend(ticks)
    shown = (await command("schedules", "ticks", schedule_id)).out
    assert all(told in shown for told in ("QUOTA_EXCEEDED", "refused", "run-ticked", "fired"))
    assert [one["result"] for one in (await command("schedules", "ticks", schedule_id, "--json")).json()] == ["refused", "fired"]
    assert "--yes" in (await command("schedules", "delete", schedule_id, status=2)).err
    assert (await command("schedules", "delete", schedule_id, "--yes")).out == f"{schedule_id}: deleted\n"
    assert "`bulkhead schedules list`" in (await command("schedules", "show", schedule_id, status=1)).err


async def test_memories_are_added_found_and_deleted(front):
    assert (await command("memories", "list")).out == "no memories yet\n"
    added = ("memories", "add", "My boat is called Nebelkraehe.", "--importance", "0.9", "--expires-at", "2099-01-01T00:00:00Z")
    memory_id = (await command(*added)).out.strip()
    (episode,) = (await command("memories", "add", "We sailed to\x1b[2J Riga.", "--kind", "episode", "--json")).json()
    assert (episode["kind"], episode["text"]) == ("episode", "We sailed to\x1b[2J Riga.")
    table = (await command("memories", "list")).out
    assert all(told in table for told in (memory_id, "Nebelkraehe", "0.90", "fact", "We sailed to[2J Riga."))
    assert [one["memory_id"] for one in (await command("memories", "search", "boat", "--json")).json()] == [memory_id]
    assert (await command("memories", "search", "train")).out == "nothing fits\n"
    assert json.loads((await command("memories", "show", memory_id)).out)["importance"] == pytest.approx(0.9)

    assert (await command("memories", "delete", episode["memory_id"], "--yes", "--json")).json()[0]["deleted"]
    assert "--yes" in (await command("memories", "delete", memory_id, status=2)).err
    assert (await command("memories", "delete", memory_id, "--yes")).out == f"{memory_id}: deleted\n"
    assert "`bulkhead memories list`" in (await command("memories", "show", memory_id, status=1)).err


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("runs", "steer", "run-nowhere", "hi"), 1, "`bulkhead runs list`"),
        (("runs", "steer", "run-x", ""), 2, "text"),
        (("runs", "stop", ".."), 2, "is no id"),
        (("runs", "feedback", "run-nowhere", "--rating", "3"), 1, "`bulkhead runs list`"),
        (("runs", "feedback", "run-x"), 2, "--rating"),
        (("runs", "feedback", "run-x", "--rating", "6"), 2, "--rating"),
        (("runs", "feedback", "run-x", "--rating", "3", "--dwell-ms", "9"), 2, "dwell_ms"),
        (("schedules", "create", "hi"), 2, "--cron and --every-minutes"),
        (("schedules", "create", "hi", "--cron", "@daily", "--every-minutes", "5"), 2, "--cron and --every-minutes"),
        (("schedules", "create", "hi", "--every-minutes", "5", "--time-zone", "UTC"), 2, "goes with --cron"),
        (("schedules", "create", "hi", "--every-minutes", "0.5"), 2, "timing.interval"),
        (("schedules", "create", "hi", "--every-minutes", "inf"), 2, "--every-minutes"),
        (("schedules", "create", "hi", "--cron", "0 0 31 2 *"), 2, "no tick"),
        (("schedules", "create", "hi", "--cron", "@daily", "--start-at", "tomorrow"), 2, "start_at"),
        (("schedules", "create", "hi", "--cron", "@daily", "--label", "x"), 2, "NAME=VALUE"),
        (("schedules", "pause", "sch-nowhere"), 1, "`bulkhead schedules list`"),
        (("schedules", "ticks", "sch-nowhere"), 1, "`bulkhead schedules list`"),
        (("memories", "add", "x", "--importance", "2"), 2, "--importance"),
        (("memories", "delete", "mem-nowhere", "--yes"), 1, "`bulkhead memories list`"),
        (("memories", "search", ""), 2, "query: String should have at least 1 character"),
        (("threads", "create", "--days", "inf"), 2, "--days"),
        (("threads", "create", "--days", "3651"), 2, "or equal to 3650"),
        (("replay", "t", "--speed", "nan"), 2, "--speed"),
    ],
)
async def test_what_goes_wrong_is_one_line_with_the_way_out_and_a_status(arguments, status, told):
    done = await command(*arguments, status=status)
    assert (done.out, done.err.startswith("bulkhead: "), done.err.count("\n"), told in done.err) == ("", True, 1, True), done.err
