"""Large results where something does not answer, is broken, or where more is to be looked at than one turn takes."""

import asyncio

import orjson
import pytest

from services.common import tasks, testing
from services.common.errors import Overloaded
from services.orchestrator import results_tending
from services.orchestrator.adapters import result_blobs
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.result_blobs import Item, LargeResults
from services.orchestrator.adapters.segment_files import SegmentFiles
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import RESULTS, thread_keys
from services.orchestrator.records import Draft
from services.orchestrator.results_tending import MOST_AT_ONCE, MOST_PARALLEL, ResultTending
from services.orchestrator.testing.runs import CRASHES, accept, log_of, new_ref


class Silent(FolderBlobs):
    """Blobs that can stop answering, with what was asked of them."""

    def __init__(self, folder):
        super().__init__(folder)
        self.answering, self.asked = asyncio.Event(), []
        self.answering.set()

    async def put(self, place, name, content):
        self.asked.append("put")
        await self.answering.wait()
        await super().put(place, name, content)

    async def get(self, place, name):
        self.asked.append("get")
        await self.answering.wait()
        return await super().get(place, name)

    async def names(self, place):
        self.asked.append("names")
        await self.answering.wait()
        return await super().names(place)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "blobs"


@pytest.fixture
def blobs(folder):
    return Silent(folder)


@pytest.fixture
def store(valkey, blobs):
    return Store(valkey, "one", segments=SegmentFiles(blobs), blobs=blobs)


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def completed(call_id):
    data = {"call_id": call_id, "tool": "read", "output": "x" * 100_000, "duration_ms": 3}
    return Draft("tool_call_completed", orjson.dumps(data))


async def written(store, count):
    """A run that has written so many large results at once, and what it wrote."""
    ref, drafts = new_ref(), [completed(f"c{number}") for number in range(count)]
    assert await accept(store, ref) == "new"
    epoch = (await store.claim(ref, 60, CRASHES)).record.epoch
    await store.write(ref, epoch, 1, "", drafts, mode="c", state=b"{}")
    return ref, [draft.data for draft in drafts]


async def outputs(store, ref):
    return [event.data for event in await log_of(store, ref) if event.type == "tool_call_completed"]


async def test_blobs_that_do_not_answer_hold_up_a_write_once_however_many_results_it_has(store, blobs, folder, monkeypatch):
    monkeypatch.setattr(result_blobs, "PUT_WITHIN_S", 0.05)
    blobs.answering.clear()
    ref, datas = await written(store, 3)
    assert (blobs.asked, files(folder)) == (["put"], [])
    assert await outputs(store, ref) == datas


@pytest.mark.parametrize("what", ["get", "names"])
async def test_whoever_reads_or_looks_for_what_is_left_is_told_that_blobs_do_not_answer(store, blobs, what, monkeypatch):
    ref, datas = await written(store, 1)
    monkeypatch.setattr(result_blobs, "ASK_WITHIN_S", 0.05)
    store.results = LargeResults(blobs, store.sealing)
    blobs.answering.clear()
    with pytest.raises(Overloaded) as away:
        async with asyncio.timeout(testing.PATIENCE_S):
            await (log_of(store, ref) if what == "get" else store.results.drop(ref))
    assert (away.value.reason, away.value.retry_after_s, blobs.asked[-1]) == ("RESULTS_UNAVAILABLE", 1.0, what)
    blobs.answering.set()
    assert await outputs(store, ref) == datas


async def left_over(store, valkey, count):
    """Results of so many runs, each of a thread that is gone; they are due."""
    refs = [new_ref() for _ in range(count)]
    for ref in refs:
        await store._aside([Item(ref, "tool_call_completed", completed("c1").data)])
    await valkey.zadd(RESULTS, {ref.encode(): number for number, ref in enumerate(refs)})
    return refs


async def noted(valkey):
    return [member.decode() for member in await valkey.zrange(RESULTS, 0, -1)]


async def test_a_run_that_cannot_be_looked_at_for_a_defect_keeps_no_other_from_it(store, valkey, folder):
    broken, *_ = await left_over(store, valkey, 3)
    await valkey.hset(thread_keys(broken)[2], mapping={"status": "succeeded"})
    assert await ResultTending(store, store.results, 0.0).turn() == 3
    assert len(files(folder)) == 1
    assert await noted(valkey) == [broken.encode()]


async def test_more_than_a_turn_takes_is_looked_at_without_a_pause_and_several_beside_each_other(store, valkey, blobs, folder, monkeypatch):
    monkeypatch.setattr(results_tending, "TURN_S", 1_000.0)
    await left_over(store, valkey, 2 * MOST_AT_ONCE + 1)
    blobs.asked.clear()
    blobs.answering.clear()
    looking = asyncio.create_task(ResultTending(store, store.results, 0.0).run())
    await testing.eventually_async(lambda: len(blobs.asked) == MOST_PARALLEL, "several are looked at")
    blobs.answering.set()

    async def none():
        return not await noted(valkey)

    await testing.eventually_async(none, "all were looked at")
    await tasks.end([looking])
    assert not files(folder)
