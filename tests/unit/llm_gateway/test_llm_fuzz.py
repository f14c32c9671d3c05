"""What providers may send, in all three dialects: any answer in any framing is read as it was meant, any part of one is never taken for
the whole, and no bytes at all raise anything but UpstreamFault.
"""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.adapters.anthropic import AnthropicDialect
from services.llm_gateway.adapters.gemini import GeminiDialect
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.charges import usage_of
from services.llm_gateway.chat import Answer, Assembly, Chunk, Meter
from services.llm_gateway.failures import FailureClass, UpstreamFault
from services.llm_gateway.money import Prices
from services.llm_gateway.recovery import Diverged, Stitch
from services.llm_gateway.registry import Deployment
from services.llm_gateway.retry_after import retry_after_s

DIALECTS = {"openai": OpenAiDialect(), "anthropic": AnthropicDialect(), "gemini": GeminiDialect()}
EACH = pytest.mark.parametrize("dialect", DIALECTS)
PRICED = Deployment("d", "g", "p", "openai", "m", "chat", prices=Prices(150_000, 600_000, 30_000, 600_000, known=True))
TEXT = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12)
NAME = st.text("abcdefgh_", min_size=1, max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@dataclass(frozen=True)
class Said:
    """What a model says: pieces of text, then calls of tools."""

    pieces: tuple[str, ...]
    calls: tuple[tuple[str, dict[str, Any]], ...]
    prompt: int
    completion: int

    @property
    def finish(self) -> str:
        return "tool_calls" if self.calls else "stop"


SAID = st.builds(
    Said,
    st.lists(TEXT, min_size=1, max_size=5).map(tuple),
    st.lists(st.tuples(NAME, st.dictionaries(NAME, TEXT | st.integers(0, 9), max_size=3)), max_size=2).map(tuple),
    st.integers(1, 10**6),
    st.integers(1, 10**6),
)


def openai_events(said: Said) -> list[bytes]:
    def chunk(delta: dict, finish: str | None = None) -> bytes:
        return orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    events = [chunk({"role": "assistant", "content": ""}), *(chunk({"content": piece}) for piece in said.pieces)]
    for number, (name, arguments) in enumerate(said.calls):
        raw = orjson.dumps(arguments).decode()
        events.append(chunk({"tool_calls": [{"index": number, "id": f"t{number}", "function": {"name": name, "arguments": ""}}]}))
        events += [chunk({"tool_calls": [{"index": number, "function": {"arguments": part}}]}) for part in (raw[:3], raw[3:]) if part]
    usage = {"prompt_tokens": said.prompt, "completion_tokens": said.completion}
    return [*events, chunk({}, said.finish), orjson.dumps({"id": "c", "choices": [], "usage": usage}), b"[DONE]"]


def anthropic_events(said: Said) -> list[bytes]:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"id": "m", "model": "x", "usage": {"input_tokens": said.prompt, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}} for piece in said.pieces),
        {"type": "content_block_stop", "index": 0},
    ]
    for number, (name, arguments) in enumerate(said.calls, 1):
        block = {"type": "tool_use", "id": f"t{number}", "name": name, "input": {}}
        raw = orjson.dumps(arguments).decode()
        events.append({"type": "content_block_start", "index": number, "content_block": block})
        events += [
            {"type": "content_block_delta", "index": number, "delta": {"type": "input_json_delta", "partial_json": part}}
            for part in (raw[:3], raw[3:])
        ]
        events.append({"type": "content_block_stop", "index": number})
    reason = "tool_use" if said.calls else "end_turn"
    events.append({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": said.completion}})
    return [orjson.dumps(event) for event in [*events, {"type": "message_stop"}]]


def gemini_events(said: Said) -> list[bytes]:
    def event(parts: list, **more: Any) -> bytes:
        return orjson.dumps({"candidates": [{"index": 0, "content": {"role": "model", "parts": parts}, **more}], "responseId": "r"})

    usage = {"promptTokenCount": said.prompt, "candidatesTokenCount": said.completion, "totalTokenCount": said.prompt + said.completion}
    events = [event([{"text": piece}]) for piece in said.pieces]
    events += [event([{"functionCall": {"name": name, "args": arguments}}]) for name, arguments in said.calls]
    last = {"candidates": [{"index": 0, "content": {"parts": []}, "finishReason": "STOP"}], "usageMetadata": usage, "responseId": "r"}
    return [*events, orjson.dumps(last)]


EVENTS = {"openai": openai_events, "anthropic": anthropic_events, "gemini": gemini_events}


@st.composite
def framed(draw: st.DrawFn, events: list[bytes]) -> bytes:
    """The events as an event stream, in one of the ways that the format allows."""
    end = draw(st.sampled_from([b"\n", b"\r\n", b"\r"]))
    raw = draw(st.sampled_from([b"", b"\xef\xbb\xbf"]))
    for number, event in enumerate(events):
        noise = draw(st.sampled_from([b"", b": ping", b"id: 7", b"retry: 10", b"event: x", b"nonsense", b"data-x: 1", b":"]))
        raw += noise + end if noise else b""
        colon = draw(st.sampled_from([b"data: ", b"data:"]))
        # JSON may be told over several lines wherever it has a place for white space.
        if event.startswith(b"{") and draw(st.booleans()):
            event = b"{" + end + colon + event[1:-1] + end + colon + b"}"
        raw += colon + event + end
        # The last empty line is often forgotten.
        raw += end if number < len(events) - 1 or draw(st.booleans()) else b""
    return raw


def cut(raw: bytes, at: list[int]) -> list[bytes]:
    points = sorted({point % (len(raw) + 1) for point in at})
    return [raw[start:stop] for start, stop in zip([0, *points], [*points, len(raw)], strict=True)]


@dataclass
class Read:
    """What came of a stream."""

    assembly: Assembly
    meter: Meter
    finished: bool
    fault: UpstreamFault | None

    def seen(self) -> tuple:
        calls = [(call["name"], call["arguments"]) for call in self.assembly.tool_calls]
        fault = self.fault.failure.failure_class if self.fault else None
        return self.assembly.text, calls, self.assembly.finish_reason, self.finished, fault


def read(dialect: str, reads: list[bytes]) -> Read:
    """As the transport reads it: until the reader is done, and what came in one read with a failure counts as sent."""
    reader = DIALECTS[dialect].reader()
    found = Read(Assembly(), Meter(), False, None)

    def take(chunks: list[Chunk]) -> None:
        for chunk in chunks:
            found.assembly.add(chunk)
            found.meter.add(chunk)
            assert isinstance(orjson.loads(chunk.raw), dict)

    try:
        for piece in reads:
            if reader.done:
                break
            take(reader.feed(piece))
        if not reader.done:
            take(reader.end())
    except UpstreamFault as fault:
        found.fault = fault
        take(list(fault.sent))
    found.finished = reader.finished and found.fault is None
    return found


CUTS = st.lists(st.integers(0, 10_000), max_size=10)


@EACH
@given(st.data(), SAID, CUTS)
def test_any_answer_in_any_framing_and_any_pieces_is_read_as_it_was_meant(dialect, data, said, cuts):
    raw = data.draw(framed(EVENTS[dialect](said)))
    found = read(dialect, cut(raw, cuts))
    assert found.fault is None
    assert found.finished
    assert found.assembly.text == "".join(said.pieces)
    assert found.assembly.finish_reason == said.finish
    assert [(call["name"], orjson.loads(call["arguments"])) for call in found.assembly.tool_calls] == list(said.calls)
    usage = usage_of(PRICED, found.meter.usage)
    assert (usage.input, usage.output, usage.estimated) == (said.prompt, said.completion, False)


@EACH
@given(st.data(), SAID, CUTS, st.integers(0, 10_000))
def test_a_part_of_an_answer_is_never_taken_for_the_whole(dialect, data, said, cuts, length):
    raw = data.draw(framed(EVENTS[dialect](said)))
    found = read(dialect, cut(raw[: length % len(raw)], cuts))
    text = "".join(said.pieces)
    assert text.startswith(found.assembly.text)
    if found.finished:
        assert found.assembly.text == text
        assert found.assembly.finish_reason == said.finish
        assert [(call["name"], orjson.loads(call["arguments"])) for call in found.assembly.tool_calls] == list(said.calls)


SPOILS = st.lists(
    st.tuples(st.integers(0, 10_000), st.sampled_from(["set", "insert", "drop"]), st.binary(min_size=1, max_size=4)), max_size=4
)


def spoilt(raw: bytes, spoils: list[tuple[int, str, bytes]]) -> bytes:
    for place, how, what in spoils:
        at = place % (len(raw) + 1)
        raw = raw[:at] + (b"" if how == "drop" else what) + raw[at + (0 if how == "insert" else len(what)) :]
    return raw


@EACH
@given(st.data(), SAID, CUTS, SPOILS)
def test_spoilt_bytes_end_in_an_answer_or_a_fault_however_they_are_cut(dialect, data, said, cuts, spoils):
    raw = spoilt(data.draw(framed(EVENTS[dialect](said))), spoils)
    found = read(dialect, cut(raw, cuts))
    assert found.seen()[0:3] == read(dialect, [raw]).seen()[0:3]
    assert not (found.finished and not found.assembly.finish_reason)


@EACH
@given(st.binary(max_size=400), CUTS)
def test_no_bytes_are_a_finished_stream_by_chance(dialect, raw, cuts):
    assert not read(dialect, cut(raw, cuts)).finished


UNREADABLE = st.sampled_from([b'{"broken', b"\xff\xfe", b"\x00", b"[]", b"7", b'"text"'])


@EACH
@given(SAID, st.integers(0, 30), UNREADABLE)
def test_an_event_that_cannot_be_read_never_makes_another_tool_call(dialect, said, place, unreadable):
    events = EVENTS[dialect](said)
    events[place % len(events)] = unreadable
    found = read(dialect, [b"".join(b"data: " + event + b"\n\n" for event in events)])
    if found.finished and found.assembly.finish_reason == "tool_calls":
        calls = [(call["name"], orjson.loads(call["arguments"])) for call in found.assembly.tool_calls]
        # Gemini says each call in one event of its own: a lost one is told as a gap, the others are whole.
        assert calls == list(said.calls) or (dialect == "gemini" and all(call in said.calls for call in calls))


@EACH
@given(st.lists(JSON, max_size=6))
def test_any_json_as_events_is_read_by_all_that_follows(dialect, values):
    reader, stitch = DIALECTS[dialect].reader(), Stitch()
    assembly, meter = Assembly(), Meter()
    try:
        for number, value in enumerate(values):
            chunks = reader.feed(b"data: " + orjson.dumps(value) + b"\n\n")
            if number == 2:
                stitch.restart()
            for chunk in stitch.feed(chunks):
                assembly.add(chunk)
                meter.add(chunk)
    except (UpstreamFault, Diverged):
        return
    assert usage_of(PRICED, meter.usage) is None or meter.usage is not None


CALL = {"id": "t", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BLOCKS = [{"type": "text", "text": "hi"}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}]
PARTS = [{"text": "hi"}, {"functionCall": {"name": "f", "args": {}}}]
ANSWERS = {
    "openai": {
        "id": "c",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi", "tool_calls": [CALL]}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    },
    "anthropic": {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "content": BLOCKS,
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    },
    "gemini": {
        "candidates": [{"content": {"role": "model", "parts": PARTS}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 4},
    },
}


def paths(value: Any, at: tuple = ()) -> list[tuple]:
    found = [at]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += paths(inner, (*at, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            found += paths(inner, (*at, number))
    return found


def replaced(value: Any, at: tuple, new: Any) -> Any:
    if not at:
        return new
    made = dict(value) if isinstance(value, dict) else list(value)
    made[at[0]] = replaced(value[at[0]], at[1:], new)
    return made


def answered(dialect: str, raw: bytes) -> Answer | None:
    try:
        answer = DIALECTS[dialect].read_answer(raw)
    except UpstreamFault:
        return None
    choices = answer.data["choices"]
    assert choices
    assert all(isinstance(choice["finish_reason"], str) and isinstance(choice["message"], dict) for choice in choices)
    assert orjson.loads(answer.raw)["choices"]
    usage = usage_of(PRICED, answer.usage)
    assert usage is None or usage.cost_picousd >= 0
    return answer


@EACH
@given(st.data(), JSON)
def test_any_value_anywhere_in_a_body_is_an_answer_or_a_fault(dialect, data, value):
    body = ANSWERS[dialect]
    answered(dialect, orjson.dumps(replaced(body, data.draw(st.sampled_from(paths(body))), value)))
    answered(dialect, orjson.dumps(value))


@EACH
@given(SPOILS, st.booleans())
def test_any_bytes_are_an_answer_or_a_fault(dialect, spoils, bom):
    raw = (b"\xef\xbb\xbf" if bom else b"") + orjson.dumps(ANSWERS[dialect])
    answer = answered(dialect, spoilt(raw, spoils))
    assert spoils or answer is not None


ODD = {
    "empty": b"",
    "null": b"null",
    "deep": b"[" * 100_000,
    "deeper": b'{"choices":' * 5_000,
    "no-utf8": b"\xff" * 50,
    "nul": b"\x00",
    "nan": b'{"choices":[NaN]}',
    "infinite": b'{"a":1e999}',
    "space": b"{" + b" " * 10**6 + b"}",
}


@EACH
@pytest.mark.parametrize("raw", ODD.values(), ids=ODD)
def test_odd_bodies_are_malformed(dialect, raw):
    with pytest.raises(UpstreamFault) as raised:
        DIALECTS[dialect].read_answer(raw)
    assert raised.value.failure.failure_class is FailureClass.MALFORMED
    assert read(dialect, [b"data: " + raw + b"\n\n"]).finished is False


@EACH
@given(JSON)
def test_any_body_of_vectors_or_rankings_is_one_or_a_fault(dialect, value):
    for body in (
        value,
        {"data": value},
        {"data": [{"embedding": value}]},
        {"embeddings": [value]},
        {"results": [{"index": 0, "relevance_score": value}]},
    ):
        for parse in (DIALECTS[dialect].read_vectors, DIALECTS[dialect].read_ranking):
            with suppress(UpstreamFault):
                parse(orjson.dumps(body))


HEADER = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40) | st.sampled_from(
    ["1e400", "-5", "inf", "nan", "0", "Fri, 31 Dec 9999 23:59:59 GMT", "Mon, 99 Foo 2026", "1_000", "٣", "+5", " 7 ", "0x10", "1,5"]
)
WAITS = ("retry-after", "retry-after-ms", "x-ms-retry-after-ms", "x-ratelimit-reset", "anthropic-ratelimit-requests-reset")


REFUSAL = st.binary(max_size=100) | JSON.map(orjson.dumps) | JSON.map(lambda value: orjson.dumps({"error": value}))


@EACH
@given(st.integers(201, 599), REFUSAL, st.dictionaries(st.sampled_from(WAITS), HEADER))
def test_any_refusal_is_of_some_class_and_its_wait_is_bounded(dialect, status, body, headers):
    failure = DIALECTS[dialect].failure(status, body, headers)
    assert isinstance(failure.failure_class, FailureClass)
    assert failure.retry_after_s is None or 0 <= failure.retry_after_s <= 24 * 3600
    assert len(failure.message) <= 500
    waits_s = retry_after_s(headers, time.time())
    assert waits_s is None or 0 <= waits_s <= 24 * 3600
