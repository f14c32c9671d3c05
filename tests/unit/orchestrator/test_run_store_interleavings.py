"""Any interleaving of owners, callers and crashes: the store keeps A1 to A5 and A10."""

import asyncio
import itertools
import uuid

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common.valkey import connect
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import TERMINAL_EVENTS, Draft, Fenced, RunRef, Terminal
from services.orchestrator.testing.runs import CANCELLED, accept, done, log_of

NAMES = ["claim", "claim", "delta", "delta", "checkpoint", "finish", "fail", "release", "cancel", "accept", "expire", "expire", "again"]
ACTIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 1), st.sampled_from([0, 0, 0, 1])), min_size=10, max_size=40)


class Owner:
    """One process: what it believes to own, right or wrong."""

    def __init__(self, store):
        self.store = store
        self.epochs: dict[RunRef, int] = {}
        self.numbers: dict[RunRef, int] = {}
        self.last: dict[RunRef, tuple] = {}

    async def act(self, action, ref):
        if action == "claim":
            claim = await self.store.claim(ref, 60, 100)
            if claim.verdict == "claimed":
                self.epochs[ref], self.numbers[ref] = claim.record.epoch, 0
            return claim.verdict
        if ref not in self.epochs:
            return "nothing"
        if action == "again":
            if ref not in self.last or self.last[ref][0] != self.epochs[ref]:
                return "nothing"
            _, number, parts, answer = self.last[ref]
            assert await self.store.write(ref, self.epochs[ref], number, "", **parts) == answer
            return "same"
        parts = {
            "delta": {"events": [Draft("message_delta", b"{}", True)] * 2},
            "checkpoint": {"events": [Draft("warning", b"{}")], "mode": "c", "state": b'{"v":1}', "messages": [b"m"]},
            "finish": {"events": [Draft("usage", b"{}")], "mode": "f", "terminal": done()},
            "fail": {"events": [], "mode": "f", "terminal": Terminal("failed", b"{}", "run_failed", b"{}")},
            "release": {"events": [], "mode": "r"},
        }[action]
        self.numbers[ref] += 1
        answer = await self.store.write(ref, self.epochs[ref], self.numbers[ref], "", **parts)
        self.last[ref] = (self.epochs[ref], self.numbers[ref], parts, answer)
        return "written"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_any_order_of_claims_writes_cancels_and_crashes_keeps_the_invariants(_state_server, actions):
    asyncio.run(_any_order(_state_server, actions))


async def _any_order(url, actions):
    client = connect(url)
    thread_id = uuid.uuid4().hex
    refs = [RunRef("acme", thread_id, uuid.uuid4().hex) for _ in range(2)]
    owners = [Owner(Store(client, "one")), Owner(Store(client, "two"))]
    store = owners[0].store
    cancelled, accepted, expired, epoch_holder = set(), set(), set(), {}
    try:
        await accept(store, refs[0])
        accepted.add(refs[0])
        for action, who, which in actions:
            owner, ref = owners[who], refs[which]
            if action == "accept":
                if ref not in accepted:
                    await accept(store, ref)
                    accepted.add(ref)
            elif action == "expire":
                # The owner is gone for longer than its lease.
                key = f"t:{{acme/{thread_id}}}:run:{ref.run_id}"
                if await client.hget(key, "status") == b"running":
                    await client.hset(key, "lease_until", 1)
                    expired.add(ref)
            elif action == "cancel":
                await store.request_cancel("acme", "ana", ref.run_id)
                if ref in accepted:
                    await store.cancel(ref, "", CANCELLED, "")
                cancelled.add(ref)
            else:
                before = await store.run(ref)
                stale = before is not None and (ref not in owner.epochs or owner.epochs[ref] != before.epoch or before.status != "running")
                try:
                    verdict = await owner.act(action, ref)
                except Fenced:
                    assert stale, "an owner was refused"
                    continue
                if verdict == "written":
                    assert not stale, "somebody wrote who is no owner"
                if verdict == "claimed":
                    assert before.status == "queued" or ref in expired, "a run was taken from its living owner"
                    expired.discard(ref)
                    epoch = owner.epochs[ref]
                    # An epoch is handed out once.
                    assert (ref, epoch) not in epoch_holder
                    epoch_holder[ref, epoch] = who
        await _check(store, refs, accepted, cancelled)
    finally:
        await client.aclose()


async def _check(store, refs, accepted, cancelled):
    events = await log_of(store, refs[0])
    # A3: contiguous, from 1, never reused.
    assert [e.seq for e in events] == list(range(1, len(events) + 1))
    for ref in refs:
        record = await store.run(ref)
        # A1: what was accepted is there.
        assert (record is not None) == (ref in accepted)
        if record is None:
            continue
        own = [e for e in events if e.run_id == ref.run_id]
        assert own[0].type == "run_queued"
        # A2: one terminal event, the last one, together with the state.
        terminal = [e for e in own if e.type in TERMINAL_EVENTS]
        assert len(terminal) == (1 if record.ended else 0)
        if record.ended:
            assert own[-1] is terminal[0]
            assert record.terminal_seq == terminal[0].seq
        # A5: provisional text belongs to an attempt, and attempts do not mix.
        attempts = [e.attempt for e in own]
        assert attempts == sorted(attempts)
        for earlier, later in itertools.pairwise(own):
            if later.attempt != earlier.attempt and later.attempt > 1 and earlier.type == "message_delta" and ref not in cancelled:
                assert later.type == "attempt_superseded"
        # A10: asked once, it stays asked.
        if ref in cancelled:
            assert record.cancel_requested or record.ended
