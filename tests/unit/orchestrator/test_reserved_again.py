"""A request that is repeated under its key, long after its first try was refused: the run that it makes now is found as any other."""

import pytest

from services.orchestrator.adapters import store_base
from services.orchestrator.adapters.segment_log import SegmentLogStore
from services.orchestrator.adapters.store_queue import FORGET_AFTER_MS
from services.orchestrator.testing.runs import CANCELLED, QUEUED, new_ref, spec
from services.orchestrator.testing.stores import Site

AFTER_S = 300


@pytest.fixture
async def backend(_state_server, _stepped_lua, monkeypatch):
    monkeypatch.setattr(store_base, "LUA", _stepped_lua)
    async with Site("valkey", _state_server, _stepped_lua).open() as opened:
        yield opened


async def accepted(store, ref, reservation):
    made = await store.accept(ref, "ana", spec(ref.thread_id), "stable", reservation, "", (QUEUED, CANCELLED))
    return made.verdict


@pytest.mark.parametrize("taken_away", ["before", "while"])
@pytest.mark.parametrize("cancelled", [False, True])
async def test_a_run_that_is_made_with_the_second_try_is_found_and_listed(backend, taken_away, cancelled):
    store, archive = backend.process("one"), SegmentLogStore(backend.client, "archive")
    ref = new_ref("t")
    assert (await store.reserve(ref, "ana", 0, "k", "p")).verdict == "new"
    # It was refused, as its thread was busy: nobody writes it, and it is as settled as a run that has ended.
    await store.settle(ref)
    await backend.advance(AFTER_S + 1)
    if taken_away == "before":
        await archive.unlist(ref, AFTER_S)
        assert await store.locate("acme", "ana", ref.run_id) is None
        if cancelled:
            assert await store.request_cancel("acme", "ana", ref.run_id) == ""
    elif cancelled:
        assert await store.request_cancel("acme", "ana", ref.run_id) == "t"
    again = await store.reserve(new_ref("t"), "ana", 0, "k", "p")
    assert (again.verdict, again.run_id, again.thread_id) == ("existing", ref.run_id, "t")
    if taken_away == "while":
        await archive.unlist(ref, AFTER_S)
    assert await accepted(store, ref, again) == "new"
    # Asked once, it stays asked.
    assert (await store.run(ref)).status == ("cancelled" if cancelled else "queued")
    assert await store.locate("acme", "ana", ref.run_id) == ref
    assert [member for member, _ in await store.list_members("runs", "acme", "ana", 0, 10)] == [f"t/{ref.run_id}"]
    assert await store.request_cancel("acme", "ana", ref.run_id) == "t"
    assert not await store.list_members("runs", "acme", "eve", 0, 10)


async def test_a_run_that_was_asked_for_and_never_written_leaves_its_id_free(backend):
    """Whoever accepted it was lost in between, and its caller does not ask again."""
    store, archive = backend.process("one"), SegmentLogStore(backend.client, "archive")
    ref = new_ref("t")
    assert (await store.reserve(ref, "ana", 1, "", "")).verdict == "new"
    await backend.advance(FORGET_AFTER_MS / 1000 + 1)
    assert await store.forget(ref)
    await backend.advance(AFTER_S)
    assert await archive.ended_due(10, AFTER_S - 1, 60.0) == [ref]
    await archive.unlist(ref, AFTER_S)
    assert await store.locate("acme", "ana", ref.run_id) is None
    assert not await store.list_members("runs", "acme", "ana", 0, 10)
    assert (await store.reserve(ref._replace(thread_id="other"), "ana", 1, "", "")).verdict == "new"


async def refused_and_free_again(backend, store):
    """A run of ana's that was refused under her key, and whose id leads nowhere any more."""
    ref = new_ref("t")
    assert (await store.reserve(ref, "ana", 1, "k", "p")).verdict == "new"
    await store.settle(ref)
    await backend.advance(AFTER_S + 1)
    await SegmentLogStore(backend.client, "archive").unlist(ref, AFTER_S)
    return ref


async def test_the_wish_of_somebody_else_cancels_nobodys_run(backend):
    store = backend.process("one")
    ref = await refused_and_free_again(backend, store)
    assert await store.request_cancel("acme", "eve", ref.run_id) == ""
    again = await store.reserve(new_ref("t"), "ana", 1, "k", "p")
    assert (again.verdict, again.cancelled) == ("existing", False)
    assert await accepted(store, ref, again) == "new"
    assert (await store.run(ref)).status == "queued"
    assert await store.locate("acme", "ana", ref.run_id) == ref


@pytest.mark.parametrize(("user", "thread_id"), [("eve", "of-eve"), ("eve", "t"), ("ana", "other")])
async def test_an_id_that_is_another_runs_by_now_is_not_given_twice(backend, user, thread_id):
    store = backend.process("one")
    ref = await refused_and_free_again(backend, store)
    assert (await store.reserve(ref._replace(thread_id=thread_id), user, 1, "", "")).verdict == "new"
    assert (await store.reserve(new_ref("t"), "ana", 1, "k", "p")).verdict == "taken"
