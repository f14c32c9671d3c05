"""The degradation ladder: its table, and turns of which some parts fail, at random and together."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common import testing
from services.common.errors import (
    BudgetExceeded,
    BulkheadError,
    Internal,
    InvalidInput,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    UpstreamFailed,
)
from services.orchestrator.agents import Degradation, HandOff, Recall
from services.orchestrator.ports import Message, ModelFinished, Recalled, RecalledPart
from services.orchestrator.records import Limits
from services.orchestrator.testing.turn_world import Journal, World, agent, steps_before
from services.orchestrator.turn.degradation import CODES, MESSAGES, RUNGS, cause_of
from services.orchestrator.turn.handoff import conclusion
from services.orchestrator.turn.state import RunStopped

PAGE = testing.ROOT / "docs/degradation.md"
# What a part says of itself when it fails, and no user should ever read.
RAW = "Traceback (most recent call last): OSError 10.0.0.7"
FAILURES: dict[str, BulkheadError | None] = {
    "ok": None,
    "filtered": None,
    "down": UpstreamFailed(RAW, reason="UPSTREAM_UNAVAILABLE"),
    "full": Overloaded(RAW, reason="QUEUE_FULL"),
    "long": InvalidInput(RAW, reason="CONTEXT_LENGTH_EXCEEDED"),
    "unsafe": InvalidInput(RAW, reason="CONTENT_POLICY_VIOLATION"),
    "refused": InvalidInput(RAW, reason="REQUEST_REFUSED"),
    "broke": BudgetExceeded(RAW),
    "limited": QuotaExceeded(RAW),
    "denied": PermissionDenied(RAW, reason="MODEL_NOT_ALLOWED"),
    "defect": Internal(RAW),
}
AWAY = UpstreamFailed(RAW, reason="UPSTREAM_FAILED")


def test_the_documented_codes_are_those_of_the_code():
    table = PAGE.read_text().split("## Codes")[1]
    documented = {
        name: tuple(cell.strip(" `") for cell in cells.split("|")) for name, cells in re.findall(r"^\| `(\w+)` \|(.*)\|$", table, re.M)
    }
    assert documented == {name: (code.rung, code.capability_lost, code.fallback) for name, code in CODES.items()}


def test_every_rung_and_every_last_word_is_documented():
    text = PAGE.read_text()
    rungs = {code.rung for code in CODES.values()} | {rung for rungs in RUNGS.values() for rung in rungs}
    assert not [rung for rung in rungs if f"`{rung}`" not in text]
    assert not [message for message in MESSAGES.values() if message not in text]
    assert RUNGS.keys() == MESSAGES.keys()


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("down", "model"), ("full", "model"), ("long", "context"), ("unsafe", "policy"), ("refused", "request"), ("broke", "budget"),
        ("limited", "quota"), ("denied", "access"), ("defect", "internal"),
    ],
)  # fmt: skip
def test_the_cause_of_a_failure_decides_what_can_help(name, cause):
    failure = FAILURES[name]
    assert failure is not None
    assert cause_of(failure) == cause


def test_an_end_that_somebody_asked_for_is_nobody_else_s_work():
    async def ends(reason):
        world = World(lambda call: "hi", agent(degradation=Degradation(hand_off=HandOff(target="support"))))
        return conclusion(world.turn(), RunStopped(reason, "It ends."))

    assert asyncio.run(ends("TOOL_CALL_CANCELLED")) is None
    handed = asyncio.run(ends("DEADLINE_EXCEEDED"))
    assert handed is not None
    assert (handed.finish_reason, handed.handoff["reason"]) == ("handed_off", "DEADLINE_EXCEEDED")


@dataclass
class Failing(World):
    """A world of which parts fail: the model as `model` says call by call, then it answers; tools and memory always or never."""

    model: Sequence[str] = ()
    listing: bool = False
    calls: bool = False
    memory: bool = False
    forgotten: list[int] = field(default_factory=list)

    async def stream(self, call):
        """As World.stream."""
        how = self.model[len(self.asked)] if len(self.asked) < len(self.model) else "ok"
        failure = FAILURES[how]
        if failure is not None:
            self.asked.append(call)
            raise failure
        async for item in super().stream(call):
            if how == "filtered" and isinstance(item, ModelFinished):
                yield ModelFinished(Message("assistant", ""), "content_filter", item.usage)
            elif how != "filtered":
                yield item

    async def definitions(self, names):
        """As World.definitions."""
        if self.listing:
            raise AWAY
        return await super().definitions(names)

    async def execute(self, *args, **fields):
        """As World.execute."""
        if self.calls:
            raise AWAY
        async for item in super().execute(*args, **fields):
            yield item

    async def recall(self, *args):
        """As ports.Memory.recall."""
        if self.memory:
            raise AWAY
        turns = [RecalledPart("turn", f"question {n}", f"answer {n}") for n in range(3)]
        return Recalled([*turns, RecalledPart("memory", "likes tea", source_id="m")], [])

    async def reset_session(self, session_id, ended_before_ms, key):
        """As ports.Memory.reset_session."""
        if self.memory:
            raise AWAY
        self.forgotten.append(ended_before_ms)
        return True


def obeys(call):
    """Two steps with a tool each, then an answer."""
    return "done" if steps_before(call) == 2 or not call.tools else [("look", {"n": steps_before(call)})]


ladders = st.builds(
    Degradation,
    rungs=st.lists(st.sampled_from(["without_tools", "without_memory", "shorter_context"]), unique=True),
    cheaper_model=st.sampled_from(["", "small"]),
    rephrase=st.sampled_from(["", "Please say it differently."]),
    reset_memory=st.booleans(),
    hand_off=st.sampled_from([None, HandOff(target="support", text="Over to {label}.")]),
)


@settings(max_examples=300, deadline=None)
@given(
    model=st.lists(st.sampled_from(sorted(FAILURES)), max_size=6),
    listing=st.booleans(),
    calls=st.booleans(),
    memory=st.booleans(),
    recalls=st.booleans(),
    ladder=ladders,
    money=st.sampled_from([0, 15, 30]),
    lost_at=st.dictionaries(st.integers(1, 12), st.booleans(), max_size=2),
)
def test_whatever_fails_a_turn_ends_once_readably_and_names_what_it_lost(model, listing, calls, memory, recalls, ladder, money, lost_at):
    made = agent(degradation=ladder, recall=Recall() if recalls else None)
    world = Failing(
        obeys, made, Limits(max_cost_microusd=money), Journal(lost_at), model=model, listing=listing, calls=calls, memory=memory
    )
    result = world.run()
    kinds = [kind for kind, _ in world.journal.events]
    assert [kind for kind in kinds if kind in ("run_finished", "run_failed", "run_cancelled")] == [kinds[-1]]
    told = result["output_text"] if kinds[-1] == "run_finished" else result["error"]["message"]
    assert told.strip()
    assert not any(RAW in repr(data) for _, data in world.journal.events)
    warnings = world.journal.of("warning")
    for warning in warnings:
        assert warning.keys() == {"code", "capability_lost", "fallback", "user_message", "attributes"}
        assert warning["attributes"]["rung"] == CODES[warning["code"]].rung
        assert warning["user_message"]
    codes = {warning["code"] for warning in warnings}
    if kinds[-1] == "run_finished" and result["finish_reason"] in ("rephrase", "handed_off"):
        assert {"rephrase": "asked_to_rephrase", "handed_off": "handed_off"}[result["finish_reason"]] in codes
        assert ("handoff_requested" in kinds) == (result["finish_reason"] == "handed_off")
    # A run fails only where no rung was left: nobody to hand over to.
    assert kinds[-1] == "run_finished" or ladder.hand_off is None
    if recalls:
        assert ("memory_unavailable" in codes) == memory
    if listing and world.asked:
        assert "tools_unavailable" in codes
    if world.journal.of("tool_call_failed"):
        assert "tool_unavailable" in codes
    if not lost_at:
        # What a lost owner has asked, nobody has heard of.
        small = [call for call in world.asked if call.model == "small"]
        assert bool(small) <= ("cheaper_model" in codes)
        bare = [call for call in world.asked if recalls and not memory and not any("likes tea" in m.text for m in call.messages)]
        assert not bare or codes & {"answered_without_memory", "context_shortened"}
