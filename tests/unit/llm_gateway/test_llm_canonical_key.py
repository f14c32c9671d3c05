"""What makes two requests the same, and which calls belong to one conversation."""

import timeit

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.canonical_key import affinity_of, canonical, digest_of, request_key
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.registry import Deployment, Group, Registry

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
BODIES = st.dictionaries(st.text(max_size=8), JSON, max_size=6)


def registry(*models, name="m", **defaults):
    deployments = tuple(Deployment(str(n), name, "p", "openai", model, "chat", defaults=defaults) for n, model in enumerate(models))
    return Registry({name: Group(name, 0, deployments)}, aliases={"alias": name})


def shuffled(value, chance):
    if isinstance(value, dict):
        items = list(value.items())
        chance.shuffle(items)
        return {key: shuffled(inner, chance) for key, inner in items}
    return [shuffled(inner, chance) for inner in value] if isinstance(value, list) else value


@given(BODIES, st.randoms())
def test_order_of_keys_and_the_wire_make_no_difference(body, chance):
    again = orjson.loads(orjson.dumps(shuffled(body, chance), option=orjson.OPT_INDENT_2))
    assert canonical(again) == canonical(body)


@given(BODIES, BODIES)
def test_only_equal_requests_have_equal_keys(one, other):
    def kept(body):
        return {key: value for key, value in body.items() if key not in ("model", "stream", "stream_options", "metadata", "store")}

    same = orjson.loads(orjson.dumps(kept(one))) == orjson.loads(orjson.dumps(kept(other)))
    if canonical(one) == canonical(other):
        assert same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"temperature": 1}, {"temperature": 1.0}),
        ({"temperature": 0}, {"temperature": -0.0}),
        ({}, {"stream": True, "stream_options": {"include_usage": True}}),
        ({"seed": 2.0**64}, {"seed": 2.0**64}),
        ({}, {"metadata": {"a": "b"}}),
        ({}, {"model": "x"}),
    ],
)
def test_what_does_not_matter(one, other):
    assert canonical(one) == canonical(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"n": 1}, {"n": 2}),
        ({"seed": 1}, {"seed": 2}),
        ({"seed": 1}, {"seed": True}),
        ({"user": "a"}, {"user": "b"}),
        ({"temperature": 0.7}, {"temperature": 0.70001}),
        ({"x": "1"}, {"x": 1}),
        ({"x": None}, {}),
        ({"x": "é"}, {"x": "e\u0301"}),
        ({"x": [1, 2]}, {"x": [2, 1]}),
        ({"x": "a "}, {"x": "a"}),
    ],
)
def test_what_does(one, other):
    assert canonical(one) != canonical(other)


def test_the_callers_notes_count_for_idempotency():
    assert canonical({"metadata": {"a": "b"}}, notes=True) != canonical({}, notes=True)
    assert canonical({"stream": True}, notes=True) == canonical({}, notes=True)


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_no_two_lists_of_parts_run_together(one, other):
    assert (digest_of(*one) == digest_of(*other)) == (one == other)


def test_the_key_is_that_of_the_models_behind_the_name():
    def key(made, model="m", tenant="t", operation="chat", content=b"{}", *scope):
        return request_key(tenant, operation, made, model, content, *scope)

    one = key(registry("gpt"))
    assert key(registry("gpt", "gpt")) == one  # another replica
    assert key(registry("gpt"), "alias") == one
    others = {
        key(registry("gpt-2")), key(registry("gpt", "gpt-2")), key(registry("gpt", temperature=1)), key(registry("gpt", name="x"), "x"),
        key(registry("gpt"), tenant="u"), key(registry("gpt"), operation="embed"), key(registry("gpt"), content=b"[]"),
        key(registry("gpt"), "m", "t", "chat", b"{}", "ana"), key(registry("gpt"), "unknown"),
    }  # fmt: skip
    assert len(others) == 9
    assert one not in others


LONG = "You are an assistant of a shipyard. " * 200


def conversation(*turns, system=LONG, size=0, **body):
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "user" if n % 2 == 0 else "assistant", "content": text} for n, text in enumerate(turns)]
    return ChatCall("m", {"messages": messages, **body}, size=size)


def test_turns_of_one_conversation_stay_together():
    first = affinity_of(conversation("hello"))
    assert first
    assert affinity_of(conversation("hello", "hi", "and now?")) == first
    assert affinity_of(conversation("good day")) != first
    assert affinity_of(conversation("hello", system=LONG + "!")) != first
    tools = [{"type": "function", "function": {"name": "f"}}]
    assert affinity_of(conversation("hello", tools=tools)) != first


def test_parts_and_cache_control_are_read_too():
    parts = [{"type": "text", "text": LONG, "cache_control": {"type": "ephemeral"}}]
    assert affinity_of(conversation("hello", system=parts)) == affinity_of(conversation("hello", "hi", "more", system=parts)) != ""


@pytest.mark.parametrize("call", [conversation("hello", system=""), conversation("hello", system="short"), conversation("hello", size=900)])
def test_a_short_prefix_is_nobodys_cache(call):
    assert affinity_of(call) == ""


def test_the_callers_own_key_wins():
    one, other = conversation("a", system="", prompt_cache_key="k"), conversation("b", prompt_cache_key="k")
    assert affinity_of(one) == affinity_of(other) != ""


def test_a_short_call_costs_next_to_nothing():
    call = conversation("hello", system="", size=60)
    runs = 20_000
    assert min(timeit.repeat(lambda: affinity_of(call), number=runs, repeat=3)) / runs < 5e-6
