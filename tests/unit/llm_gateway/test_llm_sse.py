"""Server-sent events, cut at any byte."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.chat import ChunkReader
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.sse import SseParser

LINE_ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
TEXT = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), min_size=1).map(str.encode)


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    points = sorted({min(point, len(raw)) for point in at})
    return [raw[start:end] for start, end in zip([0, *points], [*points, len(raw)], strict=True)]


def parse(reads: list[bytes]) -> list[bytes]:
    parser = SseParser()
    found = [event for read in reads for event in parser.feed(read)]
    return found + parser.end()


@given(
    st.lists(st.lists(TEXT, min_size=1, max_size=3), max_size=6),
    LINE_ENDS,
    st.lists(st.integers(0, 400), max_size=12),
    st.booleans(),
    st.booleans(),
)
def test_events_survive_every_cut_line_end_comment_and_bom(events, end, cuts, bom, comments):
    raw = b"\xef\xbb\xbf" if bom else b""
    for lines in events:
        if comments:
            raw += b": keep-alive" + end + b"id: 7" + end
        raw += b"".join(b"data: " + line + end for line in lines) + end
    assert parse(cut(raw, cuts)) == [b"\n".join(lines) for lines in events]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_single_cut_of_an_event_of_two_lines(end):
    raw = b"data: one" + end + b"data: two" + end + end + b"data: three" + end + end
    for at in range(len(raw) + 1):
        assert parse([raw[:at], raw[at:]]) == [b"one\ntwo", b"three"], at


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=6))
def test_no_bytes_break_the_parser_and_cuts_change_nothing(raw, cuts):
    assert parse(cut(raw, cuts)) == parse([raw])


def test_the_last_event_may_lack_its_empty_line():
    assert parse([b"data: one\n\ndata: two"]) == [b"one", b"two"]
    assert parse([b"data: one\n\n", b"data: two\n"]) == [b"one", b"two"]


def test_a_value_keeps_all_but_one_space_and_an_empty_field_counts():
    assert parse([b"data:  x\n\ndata:y\n\ndata\ndata\n\n"]) == [b" x", b"y", b"\n"]


def test_an_event_without_end_is_bounded():
    parser = SseParser(max_event_bytes=1000)
    with pytest.raises(UpstreamFault):
        for _ in range(20):
            parser.feed(b"x" * 100)


def chunk(delta: dict, finish=None) -> bytes:
    return b"data: " + orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}) + b"\n\n"


@given(st.lists(st.text(st.characters(blacklist_categories=("Cs",)), max_size=8), max_size=8), st.lists(st.integers(0, 2000), max_size=12))
def test_the_text_of_a_stream_does_not_depend_on_the_cuts(texts, cuts):
    raw = b"".join(chunk({"content": text}) for text in texts) + chunk({}, "stop") + b"data: [DONE]\n\n"
    reader = ChunkReader()
    chunks = [c for read in cut(raw, cuts) for c in reader.feed(read)]
    assert "".join(c.text for c in chunks) == "".join(texts)
    assert reader.finished
    assert reader.done


def test_one_malformed_event_is_skipped_and_told_and_two_are_a_failure():
    reader = ChunkReader()
    chunks = reader.feed(chunk({"content": "a"}) + b'data: {"id": \n\n' + chunk({"content": "b"}))
    assert [(c.text, c.after_gap) for c in chunks] == [("a", False), ("b", True)]
    with pytest.raises(UpstreamFault, match="malformed"):
        reader.feed(b"data: nonsense\n\n")


@pytest.mark.parametrize(
    "event",
    [
        b"[]",
        b"7",
        b'{"choices": 7}',
        b'{"choices": [7]}',
        b'{"choices": [{"delta": 7}]}',
        b'{"choices": [{"delta": {"content": 7}}]}',
        b'{"choices": [{"delta": {"tool_calls": [7]}}]}',
        b'{"choices": [{"index": "x"}]}',
        b'{"choices": [{"delta": {"tool_calls": [{"function": 7}]}}]}',
    ],
)
def test_events_of_the_wrong_shape_are_malformed(event):
    reader = ChunkReader()
    assert reader.feed(b"data: " + event + b"\n\n") == []
    assert reader.malformed_events == 1


def test_an_answer_is_finished_only_when_every_choice_is():
    reader = ChunkReader()
    reader.feed(b'data: {"choices":[{"index":0,"delta":{"content":"a"},"finish_reason":"stop"},{"index":1,"delta":{"content":"b"}}]}\n\n')
    assert not reader.finished
    reader.feed(b'data: {"choices":[{"index":1,"delta":{},"finish_reason":"stop"}]}\n\n')
    assert reader.finished


def test_an_error_event_is_an_error_wherever_it_comes():
    reader = ChunkReader()
    reader.feed(chunk({"content": "a"}))
    with pytest.raises(UpstreamFault) as caught:
        reader.feed(b'data: {"error": {"code": "rate_limit_exceeded"}}\n\n')
    assert caught.value.failure.failure_class.value == "rate_limited"
