"""Runs for a thread that has one at work, and messages to it: any order of callers, owners and crashes, on every store there is."""

import asyncio
import uuid

import orjson
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.orchestrator.records import TERMINAL_EVENTS, Draft, Fenced, RunRef, Schedule, Terminal
from services.orchestrator.testing.runs import CANCELLED, QUEUED, log_of, spec
from services.orchestrator.testing.stores import Edit, Site, stepped_lua

LEASE_S, CRASHES = 10, 1000
POLICIES = ["", "reject", "steer", "interrupt", "rollback"]
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["accept"] * 3 + ["claim"] * 4 + ["steer"] * 3 + ["apply"] * 2 + ["finish"] * 3 + ["delta", "release", "expire"]),
        st.sampled_from(POLICIES),
        st.integers(0, 1),
    ),
    min_size=8,
    max_size=35,
)
LISTS = {"memory": 80, "valkey": 25, "cluster": 5}


class Thread:
    """One thread, two owners, and what must be true of it after each action."""

    def __init__(self, backend):
        self.backend, self.thread_id = backend, uuid.uuid4().hex
        self.store = backend.process("caller")
        self.owners = [backend.process(name) for name in ("one", "two")]
        self.line, self.ended, self.cut = [], [], {}
        self.held: list[dict] = [{}, {}]
        self.steers, self.unread = {}, {}

    async def play(self, actions):
        for name, policy, who in actions:
            await getattr(self, name)(policy, who)
            await self.check()
        while self.line:
            await self.expire("", 0)
            await self.claim("", 0)
            await self.finish("", 0)
            await self.check()
        await self.check_log()

    async def accept(self, policy, who):
        ref = RunRef("acme", self.thread_id, uuid.uuid4().hex)
        reservation = await self.store.reserve(ref, "ana", 0, "", "")
        before = list(self.line)
        accepted = await self.store.accept(ref, "ana", spec(self.thread_id), "stable", reservation, "", (QUEUED, CANCELLED), on_busy=policy)
        if policy in ("reject", "steer") and before:
            assert (accepted.verdict, accepted.at_work) == ("busy", before[0].run_id)
            assert await self.store.run(ref) is None, "who is refused leaves no run"
            return
        assert accepted.verdict == "new"
        self.line.append(ref)
        if policy in ("interrupt", "rollback"):
            assert [cut.run_id for cut in accepted.cut] == [other.run_id for other in before]
            for other, cut in zip(before, accepted.cut, strict=True):
                self.cut[other] = policy
                assert await self.store.cut_by(other) == policy
                if cut.status == "cancelled":
                    self.line.remove(other)
                    self.ended.append(other)

    async def claim(self, policy, who):
        for ref in list(self.line):
            claim = await self.owners[who].claim(ref, LEASE_S, CRASHES)
            if claim.verdict == "claimed":
                assert ref == self.line[0], "only the first of the line is worked on"
                assert claim.record.cancel_requested == (ref in self.cut)
                self.held[who][ref] = [claim.record.epoch, 0]

    async def write(self, who, ref, **parts):
        """True where this process still owns the run."""
        epoch, number = self.held[who][ref]
        self.held[who][ref][1] = number + 1
        try:
            await self.owners[who].write(ref, epoch, number + 1, "", parts.pop("events", []), **parts)
        except Fenced:
            del self.held[who][ref]
            return False
        return True

    def own(self, who):
        return next((ref for ref in self.held[who] if ref in self.line), None)

    async def delta(self, policy, who):
        if (ref := self.own(who)) is not None:
            await self.write(who, ref, events=[Draft("message_delta", b"{}", True)])

    async def apply(self, policy, who):
        if (ref := self.own(who)) is None:
            return
        unread = self.unread.get(ref, [])
        events = [Draft("steer_applied", b'{"number":%d}' % number) for number in unread]
        if await self.write(who, ref, events=events, mode="c", state=b"{}"):
            self.unread[ref] = []

    async def release(self, policy, who):
        if (ref := self.own(who)) is not None:
            await self.write(who, ref, mode="r")

    async def finish(self, policy, who):
        """As a driver ends a run: cancelled where it was asked to, unless its answer was faster, which `policy` decides."""
        if (ref := self.own(who)) is None:
            return
        cut = self.cut.get(ref, "")
        if cut and policy in ("interrupt", "rollback"):
            outbox = b"{}" if await self.store.cut_by(ref) == "interrupt" else b""
            terminal = Terminal("cancelled", b"{}", "run_cancelled", b"{}", outbox)
        else:
            outbox, terminal = b"{}", Terminal("succeeded", b"{}", "run_finished", b"{}", b"{}")
        if await self.write(who, ref, mode="f", terminal=terminal):
            self.line.remove(ref)
            self.ended.append(ref)
            waiting = ref.run_id in await self.store.outbox_waiting(ref)
            assert waiting == (bool(outbox) and cut != "rollback"), "what was rolled back leaves nothing in the conversation"

    async def expire(self, policy, who):
        await self.backend.advance(LEASE_S + 1)

    async def steer(self, policy, who):
        at_work = await self.store.at_work(RunRef("acme", self.thread_id, "-"), "ana")
        assert at_work == (self.line[0].run_id if self.line else "")
        assert await self.store.at_work(RunRef("acme", self.thread_id, "-"), "eve") == ""
        for ref in [*self.line[:1], *self.ended[-1:]]:
            posted = await self.store.post(ref, "steer", b'{"text":"x"}')
            assert posted.verdict == ("posted" if ref in self.line else "ended")
            if posted.verdict == "posted":
                self.steers.setdefault(ref, []).append(posted.number)
                self.unread.setdefault(ref, []).append(posted.number)

    async def check(self):
        running = 0
        for ref in self.line:
            record = await self.store.run(ref)
            assert not record.ended
            assert record.cancel_requested == (ref in self.cut), "asked once, it stays asked"
            running += record.status == "running"
        assert running <= 1
        for ref in self.ended:
            assert (await self.store.run(ref)).ended

    async def check_log(self):
        events = await log_of(self.store, RunRef("acme", self.thread_id, "-"))
        for ref in self.ended:
            own = [event for event in events if event.run_id == ref.run_id]
            assert [event.type in TERMINAL_EVENTS for event in own] == [False] * (len(own) - 1) + [True]
            numbers = {kind: [orjson.loads(e.data)["number"] for e in own if e.type == kind] for kind in STEERING}
            assert numbers["steer_received"] == self.steers.get(ref, [])
            assert numbers["steer_applied"] + numbers["steer_dropped"] == self.steers.get(ref, []), "each is read once or told as dropped"
            dropped = len(numbers["steer_dropped"])
            assert [event.type for event in own[-1 - dropped : -1]] == ["steer_dropped"] * dropped


STEERING = ("steer_received", "steer_applied", "steer_dropped")


def test_any_order_of_texting_working_and_crashing_keeps_one_line_and_every_message(site):
    @settings(max_examples=LISTS[site.name], deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(actions=ACTIONS)
    def holds(actions):
        asyncio.run(_play(site, actions))

    holds()


async def _play(site, actions):
    async with site.open() as backend:
        await Thread(backend).play(actions)


async def test_text_of_a_stopped_run_outlives_its_owner(backend, store, other):
    """langgraph#5672: what was shown when it was stopped is neither lost nor taken back."""
    thread = Thread(backend)
    for stopped in (True, False):
        thread.line.clear()
        thread.thread_id = uuid.uuid4().hex
        await thread.accept("", 0)
        (ref,) = thread.line
        await thread.claim("", 0)
        await thread.delta("", 0)
        if stopped:
            posted = await store.post(ref, "stop", b"{}", key="stop:k")
            assert (posted.number, (await store.post(ref, "stop", b"{}", key="stop:k")).verdict) == (1, "again")
            assert (await store.posted(ref, "stop:k"), await store.posted(ref, "stop:other")) == (1, 0)
        await backend.advance(LEASE_S + 1)
        claim = await other.claim(ref, LEASE_S, CRASHES)
        void = [event.type for event in await log_of(store, ref)].count("attempt_superseded")
        assert (void, bool(claim.record.provisional_from)) == ((0, True) if stopped else (1, False))


async def test_who_was_refused_and_asks_again_under_the_same_key_waits_for_a_slot(backend, store):
    """The slot of the first try went back, and is another run's by now."""
    thread = Thread(backend)
    await thread.accept("", 0)
    ref = RunRef("acme", thread.thread_id, uuid.uuid4().hex)

    async def ask():
        found = await store.reserve(ref, "ana", 2, "k", "print")
        events = (QUEUED, CANCELLED)
        accepted = await store.accept(ref, "ana", spec(thread.thread_id), "stable", found, "", events, on_busy="reject")
        return found, accepted.verdict

    reserved, verdict = await ask()
    assert (reserved.verdict, reserved.held, verdict) == ("new", False, "busy")
    await store.settle(ref)
    another = RunRef("acme", uuid.uuid4().hex, uuid.uuid4().hex)
    assert (await store.reserve(another, "ana", 2, "", "")).verdict == "new"
    await thread.claim("", 0)
    await thread.finish("", 0)
    reserved, verdict = await ask()
    assert (reserved.verdict, reserved.held, verdict) == ("existing", True, "new")
    assert (await store.inspect(ref))[0] == "held"
    assert not await store.admit(ref, Schedule(slots=2)), "beside the other it would be one too many"
    await store.settle(another)
    assert await store.admit(ref, Schedule(slots=2))


# What is broken on purpose, each of which must be found out.
DEFECTS = {
    "what was rolled back is remembered": Edit("run.lua", "~= '' and run[10] ~= 'rollback' then", "~= '' then"),
    "who is refused is accepted": Edit("busy.lua", "if not plain and (policy == 'reject' or policy == 'steer') then", "if false then"),
    "only the first of the line is cut off": Edit("busy.lua", "for _, other in ipairs(line) do", "for _, other in ipairs({line[1]}) do"),
    "what was applied is dropped as well": Edit("run.lua", "if args[i] == 'steer_applied' then", "if false then"),
    "what was dropped is not told": Edit("thread.lua", "redis.call('HGET', keys[3], 'steers') or ''", "''"),
}


@pytest.mark.system
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_of_a_busy_thread_is_found(_state_server, defect):
    @settings(
        max_examples=400, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )  # fmt: skip
    @given(actions=ACTIONS)
    def holds(actions):
        asyncio.run(_play(Site("valkey", _state_server, lua), actions))

    with stepped_lua([DEFECTS[defect]]) as lua, pytest.raises(AssertionError):
        holds()
