"""Model calls of which nobody has the answer: what they took is the run's, and counts against its limits."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from services.common.errors import UpstreamFailed
from services.orchestrator.children.ending import result_of
from services.orchestrator.driving import Driver
from services.orchestrator.ports import TextDelta
from services.orchestrator.records import Limits, RunRecord
from services.orchestrator.testing.turn_world import World, agent
from services.orchestrator.turn import lost, supervisor
from services.orchestrator.turn.limits import budgets, check, money
from services.orchestrator.turn.loop import run_turn
from services.orchestrator.turn.state import RunStopped


class Breaking(World):
    """The first `breaks` calls end midway, with `error`, and are billed."""

    breaks, error, held, asked_for_money = 1, UpstreamFailed("lost", reason="INCOMPLETE_ANSWER"), 0, 0

    async def stream(self, call):
        async for item in super().stream(call):
            yield item
            if isinstance(item, TextDelta) and len(self.asked) <= self.breaks:
                raise self.error

    async def spent(self, run_id):
        self.asked_for_money += 1
        return self.billed, self.held


def breaking(limits=Limits(), cls=Breaking, **fields):
    world = cls(lambda call: "done", agent(), limits)
    for name, value in fields.items():
        setattr(world, name, value)
    return world


@pytest.mark.parametrize("breaks", [1, 3])
def test_calls_that_are_lost_on_their_way_are_in_the_usage(breaks, monkeypatch):
    monkeypatch.setattr("services.orchestrator.turn.model_step.WAIT_FIRST_S", 0.001)
    world = breaking(Limits(max_cost_microusd=1000), breaks=breaks)
    used = world.run()["usage"]
    assert (used["model_calls"], used["cost_microusd"]) == (1 + breaks, 7 * (1 + breaks))
    told = world.journal.of("usage")
    assert [data.get("lost", False) for data in told] == [False, True]
    assert told[1]["estimated"]
    assert told[1]["input_tokens"] >= breaks
    for name in ("input_tokens", "output_tokens", "cost_microusd"):
        assert sum(data[name] for data in told) == used[name]
    assert sum(data.get("model_calls", 1) for data in told) == used["model_calls"]


def test_a_call_that_failed_without_a_word_is_paid_for_where_the_model_gateway_says_so():
    class Silent(World):
        async def stream(self, call):
            if not self.asked:
                self.asked.append(call)
                self.billed += 5
                raise UpstreamFailed("the model is down", reason="UPSTREAM_FAILED")
            async for item in super().stream(call):
                yield item

    world = breaking(Limits(max_cost_microusd=1000), Silent)
    used = world.run()["usage"]
    assert (used["cost_microusd"], used["model_calls"]) == (7 + 5, 1)


def test_a_run_that_lost_nothing_asks_nobody_what_it_has_spent():
    world = breaking(Limits(max_cost_microusd=1000), breaks=0)
    assert (world.run()["usage"]["model_calls"], world.asked_for_money) == (1, 0)


async def settled(world, calls=1):
    turn = world.turn()
    lost.cut_off(turn, calls=calls)
    await lost.settle(turn)
    return turn


async def test_what_a_call_still_holds_of_the_money_counts_as_spent(monkeypatch):
    monkeypatch.setattr(lost, "LOOK_S", 0.01)
    monkeypatch.setattr(lost, "SETTLED_WITHIN_S", 0.03)
    world = breaking(Limits(max_cost_microusd=100), billed=30, held=50)
    turn = await settled(world)
    assert (turn.state.usage["cost_microusd"], world.asked_for_money) == (80, 3)


async def test_money_that_cannot_be_asked_for_now_is_asked_for_the_next_time():
    class Away(Breaking):
        async def spent(self, run_id):
            if not self.asked_for_money:
                self.asked_for_money += 1
                raise UpstreamFailed("away", reason="UNREACHABLE")
            return await super().spent(run_id)

    turn = await settled(breaking(Limits(max_cost_microusd=100), Away, billed=30))
    assert (turn.state.usage["cost_microusd"], turn.state.usage["model_calls"]) == (0, 1)
    await lost.settle(turn)
    assert (turn.state.usage["cost_microusd"], turn.state.usage["model_calls"]) == (30, 1)
    await lost.settle(turn)
    assert turn.state.usage["cost_microusd"] == 30


async def test_an_answer_that_was_given_before_is_one_call_with_what_it_cost():
    world = breaking(Limits(max_cost_microusd=100), breaks=0)
    turn = world.turn()
    lost.cut_off(turn)
    real = world.stream

    async def replayed(call):
        async for item in real(call):
            nothing = dict.fromkeys(("input_tokens", "output_tokens", "cached_input_tokens", "reasoning_tokens", "cost_microusd"), 0)
            yield item if isinstance(item, TextDelta) else replace(item, usage=nothing, replayed=True)

    world.stream = replayed
    terminal = await run_turn(turn, lambda: False)
    used = orjson.loads(terminal.result)["usage"]
    assert (used["model_calls"], used["cost_microusd"]) == (1, 7)
    assert used["input_tokens"] > 0


async def test_tokens_of_calls_that_are_not_counted_yet_hold_up_the_next_one():
    world = breaking(Limits(max_total_tokens=100), breaks=0)
    turn = world.turn()
    turn.state.parts[lost.PART] = {"calls": 1, "input_tokens": 99, "output_tokens": 0}
    check(turn, lost.tokens(turn))
    turn.state.parts[lost.PART]["output_tokens"] = 1
    with pytest.raises(RunStopped, match="100 tokens"):
        check(turn, lost.tokens(turn))


def given(turn, *limits):
    turn.state.parts[supervisor.PART] = {"0": {"run_id": "c", "agent": "other", "limits": list(limits), "made": True}}


def ended(**more):
    usage = {"tool_calls": 1, "cost_microusd": 10, "input_tokens": 3, "output_tokens": 4}
    return {"run_id": "c", "thread_id": "t", "status": "failed", "usage": usage, **more}


async def test_a_child_of_which_nobody_knows_what_it_used_has_used_what_it_was_given():
    world = breaking(Limits(max_cost_microusd=100, max_tool_calls=10, max_total_tokens=1000), breaks=0)
    turn = world.turn()
    given(turn, 0, 0, 5, 40, 200)
    supervisor._take(turn, ended(uncertain=True))
    assert {b.reason: b.used for b in budgets(turn)} == {"TOOL_LIMIT": 5, "TOKEN_LIMIT": 200, "COST_LIMIT": 40}
    assert money(turn) == 60
    assert turn.state.usage["cost_microusd"] == 10
    certain = world.turn()
    given(certain, 0, 0, 5, 40, 200)
    supervisor._take(certain, ended())
    assert money(certain) == 90


@pytest.mark.parametrize(
    ("losses", "part", "uncertain"),
    [
        (0, {}, False),
        (1, {"losses": 1}, False),
        (1, {}, True),
        (2, {"losses": 1}, True),
        (1, {"losses": 1, "unsure": 1}, True),
        (0, {"calls": 1}, True),
    ],
)
def test_a_run_that_was_given_up_or_ended_in_doubt_says_so(losses, part, uncertain):
    fields = dict.fromkeys(
        ("spec", "status", "epoch", "attempt", "cancel_requested", "created_ms", "started_ms", "ended_ms", "first_seq"), 0
    )
    fields["spec"] = type("Spec", (), {"thread_id": "t"})
    record = RunRecord(
        "c", **fields, terminal_seq=0, track="", result={}, state={"parts": {"lost": part}}, provisional_from=0, losses=losses
    )
    assert result_of(record).get("uncertain", False) is uncertain


async def test_the_time_of_lost_owners_is_the_runs_and_counts_once_whoever_hands_it_on():
    world = breaking(Limits(deadline_s=60), breaks=0)
    turn = world.turn()
    record: Any = SimpleNamespace(lost_ms=45_000, losses=1, crashes=1, state={"phase": "tools"})
    turn.state.phase = "tools"
    for _ in range(2):
        await Driver._note_losses(None, turn, record)
        assert 45_000 <= turn.active_ms() < 50_000
    record.lost_ms, record.losses = 75_000, 2
    await Driver._note_losses(None, turn, record)
    with pytest.raises(RunStopped, match="60 s active time"):
        turn.check_time()
