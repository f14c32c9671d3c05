"""An erasure whose process dies, at any step or at random, is completed by another, and is complete."""

import asyncio
import random
from contextlib import AsyncExitStack

import pytest
from bulkhead.orchestrator.v1 import admin_pb2 as pb
from bulkhead.orchestrator.v1 import admin_pb2_grpc as rpc

from services.common import testing
from services.common.errors import BulkheadError, Overloaded
from services.common.identity import Minter
from services.common.valkey import connect
from services.orchestrator.adapters.erasure_store import DUE, ValkeyErasures
from services.orchestrator.adapters.schedule_store import ValkeySchedules
from services.orchestrator.erasure import Erasing
from services.orchestrator.testing.harness import command, dialed, served, settings_for, write_config
from tests.integration.searched_store import holding

MARK = "swordfish4711"
ANA, BOB = testing.principal_of(user="ana"), testing.principal_of(user="bob")


class Died(BaseException):
    """Stands for the end of a process: nothing of ours may catch it."""


class Dying:
    """A store whose process dies at the n-th call: before it, or when it is done and nobody hears of it."""

    def __init__(self, inner, at, *, after):
        self.inner, self.left, self.after = inner, at, after

    def __getattr__(self, name):
        method = getattr(self.inner, name)

        async def call(*args, **kwargs):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise Died
            answer = await method(*args, **kwargs)
            if self.left == 0:
                raise Died
            return answer

        return call


class Services:
    """EraseSubject of all services: remembers who was asked."""

    def __init__(self):
        self.asked = []

    async def erase(self, service, user, key, sessions):
        self.asked.append((service, user))
        return {"things": 1}


class NoRuns:
    """Nothing is at work."""

    async def cancel_run(self, principal, run_id, reason):
        raise AssertionError("every run has ended")


async def contents(client, pattern):
    """What is in the keys, as text; a dump of a hash that was restored may have its fields in another order."""
    read = {
        b"hash": client.hgetall, b"string": client.get, b"stream": client.xrange,
        b"list": lambda key: client.lrange(key, 0, -1), b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }  # fmt: skip
    found = {key: await read[await client.type(key)](key) for key in await client.keys(pattern)}
    return {key: sorted(content.items()) if isinstance(content, dict) else content for key, content in found.items()}


async def test_an_erasure_that_dies_at_any_step_is_completed_by_another(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities, ANA) as ana, dialed(settings, identities, BOB) as bob:
        for client, thread in ((ana, "t-ana"), (bob, "t-bob")):
            await client.wait((await client.start(f"say {MARK} of {thread}", thread_id=thread)).run_id)
    client = connect(state_url)
    before = {key: await client.dump(key) for key in await client.keys("*")}
    of_bob = await contents(client, "*t-bob*")
    minter = Minter.from_file(identities.signing_key("orchestrator"), "orchestrator")
    store, schedules = ValkeyErasures(client, "one"), ValkeySchedules(client, "one")

    def process(used):
        return Erasing(used, NoRuns(), schedules, Services(), minter, None, None)

    admin = testing.principal_of(user="root")
    deaths = 0
    for after in (False, True):
        for at in range(1, 100):
            await client.flushdb()
            for key, content in before.items():
                await client.restore(key, 0, content)
            dying, died = process(Dying(store, at, after=after)), False
            try:
                record = await dying.forget(admin, "ana", "k")
                await dying.look(record.ref)
            except Died:
                died, deaths = True, deaths + 1
            # Where it was begun, somebody will look at it although nobody asks again.
            assert not await client.exists("tn:{acme}:erasing") or await client.zcard(DUE) == 1
            # Whoever was not answered asks again; whoever was needs to do nothing more.
            record = await process(store).forget(admin, "ana", "k")
            assert record.done or await client.zscore(DUE, record.ref.encode()) is not None
            assert await process(store).look(record.ref)
            done = await store.record(record.ref)
            assert done.done
            assert all(part.done for part in done.parts.values())
            assert not done.user
            assert await holding(state_url, f"{MARK} of t-ana", "t-ana", ":ana", '"ana"') == []
            left = await contents(client, "*t-bob*")
            assert {key: left.get(key) for key in of_bob} == of_bob
            assert not await client.keys("*:erasing")
            assert await client.zcard(DUE) == 0
            if not died:
                break
    assert deaths > 20
    await client.aclose()


@pytest.mark.system
@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_an_erasure_survives_random_kills_and_leaves_nothing(identities, behind, state_url, tmp_path, seed):
    dice = random.Random(seed)
    config = write_config(tmp_path / "config")
    settings = [
        settings_for(identities, behind, state_url, config, segments_dir=tmp_path / "segments", segments_after_s=0.1) for _ in range(2)
    ]
    running = [command(each, tmp_path / f"{n}.log") for n, each in enumerate(settings)]
    client = connect(state_url)
    try:
        async with AsyncExitStack() as stack:
            for each in settings:
                await testing.wait_ready(f"127.0.0.1:{each.grpc_port}")
            anas = [await stack.enter_async_context(dialed(each, identities, ANA)) for each in settings]
            bob = await stack.enter_async_context(dialed(settings[0], identities, BOB))
            dialers = [
                await stack.enter_async_context(testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{each.grpc_port}"}))
                for each in settings
            ]
            stubs = [rpc.AdminServiceStub(dialer.channel("orchestrator")) for dialer in dialers]
            for n in range(6):
                run = await anas[n % 2].start(f"say {MARK}", agent=("quick", "helper")[n % 2], thread_id=f"t-ana-{n % 3}")
                await anas[n % 2].wait(run.run_id)
            kept = await bob.wait((await bob.start("say haddock", thread_id="t-bob")).run_id)
            behind.models.gate.close()
            for n in range(3):
                await anas[0].start(f"say {MARK} {MARK} {MARK}", thread_id=f"t-ana-{n}")
            await testing.eventually_async(lambda: behind.models.gate.waiting, "at work")
            behind.memories.erasing.refusals = [Overloaded("away")] * 2
            with testing.calling(identities):
                erasure = (await stubs[0].ForgetSubject(pb.ForgetSubjectRequest(user="ana", idempotency_key="k"))).erasure
            for _ in range(5):
                victim = dice.randrange(2)
                await asyncio.sleep(dice.uniform(0, 0.5))
                running[victim].kill()
                running[victim] = command(settings[victim], tmp_path / f"{victim}.log")
            behind.models.gate.open()

            async def done():
                for stub in stubs:
                    try:
                        with testing.calling(identities, timeout_s=2):
                            found = (await stub.GetErasure(pb.GetErasureRequest(erasure_id=erasure.erasure_id))).erasure
                    except BulkheadError:
                        continue
                    return found if found.state == pb.ERASURE_STATE_DONE else None
                return None

            receipt = await testing.eventually_async(done, "the erasure is done", timeout_s=120)
            assert all(part.state == pb.ERASURE_STATE_DONE for part in receipt.parts)
            assert await holding(state_url, MARK, ":ana", '"ana"') == []
            await testing.wait_ready(f"127.0.0.1:{settings[0].grpc_port}")
            assert (await bob.get(kept.run_id)).output_text == "haddock"
            left = [path for path in (tmp_path / "segments").rglob("*-*") if path.is_file() and "-" in path.name]
            assert len(left) <= 1
    finally:
        for process in running:
            process.stop()
        await client.aclose()
