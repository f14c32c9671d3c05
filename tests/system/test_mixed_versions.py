"""A rolling upgrade and a rollback, as operators make them: orchestrators of two versions over one store, with runs in every state.

`older` is this version, and `newer` the next one as next_version.py makes it. `older` alone, runs brought to every state; `newer` is
added and `older` drained: all goes on and ends. Then the same way back, where `older` goes on with what it can read, and leaves alone what
it cannot: runs that the next version has parked, until that version is there again. In the end the oracle looks at everything.
"""

import asyncio
import time
from contextlib import AsyncExitStack, aclosing

import orjson
import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals_pb
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import testing
from services.common.errors import BulkheadError, Internal
from services.common.valkey import connect
from services.orchestrator.records import EVENT_SCHEMA, SCHEMA_VERSION
from services.orchestrator.testing.counting import ONCE, REPEATABLE, calls, script
from services.orchestrator.testing.harness import AGENTS, LOST, data_of, types, write_config
from services.orchestrator.testing.replicas import Replica
from tests.system import next_version
from tests.system.kill_site import TALK, Site, each

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]
MORE_AGENTS = """
  leading:
    current: "1"
    versions:
      "1": {prompt: helper.md, model: m, strategy: supervisor, tools: [calculator], agents: [{name: quick}]}
  flowing:
    current: "1"
    versions:
      "1":
        prompt: helper.md
        model: m
        strategy: workflow
        tools: [calculator, send_mail]
        workflow:
          steps:
            - {name: first, kind: tool, tool: calculator, arguments: {nonce: "a"}}
            - {name: pause, kind: wait, seconds: 10}
            - {name: last, kind: tool, tool: send_mail, arguments: {nonce: "b"}}
            - {name: done, kind: end, output: "sent"}
"""
APPROVE = approvals_pb.Approve()
# Long enough for the versions to change meanwhile, as the wait of the workflow above is.
AHEAD_S = 6.0


class Fleet(Site):
    """A site whose clients know both versions."""

    def __init__(self, behind, older, newer):
        super().__init__(behind)
        self.older, self.newer = older, newer
        self.on_duty(older)

    def on_duty(self, replica):
        """From now on `replica` is asked."""
        self.first = self.second = replica

    def watch(self, run_id, *clients):
        both = {id(client): client for client in (*clients, self.older.client, self.newer.client)}
        super().watch(run_id, *both.values())

    async def enter(self, replica):
        """Adds a process of a version, and returns when callers reach it."""
        replica.start()
        await replica.ready()

        async def reached():
            try:
                with replica.client.calling():
                    return await replica.client.agents.ListAgents(pb.ListAgentsRequest())
            except BulkheadError as error:
                if error.code.name not in LOST:
                    raise

        await testing.eventually_async(reached, f"{replica.name} is reached")


def ahead(seconds):
    found = Timestamp()
    found.FromMilliseconds(int((time.time() + seconds) * 1000))
    return found


# A run in each state, and what becomes of it when its owner has left. `tag` says which way the versions change.


async def streaming(site, tag):
    run_id = f"streaming-{tag}"
    await site.streaming(run_id)
    yield
    site.models.of(run_id).open()
    assert (await site.ended(run_id)).output_text == TALK


async def queued(site, tag):
    """Behind a run of its thread that is at work."""
    before, run_id = f"before-{tag}", f"queued-{tag}"
    await site.streaming(before)
    await site.start(run_id, "hi", thread_id=site.threads[before])
    assert (await site.second.client.get(run_id)).status == pb.RUN_STATUS_QUEUED
    yield
    site.models.of(before).open()
    assert (await site.ended(run_id)).output_text == "hi"


async def in_a_tool(site, tag):
    run_id = f"tool-{tag}"
    site.tools.of(run_id).close()
    await site.start(run_id, calls((ONCE, "a")), "done")
    await testing.eventually_async(lambda: site.tools.of(run_id).waiting, "the tool is at work")
    yield
    site.tools.of(run_id).open()
    await site.ended(run_id)
    assert len(site.behind.tools.effects[run_id]) == 1


async def between_tools(site, tag):
    """Its checkpoint tells of a call that was made and one that was not."""
    run_id = f"between-{tag}"
    await site.waiting(run_id, calls((ONCE, "a")), calls((REPEATABLE, "b")), "done")
    site.models.of(run_id).open()
    site.tools.of(run_id).close()
    await testing.eventually_async(lambda: site.tools.of(run_id).waiting, "the tool is at work")
    yield
    site.tools.of(run_id).open()
    await site.ended(run_id)
    assert [effect.nonce for effect in site.behind.tools.effects[run_id]] == ["a", "b"]


async def delayed(site, tag):
    run_id = f"delayed-{tag}"
    await site.start(run_id, "hi", start_at=ahead(AHEAD_S))
    yield
    run = await site.ended(run_id)
    assert run.started_at.ToMilliseconds() >= run.start_at.ToMilliseconds()


READABLE = (streaming, queued, in_a_tool, between_tools, delayed)


async def asking(site, tag):
    run_id = f"asking-{tag}"
    await site.start(run_id, calls((ONCE, "a")), "done", agent="careful")
    (asked,) = await site.asked(run_id)
    yield run_id
    await site.second.client.decide(asked.approval_id, approve=APPROVE)
    yield
    await site.ended(run_id)
    assert len(site.behind.tools.effects[run_id]) == 1


async def delegating(site, tag):
    """A supervisor, parked while the run of another agent is at work."""
    run_id = f"lead-{tag}"
    child = f"{run_id}.1.0"
    site.models.of(child).close()
    await site.start(run_id, {"say": "", "calls": [["delegate_to_quick", {"task": script("one two three")}]]}, "done", agent="leading")
    await testing.eventually_async(lambda: site.models.of(child).waiting, "the other agent is at work")
    await parked(site, run_id)
    yield run_id
    site.models.of(child).open()
    assert (await site.second.client.wait(child)).output_text == "one two three"
    yield
    await site.ended(run_id)
    log = types(await site.second.client.log(run_id))
    assert [log.count(kind) for kind in ("child_run_started", "child_run_finished")] == [1, 1]


async def pausing(site, tag):
    """A workflow, parked until its time comes."""
    run_id = f"flow-{tag}"
    await site.start(run_id, "go", agent="flowing")
    await parked(site, run_id)
    yield run_id
    yield
    assert (await site.ended(run_id)).output_text == "sent"
    assert [effect.nonce for effect in site.behind.tools.effects[run_id]] == ["a", "b"]


async def woken(site, tag):
    """At work again after it was parked, so that it is handed back and waits for an owner."""
    run_id = f"woken-{tag}"
    await site.start(run_id, calls((ONCE, "a")), TALK, agent="careful")
    (asked,) = await site.asked(run_id)
    site.models.of(run_id).close()
    await site.second.client.decide(asked.approval_id, approve=APPROVE)
    await testing.eventually_async(lambda: len(site.calls_of(run_id)) == 2, "it is at work again")
    yield run_id
    site.models.of(run_id).open()
    yield
    assert (await site.ended(run_id)).output_text == TALK
    assert len(site.behind.tools.effects[run_id]) == 1


async def cancelled(site, tag):
    """Its end is asked for while it waits for a person."""
    run_id = f"cancelled-{tag}"
    await site.start(run_id, calls((ONCE, "a")), "done", agent="careful")
    await site.asked(run_id)
    yield run_id
    await site.second.client.cancel(run_id)
    site.cancels[run_id] = int(time.time() * 1000)
    yield
    await site.ended(run_id, pb.RUN_STATUS_CANCELLED)
    assert not site.behind.tools.effects[run_id]


PARKED = (asking, delegating, pausing, woken, cancelled)


async def parked(site, run_id):
    async def waits():
        return (await site.second.client.get(run_id)).status == pb.RUN_STATUS_WAITING

    await testing.eventually_async(waits, f"{run_id} is parked")


async def to_segments(site, store, run_id):
    """A run whose log is no longer in the store."""
    await site.start(run_id, "hi")
    await site.ended(run_id)

    async def moved():
        return not await store.exists(f"t:{{acme/{site.threads[run_id]}}}:log")

    await testing.eventually_async(moved, f"the log of {run_id} has moved")


def record_of(site, run_id):
    """Key of a run's record."""
    return f"t:{{acme/{site.threads[run_id]}}}:run:{run_id}"


async def test_a_rolling_upgrade_and_a_rollback_lose_nothing(identities, behind, state_url, tmp_path):
    config = write_config(tmp_path / "config", AGENTS + MORE_AGENTS)
    kept = {"segments_dir": tmp_path / "segments", "segments_after_s": 0.5, "drain_grace_s": 1.5, "watch_heartbeat_s": 0.5}
    async with AsyncExitStack() as stack:
        older, newer = [
            await stack.enter_async_context(
                Replica(name, identities, behind, config, tmp_path, state_url, module=module, **kept).there(later=True)
            )
            for name, module in (("older", "services.orchestrator"), ("newer", "tests.system.next_version"))
        ]
        store = await stack.enter_async_context(aclosing(connect(state_url)))
        site = Fleet(behind, older, newer)

        # The upgrade.
        await site.enter(older)
        await to_segments(site, store, "told-up")
        rows = [row(site, "up") for row in (*READABLE, *PARKED)]
        await each(rows)
        await site.enter(newer)
        await asyncio.gather(*(site.start(f"both-{r.name}", calls((ONCE, "a")), "done", client=r.client) for r in (older, newer)))
        await older.leave()
        site.on_duty(newer)
        await each(rows)
        await each(rows)
        for replica in (older, newer):
            await site.ended(f"both-{replica.name}")

        # The rollback.
        await to_segments(site, store, "told-down")
        readable = [row(site, "down") for row in READABLE]
        foreign = [row(site, "down") for row in PARKED]
        # It is there, and takes nothing, so that a wait that begins now has `newer` to leave in it, and no start of a process.
        idle = older.proxy.hold(b"BZPOPMIN", late=False)
        await site.enter(older)
        await each(readable)
        left = await each(foreign)
        idle.release()
        await newer.leave()
        site.on_duty(older)
        before = {run_id: await store.hgetall(record_of(site, run_id)) for run_id in left}
        taken = [older.proxy.hold(b"run_write_v1", f":run:{run_id}\r".encode()) for run_id in left]
        await each(readable)
        for run_id in ("streaming-down", "tool-down", "between-down", "queued-down"):
            # What is new in the record is there when the run has ended at a version that knows nothing of it, and shown as it was written.
            record = await store.hgetall(record_of(site, run_id))
            assert (record[b"of_next"], orjson.loads(record[b"spec"])[next_version.NEWS]) == (b"kept", "kept")
            log = await older.client.log(run_id)
            assert {event.schema_version for event in log} <= {EVENT_SCHEMA, EVENT_SCHEMA + 1}
            assert log[0].schema_version == EVENT_SCHEMA + 1
        shown = await older.client.log("streaming-down")
        assert next(data_of(event) for event in shown if event.type == next_version.EVENT) == {next_version.NEWS: next_version.KEPT}

        # What it cannot read it is asked about, and looks at; it takes none, and what wakes them is kept for whoever can.
        assert set(left) == {"asking-down", "lead-down", "flow-down", "woken-down", "cancelled-down"}
        await each(foreign)
        await asleep_no_more(site, store, left)
        await looked_at(older, left)
        for run_id in left:
            record = await store.hgetall(record_of(site, run_id))
            was = before[run_id]
            assert int(record[b"schema_version"]) == SCHEMA_VERSION + 1
            assert orjson.loads(record[b"state"])[next_version.NEWS] == next_version.KEPT
            assert [record[name] for name in (b"epoch", b"attempt", b"state", b"status")] == [
                *(was[name] for name in (b"epoch", b"attempt", b"state")), b"queued",
            ]  # fmt: skip
        assert not any(held.caught.is_set() for held in taken)
        with pytest.raises(Internal, match="newer version") as caught:
            await older.client.log(thread_id=site.threads["told-down"])
        assert caught.value.reason == "SEGMENT_TOO_NEW"
        assert (await older.client.get("told-down")).output_text == "hi"

        # Forwards again.
        for held in taken:
            held.release()
        await site.enter(newer)
        site.on_duty(newer)
        await each(foreign)
        await older.leave()
        await site.judge()


async def asleep_no_more(site, store, run_ids):
    """Returns when all of these wait for an owner."""

    async def queued():
        return {await store.hget(record_of(site, run_id), "status") for run_id in run_ids} == {b"queued"}

    await testing.eventually_async(queued, "all are awake")


async def looked_at(replica, run_ids):
    """Returns when the sweeper of `replica` has looked at each of these twice, and so has done what follows from the first look."""
    for _ in range(2):
        looks = [replica.proxy.hold(b"run_inspect_v1", f":run:{run_id}\r".encode(), answer=True) for run_id in run_ids]
        for look in looks:
            await look.reached()
            look.release()
