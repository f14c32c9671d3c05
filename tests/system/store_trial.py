"""Two orchestrators on a store that is struck, their clients, and what came of it."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager, contextmanager

from scripts.chaos import defects_of
from scripts.chaos_load import Load
from services.common import testing
from services.common.errors import BulkheadError
from services.orchestrator.settings import Settings
from services.orchestrator.testing.counting import CountingTools, script
from services.orchestrator.testing.fakes import Fakes, fakes
from services.orchestrator.testing.harness import LOST, write_config
from services.orchestrator.testing.replicas import Replica
from tests.system.other_writes import OtherWrites

CONCURRENT = 10
ASKS_FIRST_S = 2.0


class Trial:
    """The orchestrators on one store, their clients, and what came of it."""

    def __init__(self, replicas, behind, identities, others):
        self.replicas, self.tools, self.load = replicas, behind.tools, Load(replicas, behind)
        self.one, self.two = (replica.client for replica in replicas)
        self.others = OtherWrites(replicas, identities, behind.tools) if others else None
        self._clients = []
        self._mended = asyncio.Event()
        self._mended.set()
        self.load._judge = self._judge_when_mended

    async def begin(self):
        self._clients = [asyncio.create_task(self.load.keep_asking()) for _ in range(CONCURRENT)]
        await self.accepts()
        if self.others is not None:
            await self.others.begin()
        await asyncio.sleep(ASKS_FIRST_S)

    async def accepts(self, within_s=30.0):
        """Returns when a run was accepted and has ended that was asked for now."""
        before = time.monotonic()
        async with asyncio.timeout(within_s):
            run = await self.load.anywhere(lambda client: client.start(script("hi")))
            ended = await self.load.anywhere(lambda client: client.get(run.run_id))
            while not ended.HasField("ended_at"):
                await asyncio.sleep(0.05)
                ended = await self.load.anywhere(lambda client: client.get(run.run_id))
        return time.monotonic() - before

    async def accepts_at(self, client, within_s=30.0):
        """Returns when a run is accepted by the orchestrator of `client`."""

        async def accepted():
            return await _accepted(client) is True

        await testing.eventually_async(accepted, "it accepts runs again", within_s)

    async def refused(self, client=None, within_s=20.0):
        """Returns when a run is refused for the store's sake. Nothing is acknowledged that is not kept."""

        async def refuses():
            return await _accepted(client or self.one) == "UNAVAILABLE"

        await testing.eventually_async(refuses, "new runs are refused", within_s)

    @asynccontextmanager
    async def accepts_none(self, client):
        """No run is accepted there by a call that is made in this context."""
        asked = []

        async def ask():
            while True:
                asked.append(await _accepted(client))
                await asyncio.sleep(0.05)

        asking = asyncio.create_task(ask())
        try:
            yield
            await testing.eventually_async(lambda: "UNAVAILABLE" in asked, "a run is refused")
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert True not in asked, "it was accepted where it could not last"

    @contextmanager
    def asked_at(self, replica):
        """The load asks at this one alone, as whoever asks a primary that was replaced is told what was true before; judged is after it."""
        both, self.load.replicas = self.load.replicas, [replica]
        self._mended.clear()
        try:
            yield
        finally:
            self.load.replicas = both
            self._mended.set()

    async def _judge_when_mended(self, talk):
        # An end that was shown by a primary that is being replaced is void, and the run ends anew.
        await self._mended.wait()
        await Load._judge(self.load, talk)

    async def judged(self):
        # Slow machines make few runs in the time of a row.
        await testing.eventually_async(lambda: self.load.statuses["succeeded"] > CONCURRENT, "runs succeed", every_s=0.1)
        self.load.asking = False
        if self.others is not None:
            await self.others.judged()
        await asyncio.gather(*self._clients)
        await self.load.judged()
        assert not self.load.broken, "\n".join(map(str, self.load.broken))
        assert not self.load.statuses["not ended in time"]
        for replica in self.replicas:
            assert not (found := defects_of(replica.process.log)), found


async def _accepted(client):
    """True, or what the refusal is called."""
    try:
        with client.calling(timeout_s=4.0):
            await client.start(script("hi"))
    except BulkheadError as error:
        if error.code.name not in LOST:
            raise
        return error.code.name
    return True


@asynccontextmanager
async def trial(identities, state_url, folder, *, others=False, none_given_up=False, **fields):
    """`state_url` may be one for each of the orchestrators, which are called one and two; with `others` all kinds of writes are made,
    and with `none_given_up` a run has the product's own crash budget and counts as lost where that ends it."""
    config = write_config(folder / "config")
    # Owners are lost here by no fault of theirs, and each stays within its own process.
    budget = Settings.model_fields["crash_budget"].default if none_given_up else 50
    fields = {"watch_heartbeat_s": 0.5, "crash_budget": budget, "log_level": "WARNING", "webhook_allow_private": True, **fields}
    async with fakes(identities, made=Fakes(tools=CountingTools())) as behind:
        urls = state_url if isinstance(state_url, Mapping) else dict.fromkeys(("one", "two"), state_url)
        one, two = (Replica(name, identities, behind, config, folder, url, **fields) for name, url in urls.items())
        async with one.there(), two.there():
            made = Trial([one, two], behind, identities, others)
            made.load.none_given_up = none_given_up
            try:
                await made.begin()
                yield made
                await made.judged()
            finally:
                made.load.asking = False
                if made.others is not None:
                    await made.others.end()


async def another_primary(members, lost):
    """Returns when another one is the primary."""

    async def promoted():
        return await asyncio.to_thread(members.primary) is not lost

    await testing.eventually_async(promoted, "another primary", every_s=0.1)


async def whole(members):
    """Returns when every node follows the primary, and every sentinel knows."""

    async def follow():
        return await asyncio.to_thread(members.whole)

    await testing.eventually_async(follow, "every replica follows", every_s=0.2)
