"""What the store holds of a thread once that is deleted: every key and every entry of every list, before and after."""

import time

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as approvals_pb
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import testing
from services.orchestrator.testing.harness import served, settings_for, write_config
from services.orchestrator.testing.whole_threads import TWO, create, delete, roll_back, said

NAME = "gone-thread"
# What may name a deleted thread: the tombstone that keeps its id from being taken again, and answers to requests that are repeated.
# Both end by themselves.
MORTAL = (f"t:{{acme/{NAME}}}:meta", "tn:{acme}:idem:CreateRun:")


@pytest.fixture
def settings(identities, behind, state_url, tmp_path, impatient):
    # Runs that have ended are looked at before their thread is deleted, and next when their retention ends.
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"), segments_after_s=0.2)


async def entries(valkey, key):
    """All that stands in a key, as (where, what)."""
    match (await valkey.type(key)).decode():
        case "hash":
            return [(field, value) for field, value in (await valkey.hgetall(key)).items()]
        case "zset":
            return [(member, b"") for member in await valkey.zrange(key, 0, -1)]
        case "list":
            return [(value, b"") for value in await valkey.lrange(key, 0, -1)]
        case "set":
            return [(member, b"") for member in await valkey.smembers(key)]
        case "stream":
            return [(number, repr(fields).encode()) for number, fields in await valkey.xrange(key)]
    return [(await valkey.get(key) or b"", b"")]


async def mentions(valkey, words):
    """Keys that name one of the words, themselves or in what they hold."""
    found = set()
    for key in await valkey.keys("*"):
        held = [key, *(part for entry in await entries(valkey, key) for part in entry)]
        if any(word.encode() in part for word in words for part in held):
            found.add(key.decode())
    return found


async def lived(client, ttl_s=None):
    """A thread with every kind of thing that a list leads to; the ids of its runs."""
    await create(client, NAME, ttl_s)
    ids = [(await client.start("say one", thread_id=NAME, agent="helper", idempotency_key="k")).run_id]
    await client.wait(ids[0])
    with client.calling():
        await client.runs.RecordFeedback(pb.RecordFeedbackRequest(run_id=ids[0], rating=4, text="fine"))
    ids.append((await said(client, TWO, NAME)).run_id)
    ids.append((await said(client, "say two", NAME)).run_id)
    await roll_back(client, NAME, pb.Checkpoint(run_id=ids[1]))
    answered = await client.start('tool send_mail {"to":"ana"}', thread_id=NAME, agent="careful")
    (question,) = await testing.eventually_async(lambda: client.asked(answered.run_id), "it asks")
    await client.decide(question.approval_id, approve=approvals_pb.Approve())
    await client.wait(answered.run_id)
    ids.append(answered.run_id)
    if ttl_s is not None:
        return ids
    asking = await client.start('tool send_mail {"to":"bob"}', thread_id=NAME, agent="careful")
    await testing.eventually_async(lambda: client.asked(asking.run_id), "it asks as well")
    later = await client.start("say later", thread_id=NAME, start_at=Timestamp(seconds=int(time.time()) + 3_600))
    behind_it = await client.start("say after", thread_id=NAME)
    return [*ids, asking.run_id, later.run_id, behind_it.run_id]


@pytest.mark.parametrize("how", ["asked", pytest.param("expired", marks=pytest.mark.system)])
async def test_a_thread_that_is_deleted_stands_in_no_list_any_more(identities, behind, settings, valkey, how):
    async with served(settings, identities) as client:
        ids = await lived(client, 3 if how == "expired" else None)
        words = [NAME, *ids]
        assert len(await mentions(valkey, words)) > 10
        if how == "asked":
            assert await delete(client, NAME)

        async def left():
            return {key for key in await mentions(valkey, words) if not key.startswith(MORTAL)}

        async def nothing():
            return not await left()

        try:
            await testing.eventually_async(nothing, "nothing leads to it")
        except AssertionError:
            raise AssertionError(await left()) from None
        for key in await mentions(valkey, words):
            assert await valkey.pttl(key) > 0, key
