"""A process that is told to go hands its runs over: at the end of the step that is at work, or where that takes longer, of its grace.

Real processes: `first` works on twenty runs at once and gets SIGTERM, `second` goes on. When a run was released and when it was at work
again stands in the store's own times, in the run's record and in its log, so that a slow machine is told from a slow hand-over. In the
end the oracle looks at everything.
"""

import asyncio
import signal
import statistics
from contextlib import AsyncExitStack, aclosing, asynccontextmanager

import aiohttp
import orjson
import pytest

from services.common import testing
from services.common.accounts import Accounts
from services.common.errors import BulkheadError
from services.common.valkey import connect
from services.gateway.app import build
from services.gateway.settings import Settings
from services.orchestrator.testing.counting import ONCE, REPEATABLE, calls
from services.orchestrator.testing.harness import LOST, data_of, shown_text, types, write_config
from services.orchestrator.testing.replicas import Replica
from tests.system.kill_site import TALK, Site, each

pytestmark = [pytest.mark.system, pytest.mark.timeout(150)]
# Promised is a second; this is for machines that are busy with other things, and far below what a lease or a sweep would add to it.
PROMPT_S = 5.0
# Neither a sweep nor the end of a lease brings a run to its next owner.
NEVER_S = 600.0


# Each row brings its run into a step; goes on when its process drains; goes on when all that can be handed over was. It yields the
# run that is to have a second owner, if any.


async def answering(site, run_id):
    """The last step, which ends in time: nothing is left to hand over."""
    await site.streaming(run_id)
    yield
    site.models.of(run_id).open()
    await site.ended(run_id)
    yield ""
    assert (await site.second.client.get(run_id)).output_text == TALK
    assert not [event for event in site.shown(run_id) if event.attempt > 1]


async def asking_for_a_tool(site, run_id):
    """A model call that ends in time, and asks for a tool: that is the next owner's."""
    site.models.of(run_id).close()
    await site.start(run_id, calls((REPEATABLE, "a"), say=TALK), "done")
    await testing.eventually_async(lambda: shown_text(site.shown(run_id)) == "one two", f"{run_id} shows text")
    yield
    site.models.of(run_id).open()
    await site.ended(run_id)
    yield run_id
    assert len(site.calls_of(run_id)) == 2
    assert "attempt_superseded" not in types(site.shown(run_id))


async def using_a_tool(site, run_id):
    """A tool that ends in time: the next step is the next owner's."""
    site.tools.of(run_id).close()
    await site.start(run_id, calls((REPEATABLE, "a")), "done")
    await testing.eventually_async(lambda: site.tools.of(run_id).waiting, f"{run_id}: the tool is at work")
    yield
    site.tools.of(run_id).open()
    await site.ended(run_id)
    yield run_id
    assert len(site.behind.tools.effects[run_id]) == 1


async def in_line(site, run_id):
    """Behind a run of its thread that is handed over; it has never begun, and is the next owner's from its first step."""
    before = f"{run_id}-before"
    row = using_a_tool(site, before)
    await anext(row)
    await site.start(run_id, "hi", thread_id=site.threads[before])
    yield
    await anext(row)
    run = await site.ended(run_id)
    assert (run.output_text, run.attempt) == ("hi", 1)
    yield before


async def held(site, run_id):
    """A model call that outlasts the grace: it is ended, what was shown of it is taken back, and the next owner makes it anew."""
    await site.streaming(run_id)
    yield
    await testing.eventually_async(lambda: len(site.calls_of(run_id)) == 2, f"{run_id} is at work elsewhere")
    assert site.calls_of(run_id)[0].cancelled
    site.models.of(run_id).open()
    assert (await site.ended(run_id)).output_text == TALK
    yield run_id
    superseded = [data_of(event)["from_seq"] for event in site.shown(run_id) if event.type == "attempt_superseded"]
    assert superseded == [next(event.seq for event in site.shown(run_id) if event.type == "message_delta")]


async def last_released(state_url, site, run_id):
    """When a run, which nobody has taken for lost, was released last: in the store's milliseconds."""
    async with aclosing(connect(state_url)) as store:
        name = f"t:{{acme/{site.threads[run_id]}}}:run:{run_id}"
        released, crashes, losses = await store.hmget(name, "queued_ms", "crashes", "losses")
    assert (crashes, losses or b"0") == (b"0", b"0"), f"{run_id} was taken for lost"
    return int(released)


async def released_and_claimed(state_url, site, run_id):
    """When a run was released by its first owner, and the first event of its second."""
    released = await last_released(state_url, site, run_id)
    log = await site.second.client.log(run_id)
    last = max((event.occurred_at.ToMilliseconds() for event in log if event.attempt == 1), default=0)
    first = next(event.occurred_at.ToMilliseconds() for event in log if event.attempt == 2)
    assert last <= released <= first
    return released, first


@asynccontextmanager
async def leaving_and_staying(identities, behind, state_url, folder, **leaving):
    """A site whose first process is about to go. Nobody sweeps: who hands a run over has to tell whoever waits for one."""
    config = write_config(folder / "config")
    async with AsyncExitStack() as stack:
        site = Site(behind)
        site.first, site.second = (
            Replica(name, identities, behind, config, folder, state_url, sweep_s=NEVER_S, watch_heartbeat_s=0.5, **fields)
            for name, fields in (("first", leaving), ("second", {}))
        )
        await asyncio.gather(*(stack.enter_async_context(replica.there()) for replica in (site.first, site.second)))
        yield site


async def drains(site):
    site.first.process.signal(signal.SIGTERM)
    await testing.eventually_async(lambda: "draining" in site.first.process.output(), "it drains")


async def test_twenty_runs_of_a_process_that_goes_are_at_work_elsewhere_at_once(identities, behind, state_url, tmp_path):
    # Steps that end do so long before the grace does, however slow the machine is.
    async with leaving_and_staying(identities, behind, state_url, tmp_path, drain_grace_s=12.0) as site:
        kinds = {answering: TALK, asking_for_a_tool: f"{TALK}done", using_a_tool: "done", held: TALK, in_line: "hi"}
        rows, read = [], {}
        for kind, text in kinds.items():
            for number in range(4):
                run_id = f"{kind.__name__.replace('_', '-')}-{number}"
                rows.append(kind(site, run_id))
                read[run_id] = text
                if kind is in_line:
                    read[f"{run_id}-before"] = kinds[using_a_tool]
        await each(rows)
        await drains(site)
        moved = [run_id for run_id in await each(rows) if run_id]
        assert len(moved) == 16
        assert await asyncio.to_thread(site.first.process.wait) == 0
        await each(rows)
        assert {(await site.second.client.get(run_id)).attempt for run_id in moved} == {2}
        waits = []
        for run_id in moved:
            released, claimed = await released_and_claimed(state_url, site, run_id)
            waits.append(claimed - released)
        print(f"from release to work elsewhere: p50 {statistics.median(waits):.0f} ms, most {max(waits)} ms")
        assert max(waits) < PROMPT_S * 1000
        await site.judge()
        # Whoever began to watch at the process that has left goes on at the other one, and reads the answer once.
        for run_id, text in read.items():
            for seen in site.seen[run_id]:
                assert seen.ended
                assert shown_text(seen.events) == text
                again = "one two" if run_id.startswith("held") else ""
                assert "".join(data_of(event)["text"] for event in seen.events if event.type == "message_delta") == again + text


async def test_a_rollout_of_all_processes_moves_runs_twice_and_nothing_is_done_twice(identities, behind, state_url, tmp_path):
    async with leaving_and_staying(identities, behind, state_url, tmp_path, drain_grace_s=30.0) as site:
        runs = [f"moves-{number}" for number in range(6)]
        for run_id in runs:
            site.tools.of(run_id).close()
            await site.start(run_id, *(calls((ONCE, nonce)) for nonce in "abc"), "done")
        for step, leaving in enumerate((site.first, site.second), 1):
            for run_id in runs:
                await testing.eventually_async(lambda r=run_id, s=step: at_step(site, r, s), f"{run_id} is at step {step}")
            left = asyncio.create_task(leaving.leave())
            await testing.eventually_async(lambda of=leaving: "draining" in of.process.output(), f"{leaving.name} drains")
            for run_id in runs:
                # The call at work, and none of those to come.
                site.tools.of(run_id).open()
                site.tools.of(run_id).close()
            await left
            leaving.start()
            await leaving.ready()
            await answers(leaving, runs[0])
        for run_id in runs:
            site.tools.of(run_id).open()
            assert (await site.ended(run_id)).attempt == 3
            await last_released(state_url, site, run_id)
            assert [effect.nonce for effect in site.behind.tools.effects[run_id]] == ["a", "b", "c"]
        await site.judge()


async def answers(replica, run_id):
    """Returns when a client that has met a closed port before finds it open: its channel tries again by a clock of its own."""

    async def asked():
        try:
            return await replica.client.get(run_id)
        except BulkheadError as error:
            if error.code.name not in LOST:
                raise

    await testing.eventually_async(asked, f"{replica.name} answers")


def at_step(site, run_id, step):
    return len(site.behind.tools.effects[run_id]) == step and site.tools.of(run_id).waiting == 1


async def test_watchers_over_http_are_told_to_come_back_or_notice_nothing(identities, behind, state_url, tmp_path):
    """Of an orchestrator that goes they hear nothing; a gateway that goes asks them to come back, and another one goes on."""
    async with leaving_and_staying(identities, behind, state_url, tmp_path, drain_grace_s=30.0) as site, AsyncExitStack() as stack:
        where = tmp_path / "addresses.json"
        orchestrators = [f"127.0.0.1:{replica.settings.grpc_port}" for replica in (site.first, site.second)]
        where.write_text(orjson.dumps({"orchestrator": orchestrators}).decode())
        going = await stack.enter_async_context(AsyncExitStack())
        gone = await going.enter_async_context(gateway(identities, state_url, where))
        other = await stack.enter_async_context(gateway(identities, state_url, where))
        run_id = "watched"
        site.tools.of(run_id).close()
        row = asking_for_a_tool(site, run_id)
        await anext(row)
        path = f"/v1/runs/{run_id}/events"
        brief, whole = await gone.get(path), await other.get(path)
        await drains(site)
        site.models.of(run_id).open()
        await testing.eventually_async(lambda: site.tools.of(run_id).waiting, "the run is at work elsewhere")
        assert await asyncio.to_thread(site.first.process.wait) == 0
        await going.aclose()
        opening, closing = "retry: 1000\n", "retry: 100\n"
        said = (await brief.text()).split("\n\n")
        assert said[0].startswith(opening)
        assert said[-2].startswith(closing)
        before = events_of(said)
        async with other.get(path, headers={"last-event-id": str(before[-1][0])}) as rest:
            site.tools.of(run_id).open()
            after = events_of((await rest.text()).split("\n\n"))
        expected = [(event.seq, event.type) for event in await site.second.client.log(run_id)]
        assert before + after == expected
        assert events_of((await whole.text()).split("\n\n")) == expected
        assert await anext(row) == run_id
        await anext(row, None)
        await site.judge()


@asynccontextmanager
async def gateway(identities, state_url, address_file):
    """A gateway before the orchestrators in that file: HTTP as the user of the runs."""
    settings = Settings(
        env="test", http_port=testing.free_port(), metrics_port=0, state_url=state_url, address_file=address_file, drain_grace_s=3,
        **identities.settings("gateway"),
    )  # fmt: skip
    async with aclosing(connect(state_url)) as state:
        key = (await Accounts(state).create_key(tenant="acme", user="ana", tier="enterprise", scopes=("*",))).secret
        headers = {"authorization": f"Bearer {key}"}
        # The session outlives the gateway: what that says last is still to be read.
        async with aiohttp.ClientSession(f"http://127.0.0.1:{settings.http_port}", headers=headers) as session:
            async with testing.running(settings, build):
                yield session


def events_of(blocks):
    """(number, type) of server-sent events."""
    found = [dict(line.split(": ", 1) for line in block.split("\n") if line[:1] not in ("", ":")) for block in blocks]
    return [(int(fields["id"]), fields["event"]) for fields in found if "id" in fields]
