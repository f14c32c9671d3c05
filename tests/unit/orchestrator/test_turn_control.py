"""What a turn hears while it is at work, with owners that are lost at any write: each message is said once, and a stop holds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.records import Limits
from services.orchestrator.testing.turn_world import Journal, World, agent

LOST = st.dictionaries(st.integers(1, 30), st.booleans(), max_size=6)


def order(call):
    """Roles of the conversation, and whether results follow the calls that they belong to."""
    waiting = 0
    for message in call.messages:
        if message.role == "tool":
            waiting -= 1
        else:
            assert waiting == 0, "nothing stands between a call and its result"
            waiting = len(message.tool_calls)
    return [message.text for message in call.messages if message.role == "user"]


@settings(max_examples=120, deadline=None)
@given(
    said=st.dictionaries(st.integers(1, 8), st.integers(1, 2), max_size=4),
    tools=st.lists(st.integers(0, 2), max_size=6),
    lost_at=LOST,
)
def test_whoever_is_lost_and_when_each_message_is_said_once_and_in_order(said, tools, lost_at):
    texts = []

    def reply(call):
        seen = order(call)
        assert seen[1:] == texts[: len(seen) - 1], "none is lost, none is said twice, none overtakes another"
        for _ in range(said.get(len(world.asked), 0)):
            texts.append(f"m{len(texts) + 1}")
            world.post("steer", text=texts[-1])
        step = sum(bool(message.tool_calls) for message in call.messages)
        return [("look", {"n": f"{step}.{i}"}) for i in range(tools[step])] if step < len(tools) and tools[step] else "done"

    world = World(reply, agent(), journal=Journal(lost_at))
    assert world.run()["output_text"] == "done"
    assert not world.faults
    applied = world.journal.of("steer_applied")
    assert [(data["number"], data["text"]) for data in applied] == [(n, text) for n, text in enumerate(texts, 1)]
    assert order(world.asked[-1]) == ["go", *texts]


@settings(max_examples=120, deadline=None)
@given(at=st.integers(1, 4), tools=st.integers(0, 3), lost_at=LOST, then=st.booleans())
def test_a_stop_ends_the_call_under_way_and_no_further_one_is_made_unless_somebody_has_spoken(at, tools, lost_at, then):
    stopped = []

    def reply(call):
        if len(world.asked) == at:
            if then:
                world.post("steer", text="go on")
            world.post("stop")
            stopped.append(at)
        step = sum(bool(message.tool_calls) for message in call.messages)
        return [("look", {"n": step})] if step < tools and "go on" not in order(call) else "done"

    world = World(reply, agent(), journal=Journal(lost_at))
    result = world.run()
    if not stopped:
        assert result["finish_reason"] == "stop"
    elif then:
        assert (result["output_text"], result["finish_reason"], order(world.asked[-1])) == ("done", "stop", ["go", "go on"])
    else:
        assert (result["finish_reason"], len(world.asked)) == ("stopped", at)


@pytest.mark.parametrize(
    ("limits", "reason"), [(Limits(max_total_tokens=300), "TOKEN_LIMIT"), (Limits(max_cost_microusd=30), "COST_LIMIT")]
)
def test_who_stops_and_speaks_again_and_again_comes_to_the_limits_of_the_run(limits, reason):
    def reply(call):
        assert len(world.asked) < 40, "nothing of it is counted"
        world.post("steer", text="say more of " + "this " * 20)
        world.post("stop")
        return "done"

    world = World(reply, agent(), limits=limits)
    result = world.run()
    used = result["usage"]
    assert used["model_calls"] == len(world.asked) > 1
    assert all(data["stopped"] for data in world.journal.of("usage"))
    if reason == "TOKEN_LIMIT":
        assert 300 <= used["input_tokens"] + used["output_tokens"] < 600
    else:
        assert used["cost_microusd"] == world.billed == 35


def test_a_run_without_a_step_left_ends_with_its_answer_and_not_with_a_limit():
    def reply(call):
        world.post("steer", text="more")
        return "done"

    world = World(reply, agent(), limits=Limits(max_steps=1))
    assert world.run()["output_text"] == "done"
    assert not world.journal.of("steer_applied")
