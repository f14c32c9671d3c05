"""The durable side of the fake orchestrator: threads, runs and events, and the owners that work on runs."""

import asyncio
from collections import defaultdict
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import NotFound
from services.common.rpc.context import CallContext, principal
from services.gateway import fake_clients
from services.gateway.fake_admin import FakeRecords
from services.gateway.fake_control import FakeDesk
from services.gateway.fake_scripts import FakeRun, Script

TERMINAL = {
    "run_finished": pb.RUN_STATUS_SUCCEEDED,
    "run_failed": pb.RUN_STATUS_FAILED,
    "run_cancelled": pb.RUN_STATUS_CANCELLED,
}


# A thread whose mention is an internal error of the orchestrator.
EXPLODES = "t-explodes"


class FakeLog:
    """Threads, runs and events of every tenant."""

    def __init__(self) -> None:
        self.threads: dict[tuple[str, str], pb.Thread] = {}
        self.events: dict[tuple[str, str], list[pb.Event]] = defaultdict(list)
        self.runs: dict[tuple[str, str], FakeRun] = {}
        self.by_key: dict[tuple[str, str], pb.CreateRunRequest] = {}
        self.tombstones: set[tuple[str, str]] = set()
        self.seen: list[tuple[str, CallContext]] = []
        self.desk = FakeDesk()
        self.records = FakeRecords()
        self.grown = asyncio.Event()
        self.tasks: set[asyncio.Task] = set()

    def thread(self, thread_id: str) -> pb.Thread:
        """Raises NotFound for a thread that is not the caller's."""
        if thread_id == EXPLODES:
            raise ZeroDivisionError("the secret of the house")
        found = self.threads.get((principal().tenant, thread_id))
        if found is None:
            raise NotFound("no such thread")
        return found

    def run(self, run_id: str) -> FakeRun:
        """Raises NotFound for a run that is not the caller's."""
        found = self.runs.get((principal().tenant, run_id))
        if found is None:
            raise NotFound("no such run")
        return found

    def at_work(self, thread_id: str) -> pb.Run | None:
        """The caller's run that is at work in a thread."""
        mine = (fake.run for (tenant, _), fake in self.runs.items() if tenant == principal().tenant)
        return next((run for run in mine if run.thread_id == thread_id and run.status not in TERMINAL.values()), None)

    def last_of(self, tenant: str, thread_id: str) -> pb.Run | None:
        """The last run of a thread, or of the one that it was forked from."""
        known = self.threads.get((tenant, thread_id), pb.Thread(thread_id=thread_id))
        mine = (fake.run for (of, _), fake in self.runs.items() if of == tenant)
        return next((run for run in reversed(list(mine)) if run.thread_id in (known.thread_id, known.parent_thread_id)), None)

    def newest(self) -> FakeRun:
        """The run that was started last."""
        return next(reversed(self.runs.values()))

    def make_thread(self, tenant: str, thread_id: str, metadata: Any = None) -> pb.Thread:
        """The thread, made when it is not there."""
        key = (tenant, thread_id)
        if key not in self.threads:
            self.threads[key] = pb.Thread(thread_id=thread_id, metadata=metadata or {})
            self.threads[key].created_at.GetCurrentTime()
        return self.threads[key]

    def append(self, tenant: str, thread_id: str, run_id: str, kind: str, data: dict[str, Any], provisional: bool = False) -> pb.Event:
        """Appends one event to a thread's log."""
        thread = self.threads[(tenant, thread_id)]
        thread.last_seq += 1
        event = pb.Event(
            seq=thread.last_seq, thread_id=thread_id, run_id=run_id, attempt=1, type=kind, data_json=orjson.dumps(data),
            provisional=provisional, schema_version=1,
        )  # fmt: skip
        event.occurred_at.GetCurrentTime()
        self.events[(tenant, thread_id)].append(event)
        self.wake()
        return event

    def wake(self) -> None:
        """Wakes all who wait for the log to grow or for a run to change."""
        self.grown.set()
        self.grown = asyncio.Event()

    def start(self, tenant: str, run: FakeRun, script: Script) -> None:
        """Works on a run in the background, as an owner would."""

        async def work() -> None:
            ids = (tenant, run.run.thread_id, run.run.run_id)
            told = {"agent": run.run.agent, "agent_version": "1", **fake_clients.queued(run.request)}
            first = self.append(*ids, "run_queued", told)
            run.run.first_seq = first.seq
            run.run.status = pb.RUN_STATUS_RUNNING
            self.append(*ids, "run_started", {})
            async for kind, data, provisional in script(run):
                event = self.append(*ids, kind, data, provisional)
                if kind in TERMINAL:
                    run.run.status, run.run.terminal_seq = TERMINAL[kind], event.seq
                    run.run.output_text = data.get("output_text", "")
                    fake_clients.ended(run.run, data)
                    run.run.ended_at.GetCurrentTime()
                    self.wake()
                await asyncio.sleep(0)

        task = asyncio.create_task(work())
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
