"""The token bound of a window: tool results go first, then old turns, then the end of a text."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from services.memory.ports import Turn
from services.memory.tokens import clip, estimate
from services.memory.window import fit, tokens_of

TURNS = st.lists(
    st.builds(
        Turn,
        run_id=st.uuids().map(str),
        user_text=st.text(max_size=200),
        assistant_text=st.text(max_size=400),
        ended_ms=st.integers(0, 10**12),
        tool_calls_json=st.one_of(
            st.just(b""),
            st.just(b"not json"),
            st.text(max_size=500).map(lambda out: json.dumps([{"name": "t", "arguments": {}, "output": out}]).encode()),
        ),
    ),
    max_size=8,
)


@given(TURNS, st.integers(4, 600))
@settings(max_examples=200, deadline=None)
def test_a_fitted_window_is_within_its_budget_and_keeps_the_newest_in_order(turns, budget):
    kept = fit(turns, budget)
    assert sum(map(tokens_of, kept)) <= budget
    assert [turn.run_id for turn in kept] == [turn.run_id for turn in turns][len(turns) - len(kept) :]
    if sum(map(tokens_of, turns)) <= budget:
        assert kept == turns


def test_tool_results_are_elided_before_any_turn_is_dropped():
    calls = json.dumps([{"name": "calculator", "arguments": {"e": "1+1"}, "output": "9" * 4_000}]).encode()
    turns = [Turn("a", "first", "one", 1, calls), Turn("b", "second", "two", 2, calls)]
    kept = fit(turns, 1_100)
    assert [turn.run_id for turn in kept] == ["a", "b"]
    assert json.loads(kept[0].tool_calls_json) == [{"name": "calculator", "arguments": {"e": "1+1"}, "output": "[elided]"}]
    assert kept[1].tool_calls_json == calls


def test_the_newest_turn_is_clipped_rather_than_lost():
    kept = fit([Turn("a", "old " * 50, "x", 1), Turn("b", "q " * 400, "answer " * 400, 2)], 100)
    assert [turn.run_id for turn in kept] == ["b"]
    assert kept[0].user_text.endswith("…")
    assert kept[0].assistant_text.endswith("…")


@given(st.text(max_size=300), st.integers(0, 100))
def test_clip_keeps_a_prefix_within_the_tokens(text, tokens):
    clipped = clip(text, tokens)
    assert estimate(clipped) <= tokens
    assert text.startswith(clipped.removesuffix("…").rstrip()) or clipped == text


def test_a_han_character_counts_as_a_token_and_four_ascii_characters_as_one():
    assert estimate("数据库") == 3
    assert estimate("a" * 400) == 100
    assert estimate("") == 0
    assert estimate("привет") == 3
