"""Any interleaving of owners, callers and crashes keeps what the store promises; a store that is broken on purpose is found out."""

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from services.common.errors import Overloaded
from services.orchestrator.records import Draft, Fenced, Written
from services.orchestrator.testing.interleavings import CRASHES, LOSSES, NAMES, Broken, Interleaving
from services.orchestrator.testing.memory_store_runs import ThreadSteps
from services.orchestrator.testing.stores import Edit, Site, stepped_lua

ACTIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 1), st.sampled_from([0, 0, 0, 1])), min_size=10, max_size=40)
LOST = st.lists(st.tuples(st.sampled_from(LOSSES), st.integers(0, 1), st.just(0)), min_size=20, max_size=40)
# Memory is looked at after every action and gets many lists; Valkey is the truth and gets fewer.
LISTS = {"memory": 60, "valkey": 20, "cluster": 5}


def test_any_order_of_claims_writes_cancels_and_crashes_keeps_the_promises(site):
    @settings(max_examples=LISTS[site.name], deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(actions=ACTIONS)
    def holds(actions):
        asyncio.run(_play(site, actions, watched=site.name == "memory"))

    holds()


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_run_is_given_up_when_so_many_owners_in_a_row_are_lost_and_never_else(site, budget):
    @settings(max_examples=LISTS[site.name] // 3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(actions=LOST)
    def holds(actions):
        asyncio.run(_play(site, actions, budget=budget, watched=site.name == "memory"))

    holds()


async def _play(site, actions, budget=CRASHES, **how):
    async with site.open() as backend:
        await Interleaving(backend, budget).play(actions, **how)


# An end in two steps: first what is shown, then, when the writer tries again, the state.
FIRST_HALF = """elseif mode == 'f' then
    if redis.call('HSETNX', keys[3], 'half', '1') == 1 then
      append(keys[1], keys[2], run_id, run[3], args[4], now, {args[finish + 3], '0', args[finish + 4]}, 1, 1)
      return redis.error_reply('NOREPLICAS for the second half')
    end"""
SECOND_HALF = """local function end_silently(keys, run_id, attempt, trace, now, status, result, kind, data)
  local last = tonumber(redis.call('HGET', keys[1], 'seq'))
  redis.call('HSET', keys[3], 'status', status, 'result', result, 'ended_ms', now, 'terminal_seq', last)
  redis.call('LREM', keys[4], 1, run_id)
  return last, redis.call('LINDEX', keys[4], 0) or ''
end

local function open("""
TWO_STEPS = [
    Edit("run.lua", "elseif mode == 'f' then", FIRST_HALF),
    Edit("run.lua", "terminal, following = terminate(keys,", "terminal, following = end_silently(keys,"),
    Edit("run.lua", "local count = tonumber(args[at])", "local count = redis.call('HGET', keys[3], 'half') and 0 or tonumber(args[at])"),
    Edit("thread.lua", "local function open(", SECOND_HALF),
]
# What is broken, and the promise that is found to be broken by it.
DEFECTS = {
    "the fence is gone": ("A4", [Edit("run.lua", "if run[1] ~= args[1] then return redis", "if false then return redis")]),
    "an end in two steps": ("A2", TWO_STEPS),
    "who has handed back goes on": ("A4", [Edit("run.lua", "if run[2] ~= 'running' then return redis", "if false then return redis")]),
    "an epoch is kept at a takeover": ("A4", [
        Edit("run.lua", "'epoch', tonumber(run[3]) + 1, 'attempt'", "'epoch', math.max(1, tonumber(run[3])), 'attempt'"),
    ]),
    "a living owner is overlooked": ("A4", [
        Edit("run.lua", "if status == 'running' and tonumber(run[2]) > now then return", "if false then return"),
    ]),
    "a repeated write is another write": ("A4", [Edit("run.lua", "if run[4] == args[2] then", "if false then")]),
    "text of a lost attempt stands": ("A5", [Edit("run.lua", "elseif run[6] and run[7]", "elseif false and run[7]")]),
    "messages of a checkpoint are lost": ("A9", [Edit("run.lua", "redis.call('RPUSH', keys[6], args[at])", "")]),
    "a cancel is forgotten": ("A10", [
        Edit("run.lua", "redis.call('HSET', keys[3], 'cancel', '1', 'cancel_reason', args[8])", "return {run[1], 0, now, '', 0}"),
    ]),
}  # fmt: skip


LENIENT = {
    "progress is overlooked": [Edit("run.lua", "redis.call('HSET', keys[3], 'crashes', 0)", "")],
    "a hand-over is a loss": [
        Edit("run.lua", "local attempt = tonumber(run[4])", "local attempt = tonumber(run[4])\nif attempt > 0 then status = 'running' end")
    ],
    "every process takes suspects": [Edit("run.lua", "and args[8] ~= '1'", "and false")],
    "a suspect is turned away for good": [Edit("run.lua", "and args[8] ~= '1'", "")],
    "one more than the budget": [Edit("run.lua", "if crashes >= most", "if crashes > most")],
}


def _play_until_broken(site, actions=ACTIONS, budget=CRASHES):
    @settings(
        max_examples=1000,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(actions=actions)
    def holds(actions):
        asyncio.run(_play(site, actions, budget, watched=site.name == "memory"))

    holds()


WORST = ("the fence is gone", "an end in two steps")


@pytest.mark.parametrize("defect", [pytest.param(name, marks=[] if name in WORST else pytest.mark.system) for name in DEFECTS])
def test_a_defect_of_the_lua_code_is_found(_state_server, defect):
    promise, edits = DEFECTS[defect]
    with stepped_lua(edits) as lua, pytest.raises(Broken, match=f"^{promise}:"):
        _play_until_broken(Site("valkey", _state_server, lua))


@pytest.mark.parametrize("defect", [pytest.param(name, marks=pytest.mark.system) for name in LENIENT])
def test_a_defect_of_the_crash_budget_is_found(_state_server, defect):
    with stepped_lua(LENIENT[defect]) as lua, pytest.raises(Broken, match=r"^budget:"):
        _play_until_broken(Site("valkey", _state_server, lua), LOST, 3)


class NoFence(ThreadSteps):
    """Anybody may write."""

    def fence(self, epoch):
        return self._thread.runs[self._ref.run_id]


class TwoSteps(ThreadSteps):
    """The end in two steps, as above."""

    def write(self, epoch, number, trace_id, drafts, mode, state, messages, terminal, park=None):
        if terminal is None:
            return super().write(epoch, number, trace_id, drafts, mode, state, messages, terminal, park)
        run = self.fence(epoch)
        if run.number == number and run.reply is not None:
            return run.reply
        if run.status != "running":
            raise Fenced(run.status)
        if run.track != "half":
            run.track = "half"
            self.append(run.attempt, trace_id, [*drafts, Draft(terminal.event, terminal.data)])
            raise Overloaded("try again for the second half", reason="STORE_UNAVAILABLE")
        run.status, run.terminal_seq = terminal.status, len(self._thread.log)
        self._thread.pending.remove(self._ref.run_id)
        run.number, run.reply = number, Written(run.terminal_seq, run.terminal_seq, self._clock.now_ms, self._head)
        return run.reply


@pytest.mark.parametrize(("steps", "promise"), [(NoFence, "A4"), (TwoSteps, "A2")])
def test_a_defect_of_the_store_in_memory_is_found(steps, promise):
    with pytest.raises(Broken, match=f"^{promise}:"):
        _play_until_broken(Site("memory", steps=steps))
