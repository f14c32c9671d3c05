"""What comes from Gemini: fixtures are built with the models of Google's SDK, results are read with those of OpenAI's."""

import itertools
from typing import Any

import orjson
import pytest
from google.genai import types
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from services.llm_gateway.adapters.gemini import GeminiDialect
from services.llm_gateway.adapters.gemini_answer import usage_of
from services.llm_gateway.adapters.gemini_request import content_body
from services.llm_gateway.chat import Assembly, Chunk
from services.llm_gateway.failures import FailureClass, UpstreamFault

USAGE = {
    "promptTokenCount": 100, "candidatesTokenCount": 20, "thoughtsTokenCount": 300, "cachedContentTokenCount": 60, "totalTokenCount": 420,
}  # fmt: skip
NAMES = [
    "error", "code", "status", "message", "details", "content", "parts", "text", "functionCall", "name", "args", "index",
    "chosenCandidates", "topCandidates", "candidates", "blockReason", "inlineData",
]  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 600) | st.text(max_size=5),
    lambda s: st.lists(s, max_size=3) | st.dictionaries(st.sampled_from(NAMES), s, max_size=4),
    max_leaves=12,
)
CALL = {"functionCall": {"id": "c1", "name": "weather", "args": {"city": "Rome"}}, "thoughtSignature": "c2ln"}


def response(parts: list[dict[str, Any]] | None = None, finish: str | None = "STOP", **more: Any) -> dict[str, Any]:
    """A GenerateContentResponse that Google's SDK takes."""
    candidate: dict[str, Any] = {"index": 0}
    if parts is not None:
        candidate["content"] = {"role": "model", "parts": parts}
    if finish is not None:
        candidate["finishReason"] = finish
    made = {"candidates": [candidate], "modelVersion": "gemini-3-flash", "responseId": "r-1", **more}
    types.GenerateContentResponse.model_validate(made)
    return made


def read(made: Any) -> ChatCompletion:
    answer = GeminiDialect().read_answer(orjson.dumps(made))
    assert orjson.loads(answer.raw) == answer.data
    return ChatCompletion.model_validate(answer.data, strict=True)


def fault_of(made: Any) -> UpstreamFault:
    with pytest.raises(UpstreamFault) as fault:
        read(made)
    return fault.value


def stream(*events: Any, ending: bytes = b"\r\n\r\n") -> bytes:
    return b"".join(b"data: " + (event if isinstance(event, bytes) else orjson.dumps(event)) + ending for event in events)


def chunks_of(raw: bytes) -> list[Chunk]:
    reader = GeminiDialect().reader()
    found = [*reader.feed(raw), *reader.end()]
    assert not reader.done
    for chunk in found:
        assert orjson.loads(chunk.raw) == chunk.data
        ChatCompletionChunk.model_validate(chunk.data, strict=True)
    return found


def assembled(chunks: list[Chunk]) -> Assembly:
    whole = Assembly()
    for chunk in chunks:
        whole.add(chunk)
    return whole


def test_text():
    found = read(response([{"text": "Hel"}, {"text": "lo", "thoughtSignature": "c2ln"}], usageMetadata=USAGE))
    assert found.id == "r-1"
    assert found.model == "gemini-3-flash"
    assert found.object == "chat.completion"
    (choice,) = found.choices
    assert choice.message.content == "Hello"
    assert choice.finish_reason == "stop"
    assert choice.message.extra_content == {"google": {"thought_signature": "c2ln"}}


def test_thinking_is_paid_beside_the_answer():
    usage = read(response([{"text": "Why?", "thought": True}, {"text": "42"}], usageMetadata=USAGE)).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (100, 320, 420)
    assert usage.prompt_tokens_details.cached_tokens == 60
    assert usage.completion_tokens_details.reasoning_tokens == 300


def test_thinking_that_the_candidates_hold_already_is_not_paid_twice():
    usage = usage_of({"promptTokenCount": 100, "candidatesTokenCount": 320, "thoughtsTokenCount": 300, "totalTokenCount": 420})
    assert usage is not None
    assert usage["completion_tokens"] == 320
    assert usage_of({"promptTokenCount": 5, "toolUsePromptTokenCount": 7})["prompt_tokens"] == 12
    assert usage_of({}) is None
    assert usage_of(None) is None
    assert usage_of({"promptTokenCount": "5"}) is None


def test_reasoning_is_no_content():
    message = read(response([{"text": "Hm.", "thought": True}, {"text": "42"}])).choices[0].message
    assert message.content == "42"
    assert message.reasoning_content == "Hm."


def test_tool_calls():
    found = read(response([CALL, {"functionCall": {"name": "time"}}])).choices[0]
    assert found.finish_reason == "tool_calls"
    assert found.message.content is None
    first, second = found.message.tool_calls
    assert (first.id, first.function.name, orjson.loads(first.function.arguments)) == ("c1", "weather", {"city": "Rome"})
    assert first.extra_content == {"google": {"thought_signature": "c2ln"}}
    assert second.id.startswith("call_")
    assert second.function.arguments == "{}"


def test_what_a_tool_call_needs_comes_back_with_the_next_request():
    message = read(response([{"text": "Let me see."}, CALL])).choices[0].message.model_dump(exclude_none=True)
    messages = [{"role": "user", "content": "hi"}, message, {"role": "tool", "tool_call_id": "c1", "content": "20"}]
    made = content_body({"messages": messages}, "gemini-3-flash")["contents"]
    assert made[1]["parts"] == [{"text": "Let me see."}, CALL]
    assert made[2]["parts"][0]["functionResponse"]["id"] == "c1"


def test_several_candidates():
    made = response([{"text": "a"}])
    made["candidates"].append({"index": 1, "content": {"parts": [{"text": "b"}]}, "finishReason": "MAX_TOKENS"})
    found = read(made).choices
    assert [(c.index, c.message.content, c.finish_reason) for c in found] == [(0, "a", "stop"), (1, "b", "length")]


def test_logprobs_and_images():
    logprobs = {
        "chosenCandidates": [{"token": "hé", "tokenId": 1, "logProbability": -0.5}],
        "topCandidates": [{"candidates": [{"token": "hé", "logProbability": -0.5}, {"token": "ha", "logProbability": -1.5}]}],
    }
    made = response([{"text": "hé"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}])
    made["candidates"][0]["logprobsResult"] = logprobs
    types.GenerateContentResponse.model_validate(made)
    choice = read(made).choices[0]
    entry = choice.logprobs.content[0]
    assert (entry.token, entry.logprob, entry.bytes) == ("hé", -0.5, [104, 195, 169])
    assert [other.token for other in entry.top_logprobs] == ["hé", "ha"]
    assert choice.message.images[0]["image_url"]["url"] == "data:image/png;base64,AAAA"


@pytest.mark.parametrize("reason", ["SAFETY", "RECITATION", "PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "IMAGE_SAFETY", "MODEL_ARMOR"])
def test_content_that_is_withheld(reason):
    partly = read(response([{"text": "Well,"}], reason)).choices[0]
    assert partly.finish_reason == "content_filter"
    assert partly.message.content == "Well,"
    fault = fault_of(response(None, reason, usageMetadata=USAGE))
    assert fault.failure.failure_class is FailureClass.CONTENT_POLICY
    assert fault.usage["completion_tokens"] == 320


def test_a_blocked_prompt():
    made = {"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": {"promptTokenCount": 9}, "responseId": "r"}
    types.GenerateContentResponse.model_validate(made)
    for fault in (fault_of(made), _stream_fault(stream(made))):
        assert fault.failure.failure_class is FailureClass.CONTENT_POLICY
        assert fault.usage["prompt_tokens"] == 9


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("MALFORMED_FUNCTION_CALL", FailureClass.MALFORMED),
        ("UNEXPECTED_TOOL_CALL", FailureClass.MALFORMED),
        ("OTHER", FailureClass.UNKNOWN),
        ("LANGUAGE", FailureClass.UNKNOWN),
        ("SOMETHING_NEW", FailureClass.UNKNOWN),
    ],
)
@pytest.mark.filterwarnings("ignore:SOMETHING_NEW")
def test_an_end_that_is_no_answer_is_a_failure(reason, expected):
    assert fault_of(response([{"text": "half of"}], reason)).failure.failure_class is expected
    fault = _stream_fault(stream(response([{"text": "half of"}], None), response([], reason, usageMetadata=USAGE)))
    assert fault.failure.failure_class is expected
    assert fault.usage["prompt_tokens"] == 100


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'"x"', b'{"candidates":[]}', b'{"candidates":[1]}', b'{"candidates":[{"content":{"parts":[{"text":"x"}]}}]}',
     b'{"candidates":[{"content":3,"finishReason":"STOP"}]}', b'{"candidates":[{"content":{"parts":3},"finishReason":"STOP"}]}',
     b'{"candidates":[{"content":{"parts":[{"functionCall":{"name":3}}]},"finishReason":"STOP"}]}', b'{"cand'],
)  # fmt: skip
def test_what_nobody_can_read(body):
    with pytest.raises(UpstreamFault) as fault:
        GeminiDialect().read_answer(body)
    assert fault.value.failure.failure_class is FailureClass.MALFORMED


def test_an_error_inside_a_success():
    body = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}
    assert fault_of(body).failure.failure_class is FailureClass.TRANSIENT
    fault = _stream_fault(stream(response([{"text": "a"}], None), body))
    assert fault.failure.failure_class is FailureClass.TRANSIENT
    assert fault.failure.status == 503


def _stream_fault(raw: bytes) -> UpstreamFault:
    with pytest.raises(UpstreamFault) as fault:
        chunks_of(raw)
    return fault.value


TALK = (
    response([{"text": "Hm.", "thought": True}], None, usageMetadata={**USAGE, "candidatesTokenCount": 1}),
    response([{"text": "Grüße, "}], None, usageMetadata={**USAGE, "candidatesTokenCount": 3}),
    response([{"text": "世界 🌍\n"}], None),
    response([CALL, {"functionCall": {"name": "time"}}], None),
    response([{"text": "", "thoughtSignature": "dGV4dA=="}], "STOP", usageMetadata=USAGE),
)


def test_a_stream():
    chunks = chunks_of(stream(*TALK))
    whole = assembled(chunks)
    assert whole.text == "Grüße, 世界 🌍\n"
    assert whole.finish_reason == "tool_calls"
    assert whole.response_id == "r-1"
    assert [call["name"] for call in whole.tool_calls] == ["weather", "time"]
    assert whole.tool_calls[0]["id"] == "c1"
    deltas = [chunk.data["choices"][0]["delta"] for chunk in chunks if chunk.data["choices"]]
    assert [delta.get("role") for delta in deltas] == ["assistant", None, None, None, None]
    assert deltas[0]["reasoning_content"] == "Hm."
    assert chunks[0].opaque
    assert not chunks[1].opaque
    assert deltas[-1]["extra_content"] == {"google": {"thought_signature": "dGV4dA=="}}
    # One usage, at the end and in an event of its own, as OpenAI sends it.
    assert [chunk.usage is not None for chunk in chunks] == [False] * 5 + [True]
    assert chunks[-1].usage["completion_tokens"] == 320
    assert chunks[-1].data["choices"] == []


def test_a_stream_is_whole_when_a_finish_was_seen():
    reader = GeminiDialect().reader()
    reader.feed(stream(response([{"text": "a"}], None)))
    assert not reader.finished
    reader.feed(stream(response(None, "STOP")))
    assert reader.finished
    # The counts may come behind the finish.
    assert [chunk.usage["prompt_tokens"] for chunk in reader.feed(stream({"usageMetadata": USAGE}))] == [100]
    assert reader.feed(stream({"usageMetadata": USAGE})) == []


def test_a_stream_of_several_candidates_needs_the_finish_of_each():
    def of(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
        made = response([{"text": text}], finish, usageMetadata=USAGE)
        made["candidates"][0]["index"] = index
        return made

    reader = GeminiDialect().reader()
    chunks = reader.feed(stream(of(0, "a"), of(1, "b"), of(1, "b", "STOP")))
    assert not reader.finished
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[1].opaque
    assert reader.feed(stream(of(0, "a", "MAX_TOKENS")))[0].finish_reason == "length"
    assert reader.finished


def test_one_event_that_is_spoilt_loses_no_stream_and_two_do():
    spoilt = b'{"candidates":[{"content":{"parts":'
    chunks = chunks_of(stream(TALK[1], spoilt, TALK[2], TALK[4]))
    assert assembled(chunks).text == "Grüße, 世界 🌍\n"
    assert [chunk.after_gap for chunk in chunks] == [False, True, False, False]
    fault = _stream_fault(stream(TALK[1], spoilt, {"candidates": [3]}, TALK[4]))
    assert fault.failure.failure_class is FailureClass.MALFORMED


def test_a_call_that_cannot_be_read_is_never_left_out():
    spoilt = {"candidates": [{"index": 0, "content": {"parts": [{"functionCall": {"name": "f", "args": "x"}}]}}]}
    assert _stream_fault(stream(TALK[1], spoilt, TALK[4])).failure.failure_class is FailureClass.MALFORMED


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 2000), max_size=12), st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]), st.booleans())
def test_a_stream_may_be_cut_anywhere(cuts, ending, bom):
    raw = (b"\xef\xbb\xbf" if bom else b"") + b": hello" + ending + stream(*TALK, ending=ending)
    reader = GeminiDialect().reader()
    edges = sorted({0, len(raw), *(cut % len(raw) for cut in cuts)})
    found: list[Chunk] = []
    for start, stop in itertools.pairwise(edges):
        found += reader.feed(raw[start:stop])
    found += reader.end()
    whole = assembled(found)
    assert reader.finished
    assert whole.text == "Grüße, 世界 🌍\n"
    assert len(whole.tool_calls) == 2
    assert sum(chunk.usage is not None for chunk in found) == 1


@settings(max_examples=300, deadline=None)
@given(JSON, JSON)
def test_any_json_is_an_answer_or_one_kind_of_error(one, other):
    """Wrong shapes anywhere in an event."""
    candidates = {"candidates": [{"content": {"parts": [{"text": "a"}, one]}, "finishReason": other, "logprobsResult": one}]}
    for body in (one, {"candidates": one}, candidates, {"candidates": [other]}, {**TALK[4], "usageMetadata": one, "promptFeedback": other}):
        for reading in (GeminiDialect().read_answer, lambda raw: GeminiDialect().reader().feed(b"data: " + raw + b"\n\n")):
            try:
                reading(orjson.dumps(body))
            except UpstreamFault:
                continue


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 1200), st.integers(0, 255))
def test_a_stream_with_a_wrong_byte_is_never_taken_for_another_kind_of_error(position, byte):
    raw = bytearray(stream(*TALK))
    raw[position % len(raw)] = byte
    reader = GeminiDialect().reader()
    try:
        reader.feed(bytes(raw))
        reader.end()
    except UpstreamFault:
        return
    assert isinstance(reader.finished, bool)
