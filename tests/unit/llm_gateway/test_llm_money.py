"""Costs are exact integers, rounded up once."""

from decimal import ROUND_CEILING, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.charges import usage_of
from services.llm_gateway.money import NOTHING, Prices, Usage, picousd, priced
from services.llm_gateway.registry import Deployment

TOKENS = st.integers(0, 10**7)
# Dollars a million tokens, to a hundredth of a cent: finer than any price list.
PRICE = st.integers(0, 10**6).map(lambda hundredths: Decimal(hundredths) / 10**4 / 10**6)


@given(TOKENS, TOKENS, TOKENS, TOKENS, PRICE, PRICE, PRICE, PRICE)
def test_the_cost_is_that_of_exact_decimals_rounded_up_to_a_microdollar(
    given_in, out, cached, reasoning, p_in, p_out, p_cached, p_reasoning
):
    cached, reasoning = min(cached, given_in), min(reasoning, out)
    prices = Prices(picousd(p_in), picousd(p_out), picousd(p_cached), picousd(p_reasoning), known=True)
    exact = (given_in - cached) * p_in + cached * p_cached + (out - reasoning) * p_out + reasoning * p_reasoning
    assert priced(prices, given_in, out, cached, reasoning).cost_microusd == int((exact * 10**6).to_integral_value(ROUND_CEILING))


@given(st.lists(st.builds(Usage, TOKENS, TOKENS, TOKENS, TOKENS, st.integers(0, 10**15), st.booleans()), max_size=6))
def test_usages_add_up_before_they_are_rounded(usages):
    total = sum(usages, NOTHING)
    assert total.input == sum(u.input for u in usages)
    assert total.cost_microusd == -(-sum(u.cost_picousd for u in usages) // 10**6)
    assert total.estimated == any(u.estimated for u in usages)


def test_a_small_call_costs_a_microdollar_and_not_nothing():
    assert priced(Prices(input=150_000, known=True), 1, 0).cost_microusd == 1


DEPLOYMENT = Deployment("d", "m", "p", "openai", "x", "chat", prices=Prices(2_000_000, 3_000_000, 1_000_000, 3_000_000, known=True))


def test_reported_usage_is_taken_with_its_parts():
    reported = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    usage = usage_of(DEPLOYMENT, reported)
    assert usage == Usage(10, 5, 4, 2, 6 * 2_000_000 + 4 * 1_000_000 + 5 * 3_000_000, estimated=False)


@pytest.mark.parametrize(
    "reported",
    [None, {}, {"prompt_tokens": "7"}, {"prompt_tokens": 7, "completion_tokens": "x"}, {"prompt_tokens": -1}, {"prompt_tokens": True}],
)
def test_usage_that_cannot_be_counted_is_none(reported):
    assert usage_of(DEPLOYMENT, reported) is None


@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "prompt_tokens_details", "completion_tokens_details"]),
        st.integers() | st.text() | st.none(),
    )
)
def test_no_usage_makes_a_negative_cost(reported):
    usage = usage_of(DEPLOYMENT, reported)
    assert usage is None or (usage.cost_picousd >= 0 and usage.input >= 0 and usage.cached_input <= usage.input)


def test_what_is_written_to_a_cache_for_an_hour_has_its_own_price():
    reported = {"prompt_tokens": 10, "completion_tokens": 0,
                "prompt_tokens_details": {"cached_tokens": 1, "cache_creation_tokens": 6, "cache_creation_1h_tokens": 4}}  # fmt: skip
    prices = Prices(100, 1, 10, 1, known=True, cache_write=125, cache_write_1h=200)
    named = Deployment("d", "m", "p", "anthropic", "x", "chat", prices=prices)
    assert usage_of(named, reported).cost_picousd == 3 * 100 + 10 + 2 * 125 + 4 * 200
    assert prices.highest_input == 200
    # Without a name for it, it is what its provider takes all the same.
    unnamed = Deployment("d", "m", "p", "anthropic", "x", "chat", prices=Prices(100, 1, 10, 1, known=True, cache_write=125))
    assert usage_of(unnamed, reported).cost_picousd == 3 * 100 + 10 + 2 * 125 + 4 * 200


def test_thinking_that_a_provider_counts_beside_the_answer_is_paid():
    # As xAI has it: total = prompt + completion + reasoning.
    apart = {"prompt_tokens": 32, "completion_tokens": 9, "total_tokens": 135, "completion_tokens_details": {"reasoning_tokens": 94}}
    found = usage_of(DEPLOYMENT, apart)
    assert (found.output, found.reasoning) == (103, 94)
    assert usage_of(DEPLOYMENT, {**apart, "total_tokens": 41, "completion_tokens_details": {"reasoning_tokens": 4}}).output == 9


def test_what_came_from_a_cache_has_two_names():
    assert usage_of(DEPLOYMENT, {"prompt_tokens": 10, "completion_tokens": 5, "prompt_cache_hit_tokens": 4}).cached_input == 4
    both = {"prompt_tokens": 10, "prompt_cache_hit_tokens": 4, "prompt_tokens_details": {"cached_tokens": 4}}
    assert usage_of(DEPLOYMENT, both).cached_input == 4
