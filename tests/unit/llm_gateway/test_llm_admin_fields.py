"""Bodies of admin requests: exact money, nothing ignored without a word, nothing that breaks the reader."""

from decimal import Decimal

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.accounts import KeyRecord, LimitSet
from services.common.errors import BulkheadError, InvalidInput
from services.llm_gateway.model_port.admin_fields import NAMED, REFUSED, Fields, check, read_limits
from services.llm_gateway.model_port.admin_views import limits_view

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LIMIT_FIELDS = (
    "max_budget", "soft_budget", "budget_duration", "rpm_limit", "tpm_limit", "tpd_limit", "max_parallel_requests", "models",
    "model_max_budget", "model_rpm_limit", "model_tpm_limit",
)  # fmt: skip
COUNTS = st.none() | st.integers(1, 10**12)
USD = st.integers(0, 10**12).map(lambda microusd: float(Decimal(microusd) / 10**6))
MODEL = st.sampled_from(["main", "backup", "a/b"])


def read(body: dict) -> LimitSet:
    """Limits of a body that has nothing else."""
    fields = Fields(body)
    limits = read_limits(fields)
    check(fields, KeyRecord("", "t", "u", limits=limits), "key")
    fields.finish()
    return limits


@given(microusd=st.integers(0, 10**12))
def test_dollars_that_were_written_as_a_float_are_exact_to_the_millionth(microusd):
    body = orjson.loads(f'{{"max_budget": {Decimal(microusd) / 10**6:f}}}')
    limits = read(body)
    assert limits.max_budget_microusd == microusd
    assert limits_view(limits)["max_budget"] == body["max_budget"]


@given(usd=st.floats(0, 10**9, allow_nan=False))
def test_nobody_gets_more_than_was_given(usd):
    found = read({"max_budget": usd}).max_budget_microusd
    assert found is not None
    assert 0 <= Decimal(str(usd)) * 10**6 - found < 1


@given(body=st.dictionaries(st.sampled_from(LIMIT_FIELDS) | st.text(max_size=8), JSON, max_size=5))
def test_whatever_stands_in_a_body_is_limits_that_make_sense_or_a_refusal(body):
    refusal, limits = None, LimitSet()
    try:
        limits = read(body)
    except InvalidInput as error:
        refusal = error
    assert limits.problems() == []
    if refusal is None:
        assert set(body) <= set(LIMIT_FIELDS) | REFUSED | NAMED
    else:
        assert refusal.violations
        assert orjson.dumps(refusal.message)


@given(
    body=st.fixed_dictionaries(
        {},
        optional={
            "max_budget": USD,
            "soft_budget": USD,
            "budget_duration": st.sampled_from(["30s", "24h", "7d", "1w", "1mo"]),
            "rpm_limit": COUNTS,
            "tpm_limit": COUNTS,
            "tpd_limit": COUNTS,
            "max_parallel_requests": COUNTS,
            "models": st.lists(MODEL, unique=True, max_size=3),
            "model_max_budget": st.dictionaries(MODEL, st.fixed_dictionaries({"budget_limit": USD, "time_period": st.just("1d")})),
            "model_rpm_limit": st.dictionaries(MODEL, st.integers(1, 9)),
        },
    )
)
def test_what_is_shown_can_be_sent_again_and_means_the_same(body):
    limits = read(body)
    shown = limits_view(limits)
    assert {name: shown[name] for name in body} == body
    assert read(orjson.loads(orjson.dumps(shown))) == limits


def test_what_litellm_knows_and_we_do_not_is_refused_or_named():
    assert Fields({"spend": 5, "tags": ["a"], "send_invite_email": False, "guardrails": None, "aliases": {}}).finish() == ["spend", "tags"]
    for name in REFUSED:
        with pytest.raises(InvalidInput, match=f"{name}: is not supported"):
            Fields({name: "x"}).finish()
    assert not REFUSED & NAMED
    with pytest.raises(BulkheadError, match="max_budgt: is not a known field"):
        Fields({"max_budgt": 0}).finish()


def test_an_update_of_one_facet_of_a_models_limits_keeps_the_others():
    base = read({"model_max_budget": {"main": 1, "other": 2}, "model_rpm_limit": {"main": 5}})
    changed = read_limits(Fields({"model_max_budget": {"main": {"budget_limit": 3, "time_period": "1d"}}}), base)
    assert changed.model_limits == {"main": LimitSet(max_budget_microusd=3_000_000, budget_period="1d", requests_per_minute=5)}
    assert read_limits(Fields({"model_rpm_limit": None}), changed).model_limits["main"].requests_per_minute is None
