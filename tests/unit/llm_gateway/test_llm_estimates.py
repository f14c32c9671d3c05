"""Token bounds: never below what is counted, and no higher than what was learned allows."""

import base64
import random
from types import SimpleNamespace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.llm_gateway.estimates import LEARNED_AFTER, Estimates, kind_of, measure
from services.simulator import tokens as simulated

PROSE = "The committee met on Tuesday and agreed that the report would be sent to every member before the end of the month. " * 8
FIXTURES = {
    "prose": PROSE,
    "cjk": "東京の天気は晴れです。明日は雨が降るでしょう。" * 20,
    "korean": "안녕하세요 세계 여러분 오늘은 날씨가 좋습니다 " * 10,
    "code": "def f(x: int) -> dict[str, int]:\n    return {k: v ** 2 for k, v in g(x).items() if v != 0}\n" * 10,
    "emoji": "👩‍👩‍👧‍👦🏳️‍🌈🧑🏽‍🚀 hi " * 20,
    "base64": base64.b64encode(random.Random(1).randbytes(2_000)).decode(),
    "control": "\x00\x01\x02\x1b[31m\x7f\u200b\u202e" * 40,
    "numbers": "3.14159,2.71828;1e-9|0xDEADBEEF " * 30,
    "lone surrogate": "a\ud800b" * 20,
    "empty": "",
}


def body(text: str, **more) -> dict:
    return {"model": "m", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}], **more}


def counted_by_simulator(made: dict) -> int:
    total = 0
    for message in made["messages"]:
        content = message["content"]
        parts = [SimpleNamespace(text=content)] if isinstance(content, str) else [SimpleNamespace(text=p.get("text", "")) for p in content]
        total += simulated.MESSAGE_OVERHEAD_TOKENS + sum(simulated.count_prompt(p.text) for p in parts)
        total += 0 if isinstance(content, str) else simulated.IMAGE_TOKENS * sum(p["type"] == "image_url" for p in content)
    return total + (simulated.count_prompt(orjson.dumps(made["tools"]).decode()) if "tools" in made else 0)


def worst_case(made: dict) -> int:
    """What a byte-level tokenizer can make of the texts at most, with the chat template around them."""
    return sum(len(m["content"].encode("utf-8", "surrogatepass")) + 4 for m in made["messages"]) + 3


@pytest.mark.parametrize("name", FIXTURES)
def test_the_bound_holds_for_every_kind_of_text_before_anything_is_learned(name):
    made = body(FIXTURES[name])
    bound = Estimates().input_bound("d", measure(made))
    assert bound >= worst_case(made)
    if name != "lone surrogate":
        assert bound >= counted_by_simulator(made)
    assert bound <= 2 * worst_case(made) + 64


@given(st.text(max_size=400), st.text(max_size=400))
def test_no_text_whatsoever_has_more_tokens_than_its_bound(first, second):
    made = {"messages": [{"role": "user", "content": first}, {"role": "user", "content": [{"type": "text", "text": second}]}]}
    size = len(first.encode("utf-8", "surrogatepass")) + len(second.encode("utf-8", "surrogatepass"))
    assert Estimates().input_bound("d", measure(made)) >= size + 2 * 4 + 3


def test_tools_formats_and_calls_of_tools_count():
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {}}}}}]
    plain, with_tools = measure(body("hi")), measure(body("hi", tools=tools))
    assert with_tools.worst() >= plain.worst() + len(orjson.dumps(tools)) + 500
    called = body("hi")
    called["messages"].append({"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "x" * 500}}]})
    assert measure(called).worst() >= plain.worst() + 500


def test_a_picture_in_the_request_is_no_text():
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 400_000}}
    made = {"messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}, picture]}]}
    assert 1_500 < Estimates().input_bound("d", measure(made)) < 3_000
    picture["image_url"]["detail"] = "low"
    assert Estimates().input_bound("d", measure(made)) < 500


def test_sound_and_documents_have_bounds():
    sound = {"type": "input_audio", "input_audio": {"data": "A" * 300_000, "format": "mp3"}}
    document = {"type": "file", "file": {"file_data": "A" * 10_000}}
    assert 10_000 <= measure({"messages": [{"role": "user", "content": [sound]}]}).worst() < 20_000
    assert measure({"messages": [{"role": "user", "content": [document]}]}).worst() >= 26_000


@pytest.mark.parametrize(
    ("field", "value"), [("input", "a text"), ("input", ["a", "text"]), ("input", [1, 2, 3]), ("input", [[1, 2], [3]]), ("query", "a text")]
)
def test_embeddings_and_rankings_are_measured_too(field, value):
    flat = orjson.dumps(value).count(b",") + 1
    assert measure({field: value}).worst() >= flat


def test_what_is_learned_brings_the_bound_near_to_what_is_counted():
    estimates = Estimates()
    made = measure(body(PROSE))
    for _ in range(LEARNED_AFTER):
        before = estimates.input_bound("d", made)
        estimates.learn("d", made, len(PROSE) // 5)
    assert estimates.input_bound("d", made) < before / 2
    assert estimates.input_bound("d", made) >= len(PROSE) // 5
    # Another deployment, and another kind of text at the same one, know nothing of it.
    assert estimates.input_bound("other", made) == made.worst()
    dense = measure(body(FIXTURES["base64"]))
    assert estimates.input_bound("d", dense) == dense.worst()


def test_kinds_are_told_apart():
    found = {name: kind_of(text.encode("utf-8", "surrogatepass")) for name, text in FIXTURES.items()}
    assert (found["prose"], found["cjk"], found["code"], found["base64"]) == ("prose", "script", "code", "dense")


def test_a_provider_that_counts_what_nobody_sent_is_allowed_for():
    estimates = Estimates()
    small = measure(body("hi"))
    estimates.learn("d", small, 5_000)
    assert estimates.input_bound("d", small) >= 5_000
    assert estimates.input_bound("d", measure(body("hi there"))) >= 5_000


usages = st.lists(
    st.tuples(st.integers(0, 3_000), st.sampled_from(["prose", "code", "dense", "script"]), st.integers(0, 3), st.floats(0, 3)),
    min_size=1,
    max_size=80,
)


@settings(max_examples=200)
@given(usages)
def test_after_learning_no_bound_is_below_any_usage_that_was_seen(seen):
    estimates, known = Estimates(), []
    for text_bytes, kind, images, share in seen:
        made = measure({})._replace(text_bytes=text_bytes, kind=kind, images=images)
        count = int(text_bytes * share) + images * int(1_000 * share)
        estimates.learn("d", made, count)
        known.append((made, count))
        assert all(estimates.input_bound("d", old) >= counted for old, counted in known)


def test_expectation_lies_between_nothing_and_the_bound():
    estimates = Estimates()
    for text in FIXTURES.values():
        made = measure(body(text))
        assert 1 <= estimates.expected_input_tokens("d", made) <= estimates.input_bound("d", made)
    made = measure(body(PROSE))
    for _ in range(40):
        estimates.learn("d", made, 200)
    assert abs(estimates.expected_input_tokens("d", made) - 200) <= 20


def test_what_cannot_be_sent_is_refused():
    with pytest.raises(InvalidInput):
        measure(body("hi", tools=[{"n": 2**70}]))
