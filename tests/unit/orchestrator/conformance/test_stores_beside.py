"""The stores beside that of runs, each alone and in cluster mode: erasures, progress of operations on many runs, quotas.

Webhooks are held against both in `test_webhooks.py`, interrupts in `test_interrupts.py`, schedules and audit records in
`tests/integration/test_schedule_firing.py`, all of it together in `test_orchestrator_erasure_kinds.py`.
"""

import pytest

from services.orchestrator.adapters.bulk_cancel_store import ValkeyProgress
from services.orchestrator.adapters.erasure_store import ValkeyErasures
from services.orchestrator.adapters.quota_store import ValkeyQuota
from services.orchestrator.adapters.store import Store
from services.orchestrator.adapters.store_keys import ENDED
from services.orchestrator.adapters.webhook_store import ValkeyWebhooks
from services.orchestrator.erasure_records import SERVICES, ErasureRef, Part
from services.orchestrator.quota import Occupancy
from services.orchestrator.records import RunRef, Schedule
from services.orchestrator.testing.runs import CANCELLED, QUEUED, done, spec
from services.orchestrator.webhooks.records import Endpoint, Message, message_id_of
from services.orchestrator.webhooks.rotation import Secret

TENANTS = pytest.mark.parametrize("tenant", ["acme", "a}b{c/ü %"])
LEASE_S = 10


async def accepted(store, ref, user, schedule=None, slots=0):
    """A run of `user`; answers what was reserved for it."""
    reservation = await store.reserve(ref, user, slots, "", "", queued=9, delayed=9, schedule=schedule or Schedule())
    await store.accept(ref, user, spec(ref.thread_id), "stable", reservation, "", (QUEUED, CANCELLED))
    return reservation


async def ended(store, ref, user):
    """A run that has come to its end, of which nothing is on its way."""
    await accepted(store, ref, user)
    epoch = (await store.claim(ref, LEASE_S, 100)).record.epoch
    await store.write(ref, epoch, 1, "", [], mode="f", terminal=done())
    await store.settle(ref)


@TENANTS
async def test_an_erasure_from_its_beginning_to_its_receipt(either, tenant):
    one, two = (ValkeyErasures(either, name) for name in ("one", "two"))
    ref = ErasureRef(tenant, "era_1")
    await one.note(ref, 0.0)
    assert await one.begin(ref, "ana {}", "digest", "print") == ("new", "era_1")
    assert await two.begin(ref, "ana {}", "digest", "print") == ("known", "era_1")
    assert await two.begin(ref, "bob", "digest", "another") == ("mismatch", "era_1")
    assert await two.begin(ErasureRef(tenant, "era_2"), "ana {}", "digest", "other") == ("joined", "era_1")
    assert await two.due(10, 30.0) == [ref]
    assert await one.due(10, 30.0) == []
    for service in SERVICES:
        await one.tell(ref, service, Part(1, "", {"x": 2}), done=True)
        # What is done stays so.
        await two.tell(ref, service, Part(9, "AWAY"), done=False)
    await one.tell(ref, "orchestrator", Part(2, "RUNS_OPEN"), done=False)
    record = await two.record(ref)
    assert (record.user, record.done, record.parts["orchestrator"].reason) == ("ana {}", False, "RUNS_OPEN")
    assert all(record.parts[service].done and record.parts[service].erased == {"x": 2} for service in SERVICES)
    await one.finish(ref, "ana {}")
    await one.settle(ref)
    receipt = await two.record(ref)
    assert (receipt.user, receipt.done, receipt.digest) == ("", True, "digest")
    assert await one.due(10, 30.0) == []
    assert await one.begin(ErasureRef(tenant, "era_3"), "ana {}", "digest", "new") == ("new", "era_3")
    await one.want_files(0.0)
    taken = await two.take_files(30.0, 0.0)
    assert taken
    assert not await one.take_files(30.0, 0.0)
    await two.done_files(taken)
    assert not await one.take_files(0.0, 0.0)


@TENANTS
async def test_what_an_erasure_deletes_is_gone_and_nothing_else(either, tenant):
    store, erasures, webhooks = Store(either, "one"), ValkeyErasures(either, "one"), ValkeyWebhooks(either, "one")
    mine, open_, yours = (RunRef(tenant, f"t-{name}", f"r-{name}") for name in ("mine", "open", "yours"))
    await ended(store, mine, "ana")
    await ended(store, yours, "bob")
    await accepted(store, open_, "ana")
    await webhooks.add(tenant, Endpoint("whk_1", "https://a/", ("run.finished",), "", 0, (Secret("whsec_x"),)), 5)
    for ref, user in ((mine, "ana"), (yours, "bob")):
        await webhooks.fan_out(tenant, Message(message_id_of(ref), "run.finished", ref.run_id, b"{}", user), ["whk_1"])
        assert (await store.add_feedback(ref, "f", "p", b'{"v":1}', b"{}", 10, ""))[0] == "recorded"
    assert sorted(await erasures.runs(tenant, "ana")) == [mine, open_]
    assert await erasures.threads(tenant, "ana") == ["t-mine", "t-open"]
    still_open, _ = await erasures.unquiet([mine, open_])
    assert still_open == [open_]
    assert not await erasures.delete_threads(tenant, ["t-open"]), "a run of it is in line"
    await store.cancel(open_, "", CANCELLED, "")
    await store.settle(open_)
    assert await erasures.unquiet([mine, open_]) == ([], 0)
    before = {key: await either.dump(key) for key in await either.keys("*yours*")}
    assert before
    assert mine.encode().encode() in await either.zrange(ENDED, 0, -1)
    await erasures.delete_runs([mine, open_])
    await erasures.delete_messages(tenant, "ana")
    assert await erasures.delete_threads(tenant, ["t-mine", "t-open"])
    await erasures.finish(ErasureRef(tenant, "era_1"), "ana")
    assert {key: await either.dump(key) for key in await either.keys("*yours*")} == before
    assert await either.zrange(ENDED, 0, -1) == [yours.encode().encode()]
    assert not [key for name in ("mine", "open") for key in await either.keys(f"*{name}*")]
    assert [one.ref.run_id for one in await store.listed_feedback(tenant, 0, 0, 0, 10)] == ["r-yours"]
    assert [delivery.run_id for delivery, _ in await webhooks.deliveries(tenant, "whk_1", 0, 10)] == ["r-yours"]
    assert (await erasures.runs(tenant, "ana"), await erasures.runs(tenant, "bob")) == ([], [yours])


@TENANTS
async def test_progress_of_an_operation_is_kept_by_its_name(either, tenant):
    store = ValkeyProgress(either, "one")
    assert await store.progress(tenant, "a/b {}") is None
    for progress in (b"[1]", b"[2]"):
        await store.keep_progress(tenant, "a/b {}", progress)
        assert await store.progress(tenant, "a/b {}") == progress
    assert await store.progress("other", "a/b {}") is None


@TENANTS
async def test_a_quota_counts_what_runs_waits_and_lies_ahead(either, tenant):
    store, quota = Store(either, "one"), ValkeyQuota(either, "one")
    assert await quota.occupancy(tenant) == Occupancy(0, 0, 0)
    ahead = Schedule(slots=1, start_ms=1 << 42)
    for n, schedule in enumerate([Schedule(), Schedule(slots=1), Schedule(slots=1), ahead, ahead, ahead]):
        await accepted(store, RunRef(tenant, f"t{n}", f"r{n}"), "ana", schedule, slots=1)
    assert await quota.occupancy(tenant) == Occupancy(1, 2, 3)
    assert await quota.occupancy("other") == Occupancy(0, 0, 0)
