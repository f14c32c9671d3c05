"""A state store whose memory is full, under runs of every kind: what was accepted goes on to its end, and everything new is refused.

Two orchestrators that keep audit records and tell a webhook, on a store of their own. Runs with tools, questions to people and other
agents are stopped on their way; then memory is full, people answer, and all of them end. What ended has given its slot back and
leaves for segments, which is what makes room again.
"""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2, webhooks_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from scripts.chaos import defects_of
from services.common import testing
from services.common.audit import AuditStream
from services.common.errors import Overloaded
from services.common.valkey import connect
from services.orchestrator.adapters.store_keys import thread_keys, waiting_keys
from services.orchestrator.records import RunRef
from services.orchestrator.testing.counting import ONCE, REPEATABLE, CountingTools, RunGates, calls, script, scripted
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.harness import write_config
from services.orchestrator.testing.receivers import receiver
from services.orchestrator.testing.replicas import Replica

pytestmark = [pytest.mark.system, pytest.mark.timeout(170)]
EACH = 4


def delegating(*steps):
    """A step that asks another agent to do these."""
    return {"say": "", "calls": [["delegate_to_quick", {"task": script(*steps)}]]}


MAIL = script(calls((ONCE, "a")), "sent")
KINDS = {
    "tools": ("quick", script(calls((REPEATABLE, "a"), (ONCE, "b")), calls((REPEATABLE, "c")), "done")),
    "asking": ("careful", MAIL),
    "child": ("lead", script(delegating(calls((ONCE, "a")), "sent"), "done")),
    "recall": ("helper", script(calls((REPEATABLE, "a")), "done")),
}
ASKED_BEFORE = [f"asked-{number}" for number in range(EACH)]
RUNS = [f"{kind}-{number}" for kind in KINDS for number in range(EACH)]
CHILDREN = [f"child-{number}.1.0" for number in range(EACH)]


class Full:
    """The orchestrators, what is behind them, and their store."""

    def __init__(self, replicas, behind, client):
        self.replicas, self.behind, self.client = replicas, behind, client
        self.one, self.two = (replica.client for replica in replicas)

    async def stopped_on_their_way(self):
        """Returns when all runs are at work and none goes on, but those that wait for people already."""
        for run_id in RUNS:
            self.behind.models.gate.of(run_id).close()
        for run_id in ASKED_BEFORE:
            await self.one.start(MAIL, agent="careful", run_id=run_id)
        for run_id in RUNS:
            agent, text = KINDS[run_id.partition("-")[0]]
            await self.one.start(text, agent=agent, run_id=run_id)
        for run_id in ASKED_BEFORE:
            await testing.eventually_async(lambda run_id=run_id: self.one.asked(run_id), f"{run_id} asks")
        gates = self.behind.models.gate
        await testing.eventually_async(lambda: all(gates.of(run_id).waiting for run_id in RUNS), "all runs are at work")

    def go_on(self):
        for run_id in RUNS:
            self.behind.models.gate.of(run_id).open()

    async def approved(self, run_id):
        """Returns when somebody has approved what the run asks."""
        (approval,) = await testing.eventually_async(lambda: self.two.asked(run_id), f"{run_id} asks")
        await self.two.decide(approval.approval_id, approve=approvals_pb2.Approve())

    async def losses(self, run):
        key = thread_keys(RunRef("acme", run.thread_id, run.run_id))[2]
        return [int(value or 0) for value in await self.client.hmget(key, ["crashes", "losses"])]


@pytest.fixture
async def full(identities, tmp_path):
    config = write_config(tmp_path / "config")
    fields = {
        "audit_days": 1, "segments_dir": tmp_path / "segments", "segments_after_s": 1.0, "webhook_allow_private": True,
        "log_level": "WARNING",
    }  # fmt: skip
    async with AsyncExitStack() as stack:
        url, _ = stack.enter_context(testing.valkey_server("state"))
        client = connect(url, timeout_s=5.0)
        stack.push_async_callback(client.aclose)
        behind = await stack.enter_async_context(fakes(identities, made=Fakes(tools=CountingTools())))
        behind.models.gate, behind.models.reply, behind.models.hold_after = RunGates(), scripted, 0
        replicas = [Replica(name, identities, behind, config, tmp_path, url, **fields) for name in ("one", "two")]
        for replica in replicas:
            await stack.enter_async_context(replica.there())
        yield Full(replicas, behind, client)


async def test_what_was_accepted_ends_and_makes_room_while_nothing_new_is_taken(full):
    async with receiver() as hook:
        with full.one.calling():
            request = webhooks_pb2.CreateWebhookRequest(url=hook.url(), event_types=["run.finished"])
            await full.one.webhooks.CreateWebhook(request)
        # Every function is there since it was called first.
        before = await full.one.start(script("hi"))
        await full.one.wait(before.run_id)
        await testing.eventually_async(lambda: hook.got, "the webhook is told")
        await full.stopped_on_their_way()

        await full.client.config_set("maxmemory", "1mb")
        await refused(full)
        full.go_on()
        asking = [run_id for run_id in RUNS if run_id.startswith("asking")]
        await asyncio.gather(*(full.approved(run_id) for run_id in [*ASKED_BEFORE, *asking]))
        async with asyncio.timeout(testing.PATIENCE_S):
            runs = await asyncio.gather(*(full.two.wait(run_id) for run_id in [*RUNS, *ASKED_BEFORE]))
        runs += [await full.two.get(run_id) for run_id in CHILDREN]
        assert {run.run_id: run.status for run in runs if run.status != pb.RUN_STATUS_SUCCEEDED} == {}
        assert {run.run_id: lost for run in runs if any(lost := await full.losses(run))} == {}
        for run_id in [*RUNS, *ASKED_BEFORE, *CHILDREN]:
            assert all(seen == 1 for seen in effects(full, run_id).values()), run_id

        every = {run.run_id for run in runs}
        await testing.eventually_async(lambda: slots_are_free(full), "every slot is given back")
        stream = AuditStream(full.client, timedelta(days=1))
        records = {entry.record_id.removeprefix("run/") for entry in await stream.read("acme", most=1000)}
        assert every <= records
        await testing.eventually_async(lambda: every <= {got.data["run_id"] for got in hook.got}, "the webhook is told of every end")
        await testing.eventually_async(lambda: moved(full, runs), "the logs of ended runs are in segments")
        assert [event.type for event in await full.two.log("tools-0")][-1] == "run_finished"
        await refused(full)
        await full.client.config_set("maxmemory", 0)
        after = await full.one.start(script("hi"))
        assert (await full.two.wait(after.run_id)).status == pb.RUN_STATUS_SUCCEEDED
    for replica in full.replicas:
        assert not (found := defects_of(replica.process.log)), found


async def refused(full):
    for call in (full.one.start(script("hi")), full.two.start(script("hi"), thread_id="new")):
        with pytest.raises(Overloaded) as caught:
            await call
        assert caught.value.reason == "STORE_UNAVAILABLE"
    with full.one.calling(), pytest.raises(Overloaded):
        await full.one.threads.CreateThread(pb.CreateThreadRequest())


def effects(full, run_id):
    return Counter(effect.nonce for effect in full.behind.tools.effects[run_id])


async def slots_are_free(full):
    return not await full.client.exists(waiting_keys("acme")[0])


async def moved(full, runs):
    logs = [thread_keys(RunRef("acme", run.thread_id, run.run_id))[1] for run in runs]
    return not any([await full.client.xlen(log) for log in logs])
