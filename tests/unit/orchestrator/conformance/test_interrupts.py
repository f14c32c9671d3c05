"""Interrupts of runs: both stores write, refuse and answer alike, and nothing of it takes more than one hash tag."""

from dataclasses import replace

import orjson
import pytest

from services.common.approval import digest
from services.orchestrator.approvals.records import OUTCOME_UNKNOWN, Decision, Interrupt, Listed, Standing
from services.orchestrator.records import Fenced, Park
from services.orchestrator.testing.runs import CANCELLED, LEASE_S, accept, done, log_of, new_ref

CRASHES = 9
ANA = {"tenant": "acme", "user": "ana"}


def question(ref, clock, number=0, **fields):
    """A question about a call of the run's first step."""
    at = clock.now_ms
    return replace(
        Interrupt(
            f"{ref.run_id}/1/{number}", "tool_call", ref.run_id, ref.thread_id, 1, number, "c", ANA, "wipe", "1", '{"n":1}',
            digest(b'{"n":1}'), "{}", "by_tool", at, at + 60_000, "reject",
        ),
        **fields,
    )  # fmt: skip


@pytest.fixture
async def owned(store, backend):
    """A run, its epoch, and one question that was put."""
    ref = new_ref()
    assert await accept(store, ref) == "new"
    epoch = (await store.claim(ref, LEASE_S, CRASHES)).record.epoch
    (raised,), written = await store.raise_interrupts(ref, epoch, "", [question(ref, backend.clock)])
    assert written.first_seq
    return ref, epoch, raised


def answered(interrupt, outcome="approved", user="ana"):
    return interrupt.answered(outcome, Decision("approve", user, 5, interrupt.digest))


async def settle(store, ref, before, after, **how):
    return await store.settle_interrupt(ref, before, after, "", **how)


async def kinds(store, ref):
    return [event.type for event in await log_of(store, ref)]


async def test_a_question_is_written_with_its_event_and_put_again_changes_nothing(store, other, owned, backend):
    ref, epoch, raised = owned
    another = question(ref, backend.clock, arguments='{"n":2}')
    (kept, fresh), written = await store.raise_interrupts(ref, epoch, "", [another, question(ref, backend.clock, 1)])
    assert (kept, kept.arguments, fresh.call) == (raised, '{"n":1}', 1)
    assert written.first_seq == written.last_seq
    events = await log_of(store, ref)
    assert [e.type for e in events][-2:] == ["interrupt_raised", "interrupt_raised"]
    assert orjson.loads(events[-2].data)["arguments_digest"] == raised.digest
    again, nothing = await store.raise_interrupts(ref, epoch, "", [another])
    assert (again, nothing.first_seq) == ([raised], 0)
    assert await other.interrupts(ref) == [raised, fresh]
    assert await other.interrupt(ref, f"{ref.run_id}/9/9") is None


async def test_a_former_owner_and_a_run_that_was_let_go_put_no_questions(store, owned, backend):
    ref, epoch, _ = owned
    with pytest.raises(Fenced):
        await store.raise_interrupts(ref, epoch - 1, "", [question(ref, backend.clock, 1)])
    await store.write(ref, epoch, 1, "", [], mode="p", park=Park(0, 0))
    with pytest.raises(Fenced):
        await store.raise_interrupts(ref, epoch, "", [question(ref, backend.clock, 1)])
    assert len(await store.interrupts(ref)) == 1


async def test_an_answer_its_event_and_its_command_are_one_and_the_second_finds_it_changed(store, other, owned):
    ref, epoch, raised = owned
    await store.write(ref, epoch, 1, "", [], mode="p", park=Park(0, 0))
    first = await settle(other, ref, raised, answered(raised))
    assert (first.verdict, first.posted.number, first.posted.woken) == ("done", 1, True)
    assert (await settle(store, ref, raised, answered(raised, "rejected", "bo"))).verdict == "changed"
    (command,) = await store.commands(ref, 0)
    assert (command.kind, command.data["outcome"], command.data["by"]) == ("decision", "approved", ["ana"])
    assert (await store.interrupt(ref, raised.interrupt_id)).outcome == "approved"
    assert (await kinds(store, ref)).count("interrupt_resolved") == 1
    assert (await store.run(ref)).status == "queued"


async def test_a_change_that_is_no_answer_is_told_and_wakes_nobody(store, owned):
    ref, epoch, raised = owned
    await store.write(ref, epoch, 1, "", [], mode="p", park=Park(0, 0))
    passed = replace(raised, decisions=(Decision("delegate", "ana", 5, to="user:bo"),))
    found = await settle(store, ref, raised, passed)
    assert (found.verdict, found.posted.woken, await store.commands(ref, 0)) == ("done", False, [])
    assert (await kinds(store, ref))[-1] == "interrupt_updated"
    assert (await store.run(ref)).status == "waiting"
    assert (await settle(store, ref, await store.interrupt(ref, raised.interrupt_id), answered(passed))).verdict == "done"


async def test_time_decides_on_the_stores_clock_and_people_only_before_it(store, owned, backend):
    ref, _, raised = owned
    late = raised.answered("expired", Decision("expire", "", 5))
    assert (await settle(store, ref, raised, late, by_time=True)).verdict == "young"
    await backend.advance(60)
    assert (await settle(store, ref, raised, answered(raised))).verdict == "expired"
    assert (await settle(store, ref, raised, late, by_time=True)).verdict == "done"
    assert (await settle(store, ref, raised, late, by_time=True)).verdict == "changed"


async def test_of_a_run_that_is_cancelled_ended_or_not_there_nothing_is_decided(store, owned, backend):
    ref, epoch, raised = owned
    assert (await settle(store, new_ref(), raised, answered(raised))).verdict == "none"
    unknown = question(ref, backend.clock, 7, kind=OUTCOME_UNKNOWN)
    assert (await settle(store, ref, unknown, answered(unknown))).verdict == "none"
    await store.cancel(ref, "", CANCELLED, "")
    assert (await settle(store, ref, raised, answered(raised))).verdict == "cancelled"
    await store.write(ref, epoch, 1, "", [], mode="f", terminal=done())
    found = await settle(store, ref, raised, answered(raised))
    assert (found.verdict, found.status) == ("ended", "succeeded")
    assert "interrupt_resolved" not in await kinds(store, ref)


async def test_many_questions_and_how_far_their_runs_are_are_read_at_once_and_as_they_are_one_by_one(store, other, owned):
    ref, _, raised = owned
    second, missing = new_ref(), new_ref()
    assert await accept(store, second) == "new"
    entries = [Listed(r.thread_id, f"{r.run_id}/1/{n}", 1) for r in (missing, ref, second) for n in (0, 1)]
    found = await other.interrupts_at("acme", entries)
    assert found == [None, None, raised, None, None, None]
    assert found[2].raw == raised.raw
    assert await other.interrupts_at("globex", entries) == [None] * 6
    assert await other.interrupts_at("acme", []) == await other.standing([]) == []
    assert await other.standing([ref, missing, second]) == [Standing("running"), Standing(), Standing("queued")]
    await store.cancel(ref, "", CANCELLED, "")
    await store.write(second, (await store.claim(second, LEASE_S, CRASHES)).record.epoch, 1, "", [], mode="f", terminal=done())
    found = await other.standing([ref, second])
    assert found == [Standing("running", True), Standing("succeeded")]
    assert [run.over for run in (*found, Standing())] == [False, True, True]


async def test_a_tenants_lists_hold_what_was_put_newest_first_and_each_once(store, other, owned):
    ref, _, _ = owned
    second = ref._replace(run_id="run-b")
    await store.enlist(ref, ["r/1/0", "r/1/1"])
    await other.enlist(second, ["run-b/1/0"])
    await store.enlist(ref, ["r/1/0"])
    listed = await other.listed("acme", open_only=True, before=0, size=9)
    assert [entry.interrupt_id for entry in listed] == ["run-b/1/0", "r/1/1", "r/1/0"]
    assert [e.interrupt_id for e in await store.listed("acme", open_only=False, before=listed[0].position, size=1)] == ["r/1/1"]
    await store.delist("acme", [Listed(ref.thread_id, "r/1/1", 0)], gone=False)
    assert [e.interrupt_id for e in await store.listed("acme", open_only=True, before=0, size=9)] == ["run-b/1/0", "r/1/0"]
    assert len(await store.listed("acme", open_only=False, before=0, size=9)) == 3
    await store.delist("acme", [Listed(ref.thread_id, "r/1/1", 0)], gone=True)
    assert len(await store.listed("acme", open_only=False, before=0, size=9)) == 2
    assert await store.listed("globex", open_only=False, before=0, size=9) == []
    assert await store.whereabouts("acme", ref.run_id) == ref
    assert await store.whereabouts("globex", ref.run_id) is None
