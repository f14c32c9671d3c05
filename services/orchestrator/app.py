"""Composition root: every dependency of the orchestrator is made and wired here."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial

import structlog
from bulkhead.orchestrator.v1 import admin_pb2_grpc as admin_rpc
from bulkhead.orchestrator.v1 import approvals_pb2_grpc as approvals_rpc
from bulkhead.orchestrator.v1 import blobs_pb2_grpc as blobs_rpc
from bulkhead.orchestrator.v1 import hooks_pb2_grpc as hooks_rpc
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc as rpc
from bulkhead.orchestrator.v1 import schedules_pb2_grpc as schedules_rpc
from bulkhead.orchestrator.v1 import webhooks_pb2_grpc as webhooks_rpc

from services.common.audit import AuditStream
from services.common.config import ConfigFile
from services.common.envelope import opened_envelope
from services.common.errors import Overloaded
from services.common.idempotency import IdempotencyStore
from services.common.identity import Minter, Verifier
from services.common.limits import TokenBuckets, parse_policies
from services.common.rpc.addresses import Addresses
from services.common.rpc.channel import Dialer
from services.common.rpc.server import Service
from services.common.settings import StartRefused
from services.common.valkey import connect, refuse_shards
from services.orchestrator.accepting import Accepting
from services.orchestrator.adapters.blob_contents import SealedContents
from services.orchestrator.adapters.blob_records import ValkeyBlobs
from services.orchestrator.adapters.bulk_cancel_store import ValkeyProgress
from services.orchestrator.adapters.erasers import Erasers
from services.orchestrator.adapters.erasure_files import ValkeyFiles
from services.orchestrator.adapters.erasure_store import ValkeyErasures
from services.orchestrator.adapters.hook_store import ValkeyHooks
from services.orchestrator.adapters.llm import LlmGateway
from services.orchestrator.adapters.memory import MemoryService
from services.orchestrator.adapters.notices import Notices, Told
from services.orchestrator.adapters.quota_store import ValkeyQuota
from services.orchestrator.adapters.schedule_store import ValkeySchedules
from services.orchestrator.adapters.segment_files import opened_segments
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_threads import ValkeyThreads
from services.orchestrator.adapters.tools import ToolExecutor
from services.orchestrator.adapters.webhook_http import HttpSender
from services.orchestrator.adapters.webhook_store import ValkeyWebhooks
from services.orchestrator.agents import AgentCatalog
from services.orchestrator.approvals.deciding import Deciding
from services.orchestrator.approvals.raising import Raising
from services.orchestrator.auditing import Auditing
from services.orchestrator.blobs.keeping import BlobKeeping
from services.orchestrator.blobs.tending import BlobTending
from services.orchestrator.bulk_cancel import BulkCancel
from services.orchestrator.children.ending import ChildEnds
from services.orchestrator.children.spawning import Spawning
from services.orchestrator.commanding import Commanding
from services.orchestrator.control.controlling import Controlling
from services.orchestrator.control.double_texting import DoubleTexting
from services.orchestrator.erasure import Erasing
from services.orchestrator.erasure_files import Rewriting
from services.orchestrator.feedback import Feedback
from services.orchestrator.hooks.accepting import TakingMessages
from services.orchestrator.hooks.keeping import Hooks
from services.orchestrator.hub import Hub
from services.orchestrator.outbox import Outbox
from services.orchestrator.quota import Quotas
from services.orchestrator.reach import Reach
from services.orchestrator.results_tending import ResultTending
from services.orchestrator.said_check import SaidCheck
from services.orchestrator.schedules.firing import Firing
from services.orchestrator.schedules.keeping import Schedules
from services.orchestrator.segments_moving import SegmentMover
from services.orchestrator.servicer import AgentServicer
from services.orchestrator.servicers.admin import AdminServicer
from services.orchestrator.servicers.approvals import ApprovalServicer
from services.orchestrator.servicers.blobs import BlobServicer
from services.orchestrator.servicers.feedback import JudgedRunServicer
from services.orchestrator.servicers.hooks import HookServicer
from services.orchestrator.servicers.schedules import ScheduleServicer
from services.orchestrator.servicers.threads import ThreadServicer
from services.orchestrator.servicers.webhooks import WebhookServicer
from services.orchestrator.settings import Settings
from services.orchestrator.snapshots import Snapshots
from services.orchestrator.sweeper import Sweeper
from services.orchestrator.threads.threads import Threads
from services.orchestrator.tool_check import ToolCheck
from services.orchestrator.turn.guardrails import AllowAll
from services.orchestrator.turn.state import Services
from services.orchestrator.watching import Watching
from services.orchestrator.webhooks.announcing import Announcing
from services.orchestrator.webhooks.delivering import Delivering
from services.orchestrator.webhooks.endpoints import Endpoints
from services.orchestrator.worker import HAND_OVER_S, Worker

# Watched threads are compared with the store this often: a lost notice delays a watcher by no more.
RESYNC_S = 2.0
RESTART_S = 1.0
DAY_MS = 86_400_000
log = structlog.get_logger("bulkhead.orchestrator")


def build(settings: Settings) -> Service:
    """Wires the orchestrator. Raises StartRefused with every problem.

    Ready means: the state store answers and the LLM gateway can be reached. Without tools or memory a turn still runs,
    with a warning, so those two do not take the orchestrator out of service.
    """
    agents, policies, minter, verifier = _configuration(settings)
    client = connect(settings.state_url)
    # A process tells its own writes from others' by this, so a name that was configured twice must not make it deaf.
    owner = f"{settings.instance}-{secrets.token_hex(4)}"
    envelope = opened_envelope(client, settings.envelope_keys_file, replicas=settings.state_replicas)
    segments = opened_segments(settings)
    store = Store(
        client, owner, settings.state_replicas, segments=segments, envelope=envelope,
        blobs=None if segments is None else segments.blobs, inline_bytes=settings.results_inline_bytes,
    )  # fmt: skip
    dialer = Dialer("orchestrator", Addresses(settings.addresses(), settings.address_file))
    memory = MemoryService(dialer)
    # A connection of its own: subscribing must not wait behind calls.
    listening = connect(settings.state_url, max_connections=2)
    notices = Notices(listening, owner)
    hub = Hub(store, notices.follow, notices.unfollow)
    raising = Raising(store, store, hub, minter, lambda tier: policies.current.tier(settings.policy_set, tier))
    kept = ValkeyBlobs(client, owner, settings.state_replicas, store.sealing)
    blobs = BlobKeeping(
        kept, None if segments is None else SealedContents(segments.blobs, store.sealing), store,
        IdempotencyStore(client, settings.state_replicas), settings.blobs_most_bytes_per_tenant,
    )  # fmt: skip
    blob_tending = BlobTending(kept, blobs, store)
    services = Services(LlmGateway(dialer), ToolExecutor(dialer), memory, raising, guardrails=AllowAll(), blobs=blobs)
    webhooks, sender = ValkeyWebhooks(client, owner, settings.state_replicas, store.sealing), HttpSender()
    private = settings.webhook_allow_private
    delivering = Delivering(webhooks, sender, settings.webhook_retries_s, private)
    announcing = Announcing(store, webhooks, delivering.wake)
    endpoints = Endpoints(webhooks, sender, IdempotencyStore(client, settings.state_replicas), private)
    records = AuditStream(client, timedelta(days=settings.audit_days), settings.state_replicas)
    audit = Auditing(store, agents, records) if settings.audit_days else None
    outbox = Outbox(store, services.memory, minter, announcing, audit)
    worker = Worker(settings, store, hub, agents, services, outbox, minter)
    # An absence that keeps every owner from prolonging its lease in time.
    silent_s = max(settings.lease_s - settings.heartbeat_s, 2 * settings.sweep_s)
    sweeper = Sweeper(settings, store, worker, outbox, Reach(silent_s, settings.lease_s))
    kept_threads = ValkeyThreads(client, owner, settings.state_replicas, store.sealing, store.results)
    accepting = Accepting(settings, store, hub, worker, agents, policies, SaidCheck(store, kept_threads.state, blobs))
    accepting.tools = ToolCheck(services.tools, store, minter)
    timed = ValkeySchedules(client, owner, settings.state_replicas, store.sealing)
    firing = Firing(
        timed, store, accepting, look_every_s=settings.sweep_s, grace_s=settings.schedule_grace_s, track=settings.track,
        other_track_after_s=settings.other_track_after_s,
    )  # fmt: skip
    schedules = Schedules(timed, IdempotencyStore(client, settings.state_replicas), accepting, agents, settings.schedule_least_interval_s)
    bulk_cancel = BulkCancel(accepting, store, ValkeyProgress(client, owner), IdempotencyStore(client, settings.state_replicas))
    kept_hooks = ValkeyHooks(client, owner, settings.state_replicas, store.sealing)
    hooks = Hooks(kept_hooks, IdempotencyStore(client, settings.state_replicas), accepting, agents)
    taking = TakingMessages(
        kept_hooks, store, accepting, TokenBuckets(client), lambda tier: policies.current.tier(settings.policy_set, tier),
        settings.hook_messages_per_minute,
    )  # fmt: skip
    commanding = Commanding(store, hub, worker)
    deciding = Deciding(store, store, commanding, services.tools, minter)
    quotas = Quotas(ValkeyQuota(client, owner), policies, settings.policy_set)
    erasures = ValkeyErasures(client, owner, settings.state_replicas)
    erasing = Erasing(erasures, accepting, timed, Erasers(dialer), minter, store.segments, envelope, blobs=blob_tending, hooks=kept_hooks)
    threads = Threads(
        store, kept_threads, memory, accepting, agents, minter,
        hub, segments,
        lambda tier: (policies.current.tier(settings.policy_set, tier).thread_ttl_days or 0) * DAY_MS,
        outbox.tell,
        blob_tending,
    )  # fmt: skip
    watching = Watching(settings, store, hub, worker)
    controlling = Controlling(store, commanding, accepting, watching, agents)
    double_texting = DoubleTexting(store, accepting, controlling, watching, IdempotencyStore(client, settings.state_replicas))
    feedback = Feedback(store, agents, hub)
    runs = JudgedRunServicer(feedback, controlling, accepting, watching, store, bulk_cancel, double_texting)
    results = None if store.results is None else ResultTending(store, store.results, settings.segments_after_s, blob_tending)
    mover = SegmentMover(
        store, store.segments, settings.segments_after_s, lambda tier: policies.current.tier(settings.policy_set, tier).retention_s, results
    )
    loops = _Loops()

    async def resync() -> None:
        while True:
            await asyncio.sleep(RESYNC_S)
            with suppress(Overloaded):
                await hub.resync()

    def resync_once() -> None:
        loops.start("resync-once", _quietly(hub.resync))

    # What goes round in circles: a run that is worked on makes runs, whose ends wake it, whose slots start others; a run that is
    # accepted has its thread looked after, which ends runs. Before the first loop begins nobody asks for any of these.
    services.children, outbox.on_end = Spawning(accepting, store), ChildEnds(store, commanding).tell
    store.on_admitted, accepting.on_mortal = worker.admitted, threads.noticed

    async def start() -> None:
        await refuse_shards(client)
        with suppress(Overloaded):
            # A store that is away at the start fails readiness, not the start.
            await store.load()
        await notices.start(Told(hub.noticed, worker.cancel, worker.hear, resync_once))
        for name, loop in (
            ("consume", worker.consume), ("leases", worker.keep_leases), ("sweep", sweeper.run), ("resync", resync),
            ("agents", agents.watch), ("policies", policies.watch),
            ("webhooks", delivering.run), ("webhook-tenants", announcing.watch), ("segments", mover.run),
            ("schedules", firing.run), ("erasures", erasing.run), ("threads", threads.tending.run), ("blobs", blob_tending.run),
            ("erased-files", Rewriting(erasures, ValkeyFiles(client)).run),
            *([("results", results.run)] if results is not None else []),
        ):  # fmt: skip
            loops.start(name, loop)

    async def drain() -> None:
        hub.shut()
        await asyncio.gather(worker.drain(), delivering.drain(settings.drain_grace_s - HAND_OVER_S))

    async def close() -> None:
        await worker.close()
        await loops.close()
        await delivering.close()
        await notices.close()
        await dialer.close()
        await listening.aclose()
        await client.aclose()

    return Service(
        "orchestrator",
        [
            partial(rpc.add_ThreadServiceServicer_to_server, ThreadServicer(accepting, store, threads, Snapshots(store, deciding))),
            partial(rpc.add_RunServiceServicer_to_server, runs),
            partial(rpc.add_AgentServiceServicer_to_server, AgentServicer(agents)),
            partial(schedules_rpc.add_ScheduleServiceServicer_to_server, ScheduleServicer(schedules)),
            partial(admin_rpc.add_AdminServiceServicer_to_server, AdminServicer(quotas, erasing, feedback)),
            partial(approvals_rpc.add_ApprovalServiceServicer_to_server, ApprovalServicer(deciding)),
            partial(blobs_rpc.add_BlobServiceServicer_to_server, BlobServicer(blobs)),
            partial(webhooks_rpc.add_WebhookServiceServicer_to_server, WebhookServicer(endpoints)),
            partial(hooks_rpc.add_HookServiceServicer_to_server, HookServicer(hooks, taking)),
        ],
        {"state": store.ping, "llm_gateway": lambda: dialer.reachable("llm_gateway")},
        start=[start],
        drain=[drain],
        close=[close],
        verifier=verifier,
        configs=[agents, policies],
    )


def _configuration(settings: Settings) -> tuple:
    """Everything that is read from files; all problems of all files are reported at once."""
    problems: list[str] = []

    def read(what: Callable):
        try:
            return what()
        except StartRefused as error:
            problems.extend(error.problems)
        except (OSError, ValueError) as error:
            problems.append(str(error))
        return None

    signing_key, keys = settings.identity_signing_key_file, settings.identity_keys_file
    if signing_key is None or keys is None:
        raise StartRefused(settings.problems())
    found = (
        read(lambda: AgentCatalog(settings.config_dir)),
        read(lambda: ConfigFile(settings.config_dir / "policies.yaml", parse_policies)),
        read(lambda: Minter.from_file(signing_key, "orchestrator")),
        read(lambda: Verifier.from_file(keys)),
    )
    if problems:
        raise StartRefused(problems)
    return found


def _quietly(work: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        with suppress(Overloaded):
            await work()

    return run


class _Loops:
    """The endless tasks of the process. One that fails is a defect, which is logged; leases and sweeps must go on all the same."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task] = set()

    def start(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Runs `work` until it returns or `close`."""
        task = asyncio.create_task(self._keep(name, work), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _keep(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                return await work()
            except Exception as error:
                log.error("loop_failed", loop=name, exc_info=error)
            await asyncio.sleep(RESTART_S)

    async def close(self) -> None:
        """Ends them all."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
