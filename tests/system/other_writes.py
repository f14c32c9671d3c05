"""Writes of other kinds than those of the load, made while the store is struck.

What was acknowledged is there afterwards, once and as it was asked for; what was refused is absent or whole. Each is asked for under a key
of its own, and where it was refused now and then again, at any of the orchestrators: an answer may not say that it was done before where
only a primary knows so that is about to be replaced.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from bulkhead.orchestrator.v1 import admin_pb2, schedules_pb2, webhooks_pb2
from bulkhead.orchestrator.v1 import admin_pb2_grpc as admin_rpc
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals
from bulkhead.orchestrator.v1 import approvals_pb2_grpc as approvals_rpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc
from bulkhead.orchestrator.v1 import schedules_pb2_grpc as schedules_rpc
from bulkhead.orchestrator.v1 import webhooks_pb2_grpc as webhooks_rpc

from services.common import testing
from services.common.errors import BulkheadError, NotFound
from services.orchestrator.testing.counting import ONCE, calls, script
from services.orchestrator.testing.harness import LOST, data_of

# Of a tenant of their own, so that what it uses can be counted.
TENANT = "others"
CALL_S = 4.0
# So many of each kind at most; fewer webhooks, of which a tenant may have twenty, and no more feedback than a run takes.
MOST, MOST_WEBHOOKS = 80, 16
AHEAD_S = 3_600
# A call that was cut off holds its key for half a minute.
HELD = ("IDEMPOTENCY_IN_FLIGHT", "CONFLICT", "THREAD_CHANGING")
ENDED = (pb.RUN_STATUS_SUCCEEDED, pb.RUN_STATUS_FAILED, pb.RUN_STATUS_CANCELLED)


@dataclass
class Thing:
    """Something that was asked for: whether it was acknowledged that it is there (`made`), that it was changed, and that it was deleted;
    None where that was asked for and refused."""

    name: str
    made: bool | None = None
    changed: bool | None = False
    gone: bool | None = False
    told: dict[str, Any] = field(default_factory=dict)

    def fits(self, there: int) -> bool:
        """Whether it may be there so many times."""
        if there not in (0, 1):
            return False
        return not (there and self.gone) and not (not there and self.made and self.gone is False)


class OtherWrites:
    """Whoever makes them, one thing of each kind after the other."""

    def __init__(self, replicas, identities, tools):
        self._replicas, self._identities, self._tools = replicas, identities, tools
        self._principal = testing.principal_of(TENANT, "bea")
        self._open, self._stubs = AsyncExitStack(), []
        self._asking, self._tasks = True, []
        self.kinds: dict[str, list[Thing]] = {}
        self.told = Counter()

    async def begin(self):
        """Returns when all kinds are being written."""
        for replica in self._replicas:
            address = f"127.0.0.1:{replica.settings.grpc_port}"
            channel = (await self._open.enter_async_context(testing.dialer("gateway", {"orchestrator": address}))).channel("orchestrator")
            self._stubs.append(
                SimpleNamespace(
                    threads=rpc.ThreadServiceStub(channel), runs=rpc.RunServiceStub(channel), admin=admin_rpc.AdminServiceStub(channel),
                    approvals=approvals_rpc.ApprovalServiceStub(channel), schedules=schedules_rpc.ScheduleServiceStub(channel),
                    webhooks=webhooks_rpc.WebhookServiceStub(channel),
                )
            )  # fmt: skip
        self._judged_run = await self._run("quick", script("judge me"))
        await self._ended(self._judged_run)
        for kind in (self._thread, self._schedule, self._webhook, self._feedback, self._approval, self._steer, self._delayed):
            self._tasks.append(asyncio.create_task(self._keep(kind)))

    async def _keep(self, kind: Callable[[Thing], Awaitable[None]]):
        name = kind.__name__.removeprefix("_")
        things = self.kinds[name] = []
        most = MOST_WEBHOOKS if name == "webhook" else MOST
        while self._asking and len(things) < most:
            things.append(Thing(f"{name}-{len(things)}"))
            await kind(things[-1])
            # Few enough that those of the end of a row are made as well.
            await asyncio.sleep(2.0 if name == "webhook" else random.uniform(0.0, 0.4))

    async def end(self):
        """Ends what still goes on."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._open.aclose()

    # --- asking ---

    def _calling(self, timeout_s=CALL_S):
        return testing.calling(self._identities, self._principal, timeout_s=timeout_s)

    async def _said(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """The answer of one who was asked once, or, where that was refused, a few times; None where all refused."""
        for _ in range(random.choice((1, 2, 4))):
            try:
                with self._calling():
                    return await ask(random.choice(self._stubs))
            except BulkheadError as error:
                # Whoever asks a primary that was replaced may be told that there is no such thing; it is there when all is judged.
                if error.code.name not in LOST and error.reason not in HELD and not isinstance(error, NotFound):
                    raise
            self.told["refused"] += 1
            await asyncio.sleep(random.uniform(0.0, 0.3))
        return None

    async def _anywhere(self, ask: Callable[[Any], Awaitable[Any]]) -> Any:
        """The answer of the first that gives one, however long that takes."""
        while True:
            for stubs in random.sample(self._stubs, len(self._stubs)):
                try:
                    with self._calling():
                        return await ask(stubs)
                except BulkheadError as error:
                    if error.code.name not in LOST and error.reason not in HELD:
                        raise
            await asyncio.sleep(0.1)

    async def _run(self, agent, text, run_id=""):
        """A run that is accepted, by its id."""
        request = pb.CreateRunRequest(agent=agent, run_id=run_id, input=[pb.InputMessage(role="user", text=text)], idempotency_key=run_id)
        return (await self._anywhere(lambda at: at.runs.CreateRun(request))).run.run_id

    async def _get(self, run_id):
        return (await self._anywhere(lambda at: at.runs.GetRun(pb.GetRunRequest(run_id=run_id)))).run

    async def _ended(self, run_id):
        async with asyncio.timeout(testing.PATIENCE_S):
            while (run := await self._get(run_id)).status not in ENDED:
                await asyncio.sleep(0.1)
        return run

    # --- what is written ---

    async def _thread(self, thing):
        request = pb.CreateThreadRequest(thread_id=thing.name, metadata={"of": thing.name})
        thing.made = await self._said(lambda at: at.threads.CreateThread(request)) is not None or None
        if thing.made and random.random() < 0.4:
            await self._gone(thing, lambda at: at.threads.DeleteThread(pb.DeleteThreadRequest(thread_id=thing.name)))

    async def _gone(self, thing, ask):
        thing.gone = None
        thing.gone = await self._said(ask) is not None or None

    async def _schedule(self, thing):
        timing = schedules_pb2.ScheduleTiming()
        timing.interval.FromSeconds(AHEAD_S)
        definition = schedules_pb2.ScheduleDefinition(
            name=thing.name, timing=timing, agent="quick", input=[pb.InputMessage(role="user", text=script("tick"))],
            thread_policy=schedules_pb2.THREAD_POLICY_NEW, overlap_policy=schedules_pb2.OVERLAP_POLICY_SKIP,
            catch_up_policy=schedules_pb2.CATCH_UP_POLICY_NONE, metadata={"as": "made"},
        )  # fmt: skip
        make = schedules_pb2.CreateScheduleRequest(definition=definition, idempotency_key=f"make-{thing.name}")
        answer = await self._said(lambda at: at.schedules.CreateSchedule(make))
        thing.made = answer is not None or None
        if answer is None:
            return
        name = answer.schedule.schedule_id
        definition.metadata["as"] = "changed"
        change = schedules_pb2.UpdateScheduleRequest(schedule_id=name, definition=definition, idempotency_key=f"change-{thing.name}")
        thing.changed = None
        thing.changed = await self._said(lambda at: at.schedules.UpdateSchedule(change)) is not None or None
        if random.random() < 0.4:
            delete = schedules_pb2.DeleteScheduleRequest(schedule_id=name, idempotency_key=f"delete-{thing.name}")
            await self._gone(thing, lambda at: at.schedules.DeleteSchedule(delete))

    async def _webhook(self, thing):
        make = webhooks_pb2.CreateWebhookRequest(
            url="https://127.0.0.1:1/never", event_types=["run.handed_off"], description=thing.name, idempotency_key=thing.name
        )
        answer = await self._said(lambda at: at.webhooks.CreateWebhook(make))
        thing.made = answer is not None or None
        if thing.made and random.random() < 0.5:
            delete = webhooks_pb2.DeleteWebhookRequest(webhook_id=answer.webhook.webhook_id, idempotency_key=thing.name)
            await self._gone(thing, lambda at: at.webhooks.DeleteWebhook(delete))

    async def _feedback(self, thing):
        request = pb.RecordFeedbackRequest(run_id=self._judged_run, idempotency_key=thing.name, rating=3, text=thing.name)
        thing.made = await self._said(lambda at: at.runs.RecordFeedback(request)) is not None or None

    async def _approval(self, thing):
        thing.told["run"] = run_id = await self._run("careful", script(calls((ONCE, thing.name)), "done"), thing.name)
        wanted = approvals.ListApprovalsRequest(run_id=run_id, state=approvals.APPROVAL_STATE_OPEN)
        while not (found := (await self._anywhere(lambda at: at.approvals.ListApprovals(wanted))).approvals):
            await asyncio.sleep(0.1)
        decision = approvals.DecideApprovalRequest(approval_id=found[0].approval_id, idempotency_key=thing.name)
        thing.told["decision"] = decision
        if random.random() < 0.5:
            decision.approve.SetInParent()
        else:
            decision.reject.SetInParent()
        thing.made = await self._said(lambda at: at.approvals.DecideApproval(decision)) is not None or None

    async def _steer(self, thing):
        steps = [calls((ONCE, f"{thing.name}.{i}")) for i in range(3)]
        thing.told["run"] = run_id = await self._run("quick", script(*steps, "done"), thing.name)
        request = pb.SteerRunRequest(run_id=run_id, text=script(f"heard {thing.name}"), idempotency_key=thing.name)
        thing.made = None
        try:
            answer = await self._said(lambda at: at.runs.SteerRun(request))
        except BulkheadError as error:
            # It was quicker than its user.
            if error.reason != "RUN_ENDED":
                raise
        else:
            thing.made, thing.told["number"] = answer is not None or None, answer.number if answer else 0

    async def _delayed(self, thing):
        request = pb.CreateRunRequest(
            agent="quick", run_id=thing.name, idempotency_key=thing.name, input=[pb.InputMessage(role="user", text=script("later"))]
        )
        request.start_at.FromSeconds(int(time.time()) + AHEAD_S)
        thing.made = await self._said(lambda at: at.runs.CreateRun(request)) is not None or None
        if thing.made and random.random() < 0.4:
            cancel = pb.CancelRunRequest(run_id=thing.name)
            thing.gone = None
            thing.gone = await self._said(lambda at: at.runs.CancelRun(cancel)) is not None or None

    # --- what became of it ---

    async def judged(self):
        """Everything that was acknowledged is there. Raises AssertionError."""
        self._asking = False
        async with asyncio.timeout(2 * testing.PATIENCE_S):
            await asyncio.gather(*self._tasks)
        made = {name: sum(bool(thing.made) for thing in things) for name, things in self.kinds.items()}
        print("acknowledged beside runs:", made, dict(self.told))
        assert all(made.values()), made
        wrong = []
        for name, things in self.kinds.items():
            wrong += [f"{thing}: {found}" for thing, found in await getattr(self, f"_judge_{name}")(things)]
        assert not wrong, "\n".join(wrong)

    async def _judge_thread(self, things):
        listed, token = Counter(), ""
        while True:
            request = pb.ListThreadsRequest(page_size=100, page_token=token)
            answer = await self._anywhere(lambda at, request=request: at.threads.ListThreads(request))
            listed.update(thread.thread_id for thread in answer.threads)
            if not (token := answer.next_page_token):
                break
        wrong = []
        for thing in things:
            try:
                request = pb.GetThreadRequest(thread_id=thing.name)
                found = (await self._anywhere(lambda at, request=request: at.threads.GetThread(request))).thread
            except NotFound:
                found = None
            there = int(found is not None)
            if not thing.fits(there) or listed[thing.name] != there or (found and dict(found.metadata) != {"of": thing.name}):
                wrong.append((thing, (found, listed[thing.name])))
        return wrong

    async def _judge_schedule(self, things):
        found, token = [], ""
        while True:
            request = schedules_pb2.ListSchedulesRequest(page_size=100, page_token=token)
            answer = await self._anywhere(lambda at, request=request: at.schedules.ListSchedules(request))
            found += answer.schedules
            if not (token := answer.next_page_token):
                break
        wrong = []
        for thing in things:
            there = [schedule for schedule in found if schedule.definition.name == thing.name]
            fitting = {True: {"changed"}, False: {"made"}, None: {"made", "changed"}}[thing.changed]
            if not thing.fits(len(there)) or any(one.definition.metadata["as"] not in fitting for one in there):
                wrong.append((thing, there))
        return wrong

    async def _judge_webhook(self, things):
        found = (await self._anywhere(lambda at: at.webhooks.ListWebhooks(webhooks_pb2.ListWebhooksRequest()))).webhooks
        there = {thing.name: [one for one in found if one.description == thing.name] for thing in things}
        return [(thing, there[thing.name]) for thing in things if not thing.fits(len(there[thing.name]))]

    async def _judge_feedback(self, things):
        request = admin_pb2.ListFeedbackRequest(run_id=self._judged_run, page_size=100)
        found = (await self._anywhere(lambda at: at.admin.ListFeedback(request))).feedback
        there = {thing.name: [one for one in found if one.text == thing.name] for thing in things}
        return [
            (thing, there[thing.name]) for thing in things
            if not thing.fits(len(there[thing.name])) or any(one.rating != 3 for one in there[thing.name])
        ]  # fmt: skip

    async def _judge_approval(self, things):
        wrong = []
        for thing in things:
            decision = thing.told["decision"]
            approved = decision.HasField("approve")
            get = approvals.GetApprovalRequest(approval_id=decision.approval_id)
            state = (await self._anywhere(lambda at, get=get: at.approvals.GetApproval(get))).approval.state
            wanted = approvals.APPROVAL_STATE_APPROVED if approved else approvals.APPROVAL_STATE_REJECTED
            if state != wanted and (thing.made or state != approvals.APPROVAL_STATE_OPEN):
                wrong.append((thing, approvals.ApprovalState.Name(state)))
                continue
            # Sent once more, whatever became of it before: its run ends, and what was approved is done once.
            await self._anywhere(lambda at, decision=decision: at.approvals.DecideApproval(decision))
            run, done = await self._ended(thing.told["run"]), self._tools.effects.get(thing.told["run"], ())
            if run.status != pb.RUN_STATUS_SUCCEEDED or len(done) != int(approved):
                wrong.append((thing, (run.status, done)))
        return wrong

    async def _judge_steer(self, things):
        wrong = []
        for thing in things:
            run = await self._ended(thing.told["run"])
            log = await self._anywhere(lambda at, run=run: _log(at, run.thread_id))
            told = {
                type_: [data_of(event)["number"] for event in log if event.type == type_]
                for type_ in ("steer_received", "steer_applied", "steer_dropped")
            }
            received = told["steer_received"]
            same = sorted(told["steer_applied"] + told["steer_dropped"]) == received
            if not same or not thing.fits(len(received)) or (thing.made and received != [thing.told["number"]]):
                wrong.append((thing, told))
        return wrong

    async def _judge_delayed(self, things):
        waiting, wrong = 0, []
        for thing in things:
            try:
                status = (await self._get(thing.name)).status
            except NotFound:
                status = 0
            waiting += status == pb.RUN_STATUS_QUEUED
            cancelled = status == pb.RUN_STATUS_CANCELLED
            if (thing.made and not status) or (thing.gone and not cancelled) or (cancelled and thing.gone is False):
                wrong.append((thing, status))

        async def used():
            quota = await self._anywhere(lambda at: at.admin.GetQuota(admin_pb2.GetQuotaRequest()))
            return quota.concurrent_runs.used, quota.queued_runs.used, quota.delayed_runs.used

        async def settled():
            return await used() == (0, 0, waiting)

        # What was reserved for a run that was never written is given back after a while.
        await testing.eventually_async(settled, f"the quota counts {waiting} delayed runs and no other", every_s=0.2)
        return wrong


async def _log(at, thread_id):
    stream = at.runs.StreamEvents(pb.StreamEventsRequest(thread_id=thread_id, replay_only=True))
    return [event async for item in stream for event in item.batch.events]
