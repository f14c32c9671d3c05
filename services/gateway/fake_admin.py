"""Schedules, webhooks, quota, erasures and changes of whole threads of the fake orchestrator, as much of them as a projection shows."""

import itertools
from functools import partial
from typing import Any, TypeVar

from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from bulkhead.orchestrator.v1 import admin_pb2, admin_pb2_grpc, schedules_pb2, schedules_pb2_grpc, webhooks_pb2, webhooks_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc
from google.protobuf import field_mask_pb2

from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, Overloaded
from services.common.rpc.context import principal
from services.gateway.fake_control import FakeDesk, FakeFeedback, page

T = TypeVar("T")
LEAST_INTERVAL_S = 60


class FakeRecords:
    """What is kept for every tenant. `asked` holds every request that changes something; `meddlers` is how many changes of
    schedules somebody else comes before; without `masks` it knows no update_mask, as the version before."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.schedules: dict[tuple[str, str, str], schedules_pb2.Schedule] = {}
        self.ticks: list[schedules_pb2.ScheduleTick] = []
        self.webhooks: dict[tuple[str, str], webhooks_pb2.Webhook] = {}
        self.deliveries: dict[tuple[str, str], webhooks_pb2.Delivery] = {}
        self.erasures: dict[tuple[str, str], tuple[str, admin_pb2.Erasure]] = {}
        self.quota = admin_pb2.GetQuotaResponse(tier="enterprise")
        self.budget: llm_pb2.GetBudgetResponse | None = llm_pb2.GetBudgetResponse()
        self.deleted: set[tuple[str, str]] = set()
        self.meddlers = 0
        self.masks = True
        self._numbers = itertools.count(1)
        self._answers: dict[tuple[str, str, str], tuple[bytes, Any]] = {}

    def make_id(self, prefix: str) -> str:
        """A new id."""
        return f"{prefix}_{next(self._numbers)}"

    def once(self, request: Any) -> Any:
        """The answer that the same request had before under its key, None at the first time."""
        self.asked.append(request)
        known = self._answers.get(self._name(request)) if request.idempotency_key else None
        if known is None:
            return None
        if known[0] != _said(request):
            raise IdempotencyMismatch("the idempotency key was used before with another body")
        return known[1]

    def keep(self, request: Any, answer: T) -> T:
        """Answers the same to the same key from now on."""
        if request.idempotency_key:
            self._answers[self._name(request)] = (_said(request), answer)
        return answer

    def _name(self, request: Any) -> tuple[str, str, str]:
        return principal().tenant, type(request).__name__, request.idempotency_key


def _said(request: Any) -> bytes:
    """What a request asks for; of a change, what it names."""
    if getattr(request, "update_mask", None) and request.update_mask.paths:
        definition = type(request.definition)()
        request.update_mask.MergeMessage(request.definition, definition, True, True)
        whole, request = request, type(request)()
        request.CopyFrom(whole)
        request.definition.CopyFrom(definition)
    said: bytes = request.SerializeToString(deterministic=True)
    return said


class FakeSchedules(schedules_pb2_grpc.ScheduleServiceServicer):
    """Schedules, which never fire; `FakeRecords.ticks` is the log of each."""

    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    def _one(self, schedule_id: str) -> schedules_pb2.Schedule:
        found = self._records.schedules.get((principal().tenant, principal().user, schedule_id))
        if found is None:
            raise NotFound("there is no such schedule", reason="SCHEDULE_NOT_FOUND")
        return found

    def _check(self, definition: schedules_pb2.ScheduleDefinition) -> None:
        timing = definition.timing
        if timing.cron == "0 0 31 2 *":
            raise InvalidInput("there is no tick between its start and its end", reason="SCHEDULE_NEVER_FIRES")
        if timing.WhichOneof("recurrence") == "interval" and timing.interval.seconds < LEAST_INTERVAL_S:
            raise InvalidInput.field("timing.interval", f"must be at least {LEAST_INTERVAL_S} s")

    async def CreateSchedule(self, request, context):
        """As the real one."""
        if known := self._records.once(request):
            return known
        self._check(request.definition)
        made = schedules_pb2.Schedule(
            schedule_id=self._records.make_id("sch"), definition=request.definition, state=schedules_pb2.SCHEDULE_STATE_ACTIVE, version=1
        )
        made.created_at.GetCurrentTime()
        self._records.schedules[(principal().tenant, principal().user, made.schedule_id)] = made
        return self._records.keep(request, schedules_pb2.CreateScheduleResponse(schedule=made))

    async def GetSchedule(self, request, context):
        """As the real one."""
        return schedules_pb2.GetScheduleResponse(schedule=self._one(request.schedule_id))

    async def ListSchedules(self, request, context):
        """As the real one."""
        mine = [s for (*who, _), s in self._records.schedules.items() if who == [principal().tenant, principal().user]]
        some, token = page(list(reversed(mine)), request)
        return schedules_pb2.ListSchedulesResponse(schedules=some, next_page_token=token)

    async def UpdateSchedule(self, request, context):
        """As the real one."""
        if not self._records.masks:
            request.update_mask.CopyFrom(field_mask_pb2.FieldMask(paths=request.definition.DESCRIPTOR.fields_by_name))
        if known := self._records.once(request):
            return known
        found = self._one(request.schedule_id)
        if self._records.meddlers:
            self._records.meddlers -= 1
            found.version += 1
            found.definition.name = f"of another {found.version}"
        if request.expected_version not in (0, found.version):
            raise Conflict("the schedule was changed by somebody else", reason="SCHEDULE_CHANGED")
        definition = type(found.definition)()
        definition.CopyFrom(found.definition)
        request.update_mask.MergeMessage(request.definition, definition, True, True)
        self._check(definition)
        found.definition.CopyFrom(definition)
        found.version += 1
        found.updated_at.GetCurrentTime()
        return self._records.keep(request, schedules_pb2.UpdateScheduleResponse(schedule=found))

    def _turn(self, request: Any, state: schedules_pb2.ScheduleState) -> schedules_pb2.Schedule:
        self._records.asked.append(request)
        found = self._one(request.schedule_id)
        if found.state == schedules_pb2.SCHEDULE_STATE_ENDED:
            raise Conflict("the schedule has ended", reason="SCHEDULE_ENDED")
        found.state = state
        return found

    async def PauseSchedule(self, request, context):
        """As the real one."""
        return schedules_pb2.PauseScheduleResponse(schedule=self._turn(request, schedules_pb2.SCHEDULE_STATE_PAUSED))

    async def ResumeSchedule(self, request, context):
        """As the real one."""
        return schedules_pb2.ResumeScheduleResponse(schedule=self._turn(request, schedules_pb2.SCHEDULE_STATE_ACTIVE))

    async def DeleteSchedule(self, request, context):
        """As the real one."""
        if known := self._records.once(request):
            return known
        self._one(request.schedule_id)
        del self._records.schedules[(principal().tenant, principal().user, request.schedule_id)]
        return self._records.keep(request, schedules_pb2.DeleteScheduleResponse())

    async def ListScheduleTicks(self, request, context):
        """As the real one."""
        self._one(request.schedule_id)
        some, token = page(self._records.ticks, request)
        return schedules_pb2.ListScheduleTicksResponse(ticks=some, next_page_token=token)


class FakeWebhooks(webhooks_pb2_grpc.WebhookServiceServicer):
    """Endpoints, to which nothing goes; `FakeRecords.deliveries` is the log."""

    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    def _one(self, webhook_id: str) -> webhooks_pb2.Webhook:
        found = self._records.webhooks.get((principal().tenant, webhook_id))
        if found is None:
            raise NotFound("there is no such webhook", reason="WEBHOOK_NOT_FOUND")
        return found

    async def CreateWebhook(self, request, context):
        """As the real one."""
        if known := self._records.once(request):
            return known
        if not request.url.startswith("https://"):
            raise InvalidInput.field("url", "must be an https URL")
        made = webhooks_pb2.Webhook(
            webhook_id=self._records.make_id("whk"), url=request.url, event_types=request.event_types, description=request.description
        )
        made.created_at.GetCurrentTime()
        self._records.webhooks[(principal().tenant, made.webhook_id)] = made
        return self._records.keep(request, webhooks_pb2.CreateWebhookResponse(webhook=made, secret=self._records.make_id("whsec")))

    async def ListWebhooks(self, request, context):
        """As the real one."""
        return webhooks_pb2.ListWebhooksResponse(webhooks=[w for (of, _), w in self._records.webhooks.items() if of == principal().tenant])

    async def GetWebhook(self, request, context):
        """As the real one."""
        return webhooks_pb2.GetWebhookResponse(webhook=self._one(request.webhook_id))

    async def DeleteWebhook(self, request, context):
        """As the real one."""
        if known := self._records.once(request):
            return known
        self._one(request.webhook_id)
        del self._records.webhooks[(principal().tenant, request.webhook_id)]
        return self._records.keep(request, webhooks_pb2.DeleteWebhookResponse())

    async def RotateWebhookSecret(self, request, context):
        """As the real one."""
        if known := self._records.once(request):
            return known
        found = self._one(request.webhook_id)
        found.earlier_secret_until.GetCurrentTime()
        return self._records.keep(request, webhooks_pb2.RotateWebhookSecretResponse(webhook=found, secret=self._records.make_id("whsec")))

    async def ListDeliveries(self, request, context):
        """As the real one."""
        self._one(request.webhook_id)
        mine = [
            d for (of, _), d in self._records.deliveries.items() if (of, d.webhook_id) == (principal().tenant, request.webhook_id)
        ]  # fmt: skip
        some, token = page(list(reversed(mine)), request)
        return webhooks_pb2.ListDeliveriesResponse(deliveries=some, next_page_token=token)

    async def Redeliver(self, request, context):
        """As the real one."""
        if known := self._records.once(request):
            return known
        found = self._records.deliveries.get((principal().tenant, request.delivery_id))
        if found is None:
            raise NotFound("there is no such delivery", reason="DELIVERY_NOT_FOUND")
        if self._one(found.webhook_id).disabled_reason:
            raise Conflict("the webhook is out of service", reason="WEBHOOK_DISABLED")
        found.status = webhooks_pb2.DELIVERY_STATUS_PENDING
        found.next_attempt_at.GetCurrentTime()
        return self._records.keep(request, webhooks_pb2.RedeliverResponse(delivery=found))


class FakeAdmin(FakeFeedback):
    """Quota, erasures that are never done, and the feedback of a desk."""

    def __init__(self, desk: FakeDesk, records: FakeRecords) -> None:
        super().__init__(desk)
        self._records = records

    async def GetQuota(self, request, context):
        """As the real one."""
        return self._records.quota

    async def ForgetSubject(self, request, context):
        """As the real one."""
        if principal().missing(["admin"]):
            principal().require("erasures:write" if request.user == principal().user else "admin")
        if known := self._records.once(request):
            return known
        made = admin_pb2.Erasure(erasure_id=self._records.make_id("era"), state=admin_pb2.ERASURE_STATE_PENDING, subject_digest="d1")
        made.created_at.GetCurrentTime()
        made.parts.add(service="memory", state=admin_pb2.ERASURE_STATE_PENDING, attempts=1, last_reason="UNREACHABLE")
        done = made.parts.add(service="orchestrator", state=admin_pb2.ERASURE_STATE_DONE, attempts=1)
        done.done_at.GetCurrentTime()
        done.erased.add(kind="threads", count=2)
        self._records.erasures[(principal().tenant, made.erasure_id)] = (request.user, made)
        return self._records.keep(request, admin_pb2.ForgetSubjectResponse(erasure=made))

    async def GetErasure(self, request, context):
        """As the real one."""
        user, found = self._records.erasures.get((principal().tenant, request.erasure_id), ("", None))
        if found is None or (user != principal().user and principal().missing(["admin"])):
            raise NotFound("there is no such erasure", reason="ERASURE_NOT_FOUND")
        return admin_pb2.GetErasureResponse(erasure=found)


class FakeBudgets(llm_pb2_grpc.LlmServiceServicer):
    """The part of the LLM gateway that tells what limits a caller."""

    def __init__(self, records: FakeRecords) -> None:
        self._records = records

    async def GetBudget(self, request, context):
        """As the real one; without an answer its store is away."""
        if self._records.budget is None:
            raise Overloaded("the state store is away", reason="STORE_UNAVAILABLE")
        return self._records.budget


class FakeThreadChanges(rpc.ThreadServiceServicer):
    """The part of ThreadService that changes whole threads. `log` is the FakeLog."""

    log: Any

    async def ForkThread(self, request, context):
        """As the real one, for copies and for the beginning; a run that goes on is a new one of the assistant."""
        if known := self.log.records.once(request):
            return known
        parent = self.log.thread(request.thread_id)
        if request.at.seq > parent.last_seq:
            raise InvalidInput("seq lies beyond the last event", reason="SEQ_FROM_THE_FUTURE")
        tenant = principal().tenant
        new = self.log.make_thread(tenant, request.new_thread_id or self.log.records.make_id("th"), request.metadata)
        new.parent_thread_id = parent.thread_id
        new.forked_at_seq = 0 if request.at.beginning else request.at.seq or parent.last_seq
        if request.HasField("ttl"):
            new.expires_at.FromSeconds(new.created_at.seconds + request.ttl.seconds)
        run = None
        if request.continue_run:
            principal().require("runs:write")
            run = pb.Run(run_id=self.log.records.make_id("run"), thread_id=new.thread_id, agent="assistant", status=pb.RUN_STATUS_QUEUED)
        return self.log.records.keep(request, pb.ForkThreadResponse(thread=new, run=run))

    async def RollbackThread(self, request, context):
        """As the real one, without what it does to runs."""
        if known := self.log.records.once(request):
            return known
        thread = self.log.thread(request.thread_id)
        if request.to.run_id:
            raise NotFound("the thread has no such run", reason="RUN_NOT_FOUND")
        event = self.log.append(principal().tenant, thread.thread_id, "", "thread_rolled_back", {"to_seq": request.to.seq})
        return self.log.records.keep(request, pb.RollbackThreadResponse(thread=thread, seq=event.seq))

    async def DeleteThread(self, request, context):
        """As the real one. A thread whose id says that it is slow is not gone at once."""
        self.log.records.asked.append(request)
        name = (principal().tenant, request.thread_id)
        if name not in self.log.records.deleted:
            self.log.thread(request.thread_id)
            del self.log.threads[name]
            self.log.records.deleted.add(name)
        return pb.DeleteThreadResponse(completed="slow" not in request.thread_id)


def record_adders(desk: FakeDesk, records: FakeRecords) -> list:
    """Add functions of the services over what is recorded, and of the one that they share with a desk."""
    return [
        partial(admin_pb2_grpc.add_AdminServiceServicer_to_server, FakeAdmin(desk, records)),
        partial(schedules_pb2_grpc.add_ScheduleServiceServicer_to_server, FakeSchedules(records)),
        partial(webhooks_pb2_grpc.add_WebhookServiceServicer_to_server, FakeWebhooks(records)),
    ]


def budget_adders(records: FakeRecords) -> list:
    """Add functions of an LLM gateway."""
    return [partial(llm_pb2_grpc.add_LlmServiceServicer_to_server, FakeBudgets(records))]
