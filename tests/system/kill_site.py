"""What the rows of the kill matrix share: two replicas, what stands behind them, and all that clients were told."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import BulkheadError
from services.orchestrator.testing.counting import RunGates, script, scripted
from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.harness import AGENTS, LOST, follow_through, root_keys, shown_text, write_config
from services.orchestrator.testing.oracle import History, Seen, violations
from services.orchestrator.testing.replicas import Replica

OK = pb.RUN_STATUS_SUCCEEDED
Row = Callable[["Site"], AsyncGenerator[Any, None]]
TALK = "one two three four"
# On a slow machine leases run out before the fault, of which no run must end; one that stalls for a second loses none.
LEASE_S = 2.5


class Site:
    """The replicas, what stands behind them, and all that clients were told."""

    def __init__(self, behind):
        self.behind, self.models, self.tools = behind, RunGates(), behind.tools.gate
        behind.models.gate, behind.models.reply = self.models, scripted
        self.threads, self.cancels, self.accepted, self.seen, self.watching = {}, {}, set(), {}, []
        self.first = self.second = None

    async def create(self, run_id, text, client, thread_id="", **fields):
        """Asks for a run, once."""
        self.threads[run_id] = thread_id or f"th-{run_id}"
        run = await client.start(text, run_id=run_id, thread_id=self.threads[run_id], idempotency_key=f"key-{run_id}", **fields)
        self.accepted.add(run.run_id)
        return run

    async def start(self, run_id, *steps, client=None, **fields):
        """A run of the first replica, watched through both."""
        client = client or self.first.client
        while True:
            try:
                await self.create(run_id, script(*steps), client, **fields)
                break
            except BulkheadError as error:
                # A machine that is busy with other things; the key makes asking again harmless.
                if error.code.name not in LOST:
                    raise
        self.watch(run_id, client, self.second.client)
        self.watch(run_id, self.second.client)
        return run_id

    def watch(self, run_id, *clients):
        seen = Seen(run_id)
        self.seen.setdefault(run_id, []).append(seen)
        self.watching.append(asyncio.create_task(follow_through(clients, seen)))

    def shown(self, run_id):
        """What was shown through the replica that nothing befalls."""
        return self.seen[run_id][-1].events

    def calls_of(self, run_id):
        return [call for call in self.behind.models.calls if call.request.run_id == run_id]

    async def streaming(self, run_id, **fields):
        """A run whose model has said two words of four."""
        self.models.of(run_id).close()
        await self.start(run_id, TALK, **fields)
        await testing.eventually_async(lambda: shown_text(self.shown(run_id)) == "one two", f"{run_id} shows text")

    async def waiting(self, run_id, *steps, **fields):
        """A run whose model has said nothing yet."""
        self.models.of(run_id).close()
        await self.start(run_id, *steps, **fields)
        await testing.eventually_async(lambda: self.models.of(run_id).waiting, f"{run_id} waits for its model")

    async def asked(self, run_id):
        """The open questions of a run, when it waits for their answers."""
        return await testing.eventually_async(lambda: self.second.client.asked(run_id), f"{run_id} asks")

    async def waited(self, run_id):
        """The run at its end, from the second replica."""
        while True:
            try:
                return await self.second.client.wait(run_id)
            except BulkheadError as error:
                # As in start; but a run that does not end in time is a failure.
                if error.code.name not in LOST or error.code.name == "DEADLINE_EXCEEDED":
                    raise

    async def ended(self, run_id, status=OK):
        run = await self.waited(run_id)
        assert run.status == status, f"{run_id}: {run}"
        return run

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Whoever takes a run meanwhile is the first."""
        idle = [self.second.proxy.hold(name, late=False) for name in (b"BZPOPMIN", b"work_next_v1")]
        yield
        for held in idle:
            held.release()

    async def at_their_points(self, lasting: Sequence[Row], brief: Sequence[Row]) -> list[AsyncGenerator[Any, None]]:
        """The rows, each at its point: those of `brief`, whose points last for a moment only, are got ready first and then brought there
        one by one, before the next one sets out."""
        rows = [row(self) for row in (*lasting, *brief)]
        await each(rows)
        for row in rows[len(lasting) :]:
            await anext(row)
        return rows

    async def befall(self, fault, rows):
        """Strikes the first replica, which the rows have brought to their points, has it come back, and judges. Rows go on when the fault
        has struck, and when the replica is back."""
        self.first.strike(fault)
        await each(rows)
        await self.first.back()
        await each(rows)
        assert not [row.__name__ for row in rows if row.ag_frame is not None], "rows with more to say than they are asked for"
        await self.judge()

    async def judge(self):
        """Waits for all and asks the oracle."""
        for run_id in self.threads:
            await self.waited(run_id)
        async with asyncio.timeout(30):
            await asyncio.gather(*self.watching)
        broken = []
        for thread_id in set(self.threads.values()):
            run_ids = [run_id for run_id, its in self.threads.items() if its == thread_id]
            broken += violations(
                History(
                    thread_id,
                    log=await self.second.client.log(thread_id=thread_id),
                    runs={run_id: await self.second.client.get(run_id) for run_id in run_ids},
                    accepted=frozenset(self.accepted.intersection(run_ids)),
                    cancels={run_id: self.cancels[run_id] for run_id in run_ids if run_id in self.cancels},
                    effects=[effect for run_id in run_ids for effect in self.behind.tools.effects[run_id]],
                    seen=[seen for run_id in run_ids for seen in self.seen.get(run_id, ())],
                )
            )
        assert broken == [], broken


async def each(rows: Sequence[AsyncIterator[Any]]) -> list[Any]:
    """The next part of each of these; what they yield, None at their end."""
    return await asyncio.gather(*(anext(row, None) for row in rows))


@asynccontextmanager
async def two_replicas(
    identities: testing.Identities,
    behind: Fakes,
    state_url: str,
    folder: Path,
    agents: str = AGENTS,
    first: Mapping[str, Any] | None = None,
) -> AsyncIterator[Site]:
    """A site of two replicas with these agents; `first` are settings that only the first one has."""
    config = write_config(folder / "config", agents)
    async with AsyncExitStack() as stack:
        site = Site(behind)
        shared = {"lease_s": LEASE_S, "watch_heartbeat_s": 0.5, "drain_grace_s": 20.0, "crash_budget": 20}
        # As records are by default.
        shared["envelope_keys_file"] = root_keys(folder)
        site.first, site.second = (
            Replica(name, identities, behind, config, folder, state_url, **{**shared, **fields})
            for name, fields in (("first", first or {}), ("second", {}))
        )
        await asyncio.gather(*(stack.enter_async_context(replica.there()) for replica in (site.first, site.second)))
        yield site
