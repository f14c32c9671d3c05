"""A stream that is opened again is joined word for word, or not at all."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.chat import Assembly, Chunk, ChunkReader
from services.llm_gateway.recovery import Diverged, Stitch


def chunks(texts: list[str], finish="stop") -> list[Chunk]:
    raw = b"".join(
        b"data: " + orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}) + b"\n\n"
        for text in texts
    )
    if finish:
        raw += b"data: " + orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}) + b"\n\n"
    return ChunkReader().feed(raw)


def pieces(text: str, cuts: list[int]) -> list[str]:
    points = sorted({min(c, len(text)) for c in cuts})
    return [text[a:b] for a, b in zip([0, *points], [*points, len(text)], strict=True)]


TEXT = st.text(st.sampled_from("ab é\n"), min_size=1, max_size=40)
CUTS = st.lists(st.integers(0, 40), max_size=6)


@given(TEXT, st.integers(0, 40), CUTS, CUTS)
def test_the_joined_text_is_the_answer_whatever_the_pieces(answer, broken_at, first_cuts, second_cuts):
    stitch, seen = Stitch(), Assembly()
    for chunk in stitch.feed(chunks(pieces(answer[:broken_at], first_cuts), finish=None)):
        seen.add(chunk)
    stitch.restart()
    for chunk in stitch.feed(chunks(pieces(answer, second_cuts))):
        seen.add(chunk)
        # What is relayed as bytes says the same as what was parsed.
        assert (orjson.loads(chunk.raw)["choices"][0]["delta"].get("content") or "") == chunk.text
    assert seen.text == answer
    assert seen.finish_reason == "stop"


@given(TEXT, TEXT, CUTS)
def test_another_answer_is_never_mixed_in(delivered, other, cuts):
    stitch, seen = Stitch(), Assembly()
    for chunk in stitch.feed(chunks([delivered], finish=None)):
        seen.add(chunk)
    stitch.restart()
    try:
        for chunk in stitch.feed(chunks(pieces(other, cuts))):
            seen.add(chunk)
    except Diverged:
        assert not other.startswith(delivered)
    else:
        assert seen.text == other


def test_a_shorter_answer_diverges():
    stitch = Stitch()
    stitch.feed(chunks(["abc"], finish=None))
    stitch.restart()
    with pytest.raises(Diverged):
        stitch.feed(chunks(["ab"]))


def test_tool_calls_and_opaque_content_cannot_be_joined():
    call = b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t","function":{"name":"f","arguments":"{"}}]}}]}\n\n'
    thought = b'data: {"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}\n\n'
    for raw in (call, thought):
        stitch = Stitch()
        stitch.feed(ChunkReader().feed(raw))
        assert not stitch.can_restart
        stitch = Stitch()
        stitch.feed(chunks(["a"], finish=None))
        assert stitch.can_restart
        stitch.restart()
        with pytest.raises(Diverged):
            stitch.feed(ChunkReader().feed(raw))


@pytest.mark.parametrize("choices", [[], [{"index": 0}]])
def test_a_usage_that_comes_before_the_text_is_passed_on(choices):
    stitch = Stitch()
    stitch.feed(chunks(["Hello"], finish=None))
    stitch.restart()
    early = ChunkReader().feed(b"data: " + orjson.dumps({"choices": choices, "usage": {"prompt_tokens": 3}}) + b"\n\n")
    assert [chunk.usage for chunk in stitch.feed(early)] == [{"prompt_tokens": 3}]
    assert "".join(chunk.text for chunk in stitch.feed(chunks(["Hello there"]))) == " there"


def test_tool_calls_are_put_together_from_their_fragments():
    seen = Assembly()
    for delta in (
        {"index": 0, "id": "one", "function": {"name": "f", "arguments": ""}}, {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 1, "id": "two", "function": {"name": "g", "arguments": "{}"}}, {"index": 0, "function": {"arguments": ":1}"}},
    ):  # fmt: skip
        event = orjson.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [delta]}}]})
        for chunk in ChunkReader().feed(b"data: " + event + b"\n\n"):
            seen.add(chunk)
    assert seen.tool_calls == [{"id": "one", "name": "f", "arguments": '{"a":1}'}, {"id": "two", "name": "g", "arguments": "{}"}]
