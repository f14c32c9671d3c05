"""Records of blobs over a real store, also one in cluster mode: bytes and lists are those of the records, in whichever order."""

import random

import pytest

from services.orchestrator.adapters.blob_records import ValkeyBlobs
from services.orchestrator.blobs.records import BlobRef, NewBlob
from services.orchestrator.records import RunRef

USERS, THREADS, BLOBS, MOST = ("ana", "bo/b"), ("t1", "t2", "t3", ""), 8, 40


def ref_of(number):
    return BlobRef("a{c}me", f"blob_{number:032}")


async def consistent(client, store, tenant="a{c}me"):
    """What the lists and the count say is what the records say; answers the ids of these."""
    prefix = "tn:{a%7Bc%7Dme}:"
    keys = {key.decode() for key in await client.keys(f"{prefix}*")}
    blobs = {key.rpartition(":")[2] for key in keys if key.startswith(f"{prefix}blob:") and not key.endswith(":threads")}
    sizes = [int(await client.hget(f"{prefix}blob:{blob}", "size")) for blob in blobs]
    assert int(await client.get(f"{prefix}blob-bytes") or 0) == sum(sizes) <= MOST
    listed = [ref.blob_id for user in USERS for ref in await store.of_user(tenant, user, 100)]
    assert sorted(listed) == sorted(blobs)
    of_threads = {(ref.blob_id, thread) for thread in THREADS if thread for ref in await store.of_thread(tenant, thread, 100)}
    held = {(blob, thread) for blob in blobs for thread in await store.holders(BlobRef(tenant, blob))}
    assert of_threads == held
    for blob in blobs:
        found = await store.get(BlobRef(tenant, blob))
        # One that says that it belongs to a thread is held by one, or is going.
        assert found.state == "gone" or bool(found.thread_id) == bool([thread for one, thread in held if one == blob])
        assert found.state == "gone" or not found.thread_id or (blob, found.thread_id) in held
    return blobs


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_done_in_which_order_bytes_and_lists_are_those_of_the_records(either, seed):
    chance, store = random.Random(seed), ValkeyBlobs(either, "test")
    for _ in range(150):
        ref, thread, user = ref_of(chance.randrange(BLOBS)), chance.choice(THREADS), chance.choice(USERS)
        match chance.randrange(7):
            case 0 | 1:
                new = NewBlob(ref, user, "text/plain", chance.randrange(1, 15), "0" * 64, "n", thread, chance.choice(("", "r1", "r2")))
                known = await store.get(ref)
                verdict = await store.begin(new, MOST)
                assert verdict in ("new", "full") if known is None else verdict == known.state
            case 2:
                before = await store.get(ref)
                assert await store.kept(ref) == (before is not None and before.state != "gone")
            case 3:
                await store.going(ref)
            case 4:
                await store.delete(ref, chance.choice(("", user)) if await store.get(ref) is None else "")
            case 5:
                if thread:
                    gone = await store.let_go(ref, thread)
                    found = await store.get(ref)
                    assert gone == (found is not None and found.state == "gone" and await store.holders(ref) == [thread])
            case 6:
                other = chance.choice(THREADS[:3])
                if thread and other != thread:
                    await store.share("a{c}me", thread, other)
        blobs = await consistent(either, store)
    assert blobs


async def test_what_a_run_made_is_found_by_its_run(either):
    store = ValkeyBlobs(either, "test")
    for number, (thread, run) in enumerate([("t1", "r1"), ("t1", "r2"), ("t1", ""), ("t2", "r1"), ("t1", "r1")]):
        assert await store.begin(NewBlob(ref_of(number), "ana", "text/plain", 1, "0" * 64, "", thread, run), MOST) == "new"
    assert set(await store.of_run(RunRef("a{c}me", "t1", "r1"))) == {ref_of(0), ref_of(4)}
    assert await store.of_run(RunRef("a{c}me", "t3", "r1")) == []


async def test_the_same_blob_is_begun_once_and_keeps_its_first_secret(either):
    store = ValkeyBlobs(either, "test")
    new = NewBlob(ref_of(1), "ana", "text/plain", 7, "0" * 64, "n", "t1")
    assert await store.begin(new, MOST) == "new"
    first = await store.get(new.ref)
    assert await store.begin(new, MOST) == "making"
    assert (await store.get(new.ref)).secret == first.secret
    assert len(first.secret) == 32
    assert await store.kept(new.ref)
    assert await store.begin(new, MOST) == "kept"
    assert (await store.get(new.ref)).told().thread_id == "t1"


async def test_whoever_takes_a_look_puts_it_off_and_no_two_take_the_same(either):
    store, other = ValkeyBlobs(either, "a"), ValkeyBlobs(either, "b")
    for number in range(3):
        await store.going(ref_of(number))
    assert await store.due(10, 60.0) == []
    await either.zadd("blobs:{bl0}:due", {ref_of(n).encode(): 0 for n in range(3)})
    taken = await store.due(2, 60.0)
    assert len(taken) == 2
    left = await other.due(10, 60.0)
    assert {due.ref for due in (*taken, *left)} == {ref_of(n) for n in range(3)}
    await store.leave(taken[0], None)
    # Somebody asks for a look while another looks: that is not put off.
    await other.going(taken[1].ref)
    at = await either.zscore("blobs:{bl0}:due", taken[1].ref.encode())
    await store.leave(taken[1]._replace(at_ms=taken[1].at_ms + 1), None)
    assert await either.zscore("blobs:{bl0}:due", taken[1].ref.encode()) == at
    assert await either.zcard("blobs:{bl0}:due") == 2
