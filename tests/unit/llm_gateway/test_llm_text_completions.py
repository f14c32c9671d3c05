"""Legacy text completions as translation, read with OpenAI's own model."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import Completion

from services.common.errors import InvalidInput
from services.llm_gateway.chat import ChunkReader
from services.llm_gateway.model_port.completions_shape import LegacyStream, added_usage, legacy_choice, text_request
from services.llm_gateway.money import Usage

LOGPROBS = {
    "content": [
        {"token": "He", "logprob": -0.1, "bytes": [], "top_logprobs": [{"token": "He", "logprob": -0.1}, {"token": "Ha", "logprob": -2.5}]},
        {"token": "llo", "logprob": -0.2, "bytes": [], "top_logprobs": []},
    ]
}


def chunk(index: int = 0, content: str | None = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": finish, **more}
    return {"id": "c-1", "created": 5, "model": "m-1", "choices": [choice]}


def streamed(stream: LegacyStream, chunks: list[dict[str, Any]]) -> list[Completion]:
    reader = ChunkReader()
    raw = b"".join(b"data: " + orjson.dumps(entry) + b"\n\n" for entry in chunks)
    return _read(stream.feed(reader.feed(raw)))


def _read(raw: bytes) -> list[Completion]:
    # As the SDK does: its model knows no null for a finish_reason, which OpenAI's own streams have.
    return [Completion.construct(**orjson.loads(event.removeprefix(b"data: "))) for event in raw.split(b"\n\n")[:-1]]


def test_a_request_becomes_one_chat_call_a_prompt():
    body = {"model": "m", "prompt": ["a", "b"], "n": 2, "max_tokens": 5, "stop": "x", "seed": 1, "logprobs": 2, "echo": None, "user": "u"}
    asked = text_request(body)
    shared = {"n": 2, "max_tokens": 5, "stop": "x", "seed": 1, "user": "u", "logprobs": True, "top_logprobs": 2}
    assert asked.bodies == tuple({**shared, "messages": [{"role": "user", "content": text}]} for text in "ab")
    assert text_request({"prompt": "a"}).bodies == ({"messages": [{"role": "user", "content": "a"}]},)
    wanted = text_request({"prompt": "a", "stream": True, "stream_options": {"include_usage": False}})
    assert wanted.bodies[0]["stream_options"] == {"include_usage": True}
    assert not wanted.usage_wanted


def test_choices_and_log_probabilities():
    asked = text_request({"prompt": ["a", "b"], "n": 2, "echo": True})
    choice = {"index": 1, "message": {"content": "Hello"}, "finish_reason": "tool_calls"}
    assert legacy_choice(asked, 1, choice) == {"text": "bHello", "index": 3, "logprobs": None, "finish_reason": "stop"}
    plain = text_request({"prompt": "a", "logprobs": 2})
    made = legacy_choice(plain, 0, {"index": 0, "message": {"content": "Hello"}, "finish_reason": "length", "logprobs": LOGPROBS})
    assert made["logprobs"] == {
        "tokens": ["He", "llo"],
        "token_logprobs": [-0.1, -0.2],
        "top_logprobs": [{"He": -0.1, "Ha": -2.5}, {}],
        "text_offset": [0, 2],
    }


def test_usage_is_summed_and_what_is_not_told_is_what_was_charged():
    told = {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6}}
    made = added_usage([(told, Usage(1, 1)), (None, Usage(input=5, output=2, cached_input=1, reasoning=1))])
    assert (made["prompt_tokens"], made["completion_tokens"], made["total_tokens"]) == (15, 6, 21)
    assert made["prompt_tokens_details"] == {"cached_tokens": 7}


def test_a_stream_of_two_prompts():
    stream = LegacyStream(
        text_request({"prompt": ["a", "b"], "n": 2, "stream": True, "stream_options": {"include_usage": True}, "echo": True})
    )
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    events = streamed(stream, [chunk(0, "x"), chunk(1, "y"), chunk(0, "z"), chunk(0, None, "stop"), chunk(1, None, "length"), usage])
    stream.finished(Usage(3, 2))
    events += streamed(stream, [chunk(0, "v", "stop"), chunk(1, "w", "stop"), usage])
    stream.finished(Usage(3, 2))
    (last,) = _read(stream.end())
    texts: dict[int, str] = {}
    finishes = {}
    for event in events:
        assert (event.id, event.model, event.created, event.usage) == ("cmpl-c-1", "m-1", 5, None)
        for choice in event.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            finishes[choice.index] = choice.finish_reason
    assert texts == {0: "axz", 1: "ay", 2: "bv", 3: "bw"}
    assert finishes == {0: "stop", 1: "length", 2: "stop", 3: "stop"}
    assert (last.choices, last.usage.total_tokens) == ([], 10)


def test_offsets_go_on_over_the_chunks_of_a_stream():
    stream = LegacyStream(text_request({"prompt": "a", "logprobs": 1, "stream": True}))
    pieces = [{"content": [entry]} for entry in LOGPROBS["content"]]
    events = streamed(stream, [chunk(0, "He", logprobs=pieces[0]), chunk(0, "llo", logprobs=pieces[1])])
    assert [event.choices[0].logprobs.text_offset for event in events] == [[0], [2]]


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["prompt", "n", "echo", "stream", "logprobs", "best_of", "suffix", "stop", "stream_options", "max_tokens"]),
        st.recursive(
            st.none() | st.booleans() | st.integers(-1, 6) | st.sampled_from(["", "x"]), lambda s: st.lists(s, max_size=2), max_leaves=3
        ),
    )
)
def test_any_request_is_read_or_refused(body):
    try:
        asked = text_request(body)
    except InvalidInput:
        return
    assert asked.prompts


@pytest.mark.parametrize("name", ["tools", "functions", "suffix", "best_of"])
def test_what_legacy_completions_have_not_is_refused_by_name(name):
    with pytest.raises(InvalidInput) as refused:
        text_request({"prompt": "x", name: [1]})
    assert refused.value.metadata["param"] == name
