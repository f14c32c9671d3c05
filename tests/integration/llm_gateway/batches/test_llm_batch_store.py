"""Leases and fences of batches in the store, and how many replicas meet in it."""

import asyncio
from dataclasses import replace

import pytest

from services.common import testing
from services.common.accounts import Accounts, TeamRecord
from services.common.errors import IdempotencyMismatch, Unauthenticated
from services.llm_gateway.adapters.batch_store import DUE, ValkeyBatches, member
from services.llm_gateway.adapters.batch_store_files import ValkeyFiles
from services.llm_gateway.batches.ports import Claim, LeaseLost
from services.llm_gateway.batches.records import BatchSpec, FileRecord, Progress
from services.llm_gateway.money import Usage

SPEC = BatchSpec("/v1/embeddings", "file-1", "24h", 86400, testing.principal_of(), False, {"a": "b"})
PROGRESS = Progress(10, 6, 1, Usage(input=5, output=7, cost_picousd=123))


@pytest.fixture
def replicas(valkey):
    return [ValkeyBatches(valkey, f"replica-{n}") for n in range(5)]


async def made(replicas, batch_id: str = "batch_1"):
    return await replicas[0].create("acme", batch_id, SPEC, "print")


def output(id_: str) -> FileRecord:
    return FileRecord(id_, "acme", "ana", "key", f"{id_}.jsonl", "batch_output", 5, 1000)


async def test_one_of_many_gets_the_lease_and_the_next_epoch_fences_it(replicas, valkey):
    record = await made(replicas)
    assert (record.status, record.spec) == ("validating", SPEC)
    assert record.expires_ms - record.created_ms == 86400 * 1000
    claims = await asyncio.gather(*(replica.claim("acme", "batch_1", 0.3) for replica in replicas))
    (held,) = [claim for claim in claims if isinstance(claim, Claim)]
    assert claims.count(False) == len(replicas) - 1
    assert held.epoch == 1
    assert await replicas[0].due(10) == []

    async def free():
        return list(await replicas[0].due(10)) == [("acme", "batch_1")]

    await testing.eventually_async(free, "the lease runs out")
    claims = await asyncio.gather(*(replica.claim("acme", "batch_1", 60) for replica in replicas))
    (next_,) = [claim for claim in claims if isinstance(claim, Claim)]
    assert next_.epoch == 2
    zombie = replicas[0]
    with pytest.raises(LeaseLost):
        await zombie.renew(held, 60, PROGRESS, enter="finalizing")
    with pytest.raises(LeaseLost):
        await zombie.finish(held, "completed", PROGRESS, {"output": output("file-z")})
    await zombie.release(held)
    assert await zombie.due(10) == []
    assert (await zombie.get("acme", "batch_1")).progress == Progress()
    # Behind the end, what a holder without a lease may have left is looked for once more.
    await replicas[1].finish(next_, "completed", PROGRESS, {})
    await replicas[1].forget_due("acme", "batch_1")
    await zombie.release(held)
    assert list(await zombie.due(10)) == [("acme", "batch_1")]
    assert await zombie.claim("acme", "batch_1", 60) is True
    assert await ValkeyFiles(valkey).get("acme", "file-z") is None


async def test_the_end_is_written_once_with_its_files(replicas, valkey):
    await made(replicas)
    claim = await replicas[0].claim("acme", "batch_1", 60)
    assert (await replicas[0].renew(claim, 60, PROGRESS, enter="in_progress", model="m", provider={"x": 1})).cancelling is False
    found = await replicas[1].get("acme", "batch_1")
    assert (found.status, found.model, found.provider, found.progress) == ("in_progress", "m", {"x": 1}, PROGRESS)
    files = {"output": output("file-o"), "error": output("file-e")}
    answers = await asyncio.gather(*(r.finish(claim, "completed", PROGRESS, files) for r in replicas), return_exceptions=True)
    assert [answer for answer in answers if not isinstance(answer, LeaseLost)] == ["completed"]
    found = await replicas[1].get("acme", "batch_1")
    assert (found.status, found.output_file_id, found.error_file_id) == ("completed", "file-o", "file-e")
    page = await ValkeyFiles(valkey).list("acme", after="", limit=10, purpose="", ascending=False)
    assert {file.id for file in page.items} == {"file-o", "file-e"}
    # Whoever finds it in what is due cleans up behind a holder that died here.
    assert await replicas[1].claim("acme", "batch_1", 60) is True
    assert await valkey.pttl("llm:{acme}:batch:batch_1") > 0


async def test_a_cancellation_wins_over_every_end_but_failure(replicas):
    for number, (status, final) in enumerate([("completed", "cancelled"), ("expired", "cancelled"), ("failed", "failed")]):
        name = f"batch_{number}"
        await made(replicas, name)
        claim = await replicas[0].claim("acme", name, 60)
        assert (await replicas[1].cancel("acme", name))[0]
        assert (await replicas[0].renew(claim, 60, enter="finalizing")).cancelling
        assert (await replicas[1].get("acme", name)).status == "cancelling"
        assert await replicas[0].finish(claim, status, PROGRESS, {}) == final
        assert not (await replicas[1].cancel("acme", name))[0]
    assert await replicas[1].cancel("acme", "batch_x") is None


async def test_an_erased_batch_ends_without_a_trace(replicas, valkey):
    await made(replicas)
    claim = await replicas[0].claim("acme", "batch_1", 60)
    assert await replicas[1].erase("acme", "batch_1")
    assert (await replicas[0].renew(claim, 60)).erased
    assert await replicas[0].finish(claim, "completed", PROGRESS, {"output": output("file-o")}) == "erased"
    assert await replicas[1].get("acme", "batch_1") is None
    assert await ValkeyFiles(valkey).get("acme", "file-o") is None
    assert not await replicas[1].erase("acme", "batch_1")


async def test_the_same_key_is_the_same_batch_and_begins_at_once(replicas):
    records = await asyncio.gather(*(replica.create("acme", "batch_1", SPEC, "print") for replica in replicas))
    assert len({record.created_ms for record in records}) == 1
    assert list(await replicas[0].due(10)) == [("acme", "batch_1")]
    with pytest.raises(IdempotencyMismatch):
        await replicas[0].create("acme", "batch_1", SPEC, "other")


async def test_a_batch_that_was_announced_and_never_written_is_forgotten(replicas, valkey):
    await valkey.zadd(DUE, {member("acme", "batch_9"): 1})
    assert list(await replicas[0].due(10)) == [("acme", "batch_9")]
    assert await replicas[0].claim("acme", "batch_9", 60) is True
    await replicas[0].forget_due("acme", "batch_9")
    assert await replicas[0].due(10) == []


async def test_a_batch_that_nobody_looks_for_is_found_again_by_its_owner(replicas, valkey):
    await made(replicas)
    await valkey.delete(DUE)
    await replicas[0].get("acme", "batch_1")
    assert list(await replicas[0].due(10)) == [("acme", "batch_1")]


async def test_a_released_lease_is_free_at_once_or_after_a_pause(replicas):
    await made(replicas)
    claim = await replicas[0].claim("acme", "batch_1", 60)
    await replicas[0].release(claim)
    again = await replicas[1].claim("acme", "batch_1", 60)
    assert again.epoch == 2
    await replicas[1].release(again, 60)
    assert await replicas[0].due(10) == []


async def test_names_of_tenants_with_odd_characters_come_back_whole(replicas):
    await replicas[0].create("a:b/c é", "batch_1", SPEC, "print")
    assert list(await replicas[0].due(10)) == [("a:b/c é", "batch_1")]


async def test_a_stored_principal_may_act_as_long_as_its_key_and_its_holders(valkey):
    accounts = Accounts(valkey)
    keys = [await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=["*"], team="t") for _ in range(4)]
    principals = [key.record.principal() for key in keys]
    for principal in principals:
        await accounts.confirm(principal)
    await accounts.revoke("acme", keys[0].record.key_id)
    await accounts.keys.update(keys[1].record.key_id, "acme", lambda record: replace(record, blocked=True))
    await accounts.keys.update(keys[2].record.key_id, "acme", lambda record: replace(record, expires_at=1.0))
    # A rotation changes the secret and not the key.
    await accounts.keys.rotate(keys[3].record.key_id, "acme")
    await accounts.confirm(principals[3])
    for principal, reason in zip(principals, ["INVALID_API_KEY", "BLOCKED_API_KEY", "EXPIRED_API_KEY"], strict=False):
        with pytest.raises(Unauthenticated) as raised:
            await accounts.confirm(principal)
        assert raised.value.reason == reason
    with pytest.raises(Unauthenticated):
        await accounts.confirm(replace(principals[3], tenant="globex"))
    await accounts.teams.create(TeamRecord("acme", "t", blocked=True), "t")
    with pytest.raises(Unauthenticated):
        await accounts.confirm(principals[3])
