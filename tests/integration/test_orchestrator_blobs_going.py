"""How blobs end: with their user, their thread, unasked for, or left behind by a process that is gone. Nothing of them stays."""

import asyncio

import pytest
from bulkhead.orchestrator.v1 import admin_pb2, admin_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Conflict, NotFound, Overloaded
from services.common.valkey import connect
from services.orchestrator.adapters import blob_records
from services.orchestrator.adapters.blob_folder import FolderBlobs
from services.orchestrator.adapters.blob_records import DUE, ValkeyBlobs
from services.orchestrator.adapters.store_keys import thread_keys
from services.orchestrator.blobs import records, tending
from services.orchestrator.blobs.records import BlobRef, NewBlob
from services.orchestrator.erasure_records import being_erased
from services.orchestrator.records import RunRef
from services.orchestrator.testing.whole_threads import create, delete, fork
from tests.integration.blob_client import contents, png
from tests.integration.test_orchestrator_blobs import scene_of


@pytest.fixture
async def scene(identities, behind, state_url, tmp_path, impatient, monkeypatch):
    monkeypatch.setattr(tending, "TURN_S", 0.05)
    async with scene_of(identities, behind, state_url, tmp_path) as made:
        yield made


async def left_of(valkey):
    """Keys of the store about blobs, but what is to be looked at."""
    return sorted(key.decode() for key in await valkey.keys("*blob*") if key != DUE.encode())


async def look_now(valkey):
    """Has everything looked at that anybody is to look at some time."""
    if noted := await valkey.zrange(DUE, 0, -1):
        await valkey.zadd(DUE, dict.fromkeys(noted, 0), xx=True)


async def test_what_nobody_asks_for_goes_and_what_somebody_asks_for_stays(scene, valkey, monkeypatch):
    asked, unasked = await scene.ana.put(png()), await scene.ana.put(png(4, 4))
    link = await scene.ana.sign(unasked.blob_id)
    monkeypatch.setattr(blob_records, "ASKED_EVERY_MS", 0)
    # Thirty days pass in two seconds.
    monkeypatch.setattr(records, "KEPT_MS", 2_000)

    async def gone():
        await scene.ana.get(asked.blob_id)
        await look_now(valkey)
        return len(contents(scene.folder)) == 1

    await testing.eventually_async(gone, "one has gone")
    for ask in (scene.ana.get(unasked.blob_id), scene.ana.read(unasked.blob_id), scene.ana.follow(link.token)):
        with pytest.raises(NotFound):
            await ask
    assert (await scene.ana.read(asked.blob_id))[1] == png()
    assert (await valkey.get("tn:{acme}:blob-bytes")) == str(len(png())).encode()


async def test_one_whose_time_is_over_is_not_there_before_anybody_has_looked(scene, monkeypatch):
    blob = await scene.ana.put(png())
    link = await scene.ana.sign(blob.blob_id)
    monkeypatch.setattr(records, "KEPT_MS", 1)
    for ask in (scene.ana.get(blob.blob_id), scene.ana.read(blob.blob_id), scene.ana.sign(blob.blob_id), scene.ana.follow(link.token)):
        with pytest.raises(NotFound):
            await ask


async def test_one_that_is_asked_for_while_it_is_looked_at_stays(scene, valkey, monkeypatch):
    blob = await scene.ana.put(png())
    ref = BlobRef("acme", blob.blob_id)
    store = ValkeyBlobs(connect(scene.settings.state_url), "test")
    before = int(await valkey.hget(f"tn:{{acme}}:blob:{blob.blob_id}", "asked_ms"))
    monkeypatch.setattr(blob_records, "ASKED_EVERY_MS", 0)
    await asyncio.sleep(0.01)
    await store.asked(ref)
    assert not await store.going(ref, before)
    assert (await scene.ana.read(blob.blob_id))[1] == png()
    await store._client.aclose()


async def test_a_thread_takes_its_blobs_along_and_no_others(scene, valkey):
    await create(scene.threads, "t1")
    await create(scene.threads, "t2")
    mine = [await scene.ana.put(png(2, n), thread_id="t1") for n in range(1, 21)]
    others = [await scene.ana.put(png(3, 3), thread_id="t2"), await scene.ana.put(png(3, 4)), await scene.bob.put(png(3, 5))]
    assert await delete(scene.threads, "t1")
    assert len(contents(scene.folder)) == 3
    for blob in mine:
        with pytest.raises(NotFound):
            await scene.ana.get(blob.blob_id)
    assert (await scene.ana.read(others[0].blob_id))[0] == others[0]
    assert await delete(scene.threads, "t2")
    assert await delete(scene.threads, "t2")
    assert len(contents(scene.folder)) == 2
    assert not [key for key in await left_of(valkey) if "blobs-of" in key or key.endswith(":threads")]


async def test_a_thread_is_not_deleted_before_its_blobs_are(scene, tmp_path):
    await create(scene.threads, "t1")
    await scene.ana.put(png(), thread_id="t1")
    kept = scene.folder.rename(tmp_path / "kept")
    scene.folder.symlink_to(scene.folder)
    assert not await delete(scene.threads, "t1")
    scene.folder.unlink()
    kept.rename(scene.folder)
    await testing.eventually_async(lambda: not contents(scene.folder), "whoever looks after threads goes on with it")


async def test_the_last_of_a_thread_and_its_forks_takes_the_blobs_along(scene, valkey):
    run = await scene.threads.wait((await scene.threads.start("say hello", thread_id="t1")).run_id)
    assert run.status == pb.RUN_STATUS_SUCCEEDED
    blob = await scene.ana.put(png(), thread_id="t1")
    first, second = [(await fork(scene.threads, "t1")).thread.thread_id for _ in range(2)]
    deep = (await fork(scene.threads, first)).thread.thread_id
    for thread_id in (first, "t1", deep):
        assert await delete(scene.threads, thread_id)
        assert (await scene.ana.read(blob.blob_id))[1] == png()
    assert (await scene.ana.get(blob.blob_id)).thread_id == second
    assert await delete(scene.threads, second)
    assert not contents(scene.folder)
    assert not await left_of(valkey)


async def test_an_erased_user_leaves_nothing_and_others_keep_theirs(scene, valkey):
    await create(scene.threads, "t1")
    for n in range(20):
        await scene.ana.put(png(2, n + 1), name="swordfish4711.png", thread_id="t1" if n % 2 else "")
    link = await scene.ana.sign((await scene.ana.put(png())).blob_id)
    theirs = [await scene.bob.put(png()), await scene.eve.put(png())]
    stub = admin_pb2_grpc.AdminServiceStub(scene.dialer.channel("orchestrator"))
    with testing.calling(scene.identities):
        erasure = (await stub.ForgetSubject(admin_pb2.ForgetSubjectRequest(user="ana"))).erasure

    async def done():
        with testing.calling(scene.identities):
            now = (await stub.GetErasure(admin_pb2.GetErasureRequest(erasure_id=erasure.erasure_id))).erasure
        return now if now.state == admin_pb2.ERASURE_STATE_DONE else None

    receipt = await testing.eventually_async(done, "the erasure is done")
    (own,) = [part for part in receipt.parts if part.service == "orchestrator"]
    assert {entry.kind: entry.count for entry in own.erased}["blobs"] == 21
    assert len(contents(scene.folder)) == 2
    with pytest.raises(NotFound):
        await scene.ana.follow(link.token)
    for caller, blob in zip((scene.bob, scene.eve), theirs, strict=True):
        assert (await caller.read(blob.blob_id))[1] == png()
    assert not [key for key in await left_of(valkey) if "{acme}:blobs:ana" in key or "blobs-of" in key or key.endswith(":threads")]
    assert await valkey.get("tn:{acme}:blob-bytes") == str(len(png())).encode()


async def test_a_user_who_is_being_erased_puts_nothing(scene, valkey):
    await valkey.hset("tn:{acme}:erasing", "ana", "era_1")
    with pytest.raises(Conflict) as refused:
        await scene.ana.put(png())
    assert refused.value.reason == being_erased().reason
    assert not contents(scene.folder)
    await scene.bob.put(png())


async def test_a_content_that_is_written_while_its_user_is_erased_does_not_stay(scene, monkeypatch):
    """Its record is deleted before the content is there."""
    writing, go_on, put = asyncio.Event(), asyncio.Event(), FolderBlobs.put

    async def slow(self, place, name, content):
        writing.set()
        await go_on.wait()
        await put(self, place, name, content)

    monkeypatch.setattr(FolderBlobs, "put", slow)
    sending = asyncio.create_task(scene.ana.put(png()))
    await writing.wait()
    store = ValkeyBlobs(connect(scene.settings.state_url), "test")
    (ref,) = await store.of_user("acme", "ana", 10)
    await store.going(ref)
    await store.delete(ref, "ana")
    await store._client.aclose()
    go_on.set()
    with pytest.raises(NotFound):
        await sending
    assert not contents(scene.folder)


async def test_what_a_process_left_that_was_lost_midway_is_removed(scene, valkey, monkeypatch):
    """One record without a content, one content whose record was not finished, one content without a record, one record that is going."""
    blobs = [await scene.ana.put(png(2, n + 1)) for n in range(3)]
    keys = [f"tn:{{acme}}:blob:{blob.blob_id}" for blob in blobs]
    store = ValkeyBlobs(connect(scene.settings.state_url), "test")
    ref = BlobRef("acme", "blob_" + "1" * 32)
    assert await store.begin(NewBlob(ref, "ana", "image/png", 7, "0" * 64, "", ""), 10**9) == "new"
    await valkey.hset(keys[0], "state", "making")
    await valkey.delete(keys[1])
    await valkey.hset(keys[2], "state", "gone")
    await store._client.aclose()
    kept = await scene.ana.put(png(9, 9))
    assert len(contents(scene.folder)) == 4
    # Whoever comes too soon leaves what may still be made.
    await look_now(valkey)
    await testing.eventually_async(lambda: len(contents(scene.folder)) == 2, "what has no record, and what goes, is gone")
    monkeypatch.setattr(tending, "MADE_WITHIN_MS", 1)
    await look_now(valkey)

    async def gone():
        await look_now(valkey)
        return len(contents(scene.folder)) == 1 and not await valkey.exists(keys[0], f"tn:{{acme}}:blob:{ref.blob_id}")

    await testing.eventually_async(gone, "what was not finished is gone")
    assert (await scene.ana.read(kept.blob_id))[1] == png(9, 9)


async def test_a_blob_of_a_run_whose_thread_was_deleted_at_that_moment_goes(scene, valkey):
    await create(scene.threads, "t1")
    blob = await scene.ana.put(png(), thread_id="t1")
    await look_now(valkey)

    async def looked():
        noted = await valkey.zrange(DUE, 0, -1, withscores=True)
        return noted and all(at > 0 for _, at in noted)

    await testing.eventually_async(looked, "it was looked at")
    assert (await scene.ana.read(blob.blob_id))[1] == png(), "its thread is there"
    # As if it had been deleted before the blob was listed.
    await valkey.delete(thread_keys(RunRef("acme", "t1", "-"))[0])

    async def gone():
        await look_now(valkey)
        return not contents(scene.folder) and not await left_of(valkey)

    await testing.eventually_async(gone, "nobody else would ever delete it")


async def test_a_deletion_that_the_folder_refuses_is_gone_on_with(scene, valkey, tmp_path):
    blob = await scene.ana.put(png())
    kept = scene.folder.rename(tmp_path / "kept")
    scene.folder.symlink_to(scene.folder)
    with pytest.raises(Overloaded):
        await scene.ana.delete(blob.blob_id)
    scene.folder.unlink()
    kept.rename(scene.folder)

    async def gone():
        await look_now(valkey)
        return not contents(scene.folder) and not await left_of(valkey)

    await testing.eventually_async(gone, "whoever looks goes on with it")
