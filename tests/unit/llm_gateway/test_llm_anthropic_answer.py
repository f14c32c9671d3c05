"""Answers, streams and errors of the Messages API as OpenAI's; fixtures are valid by the SDKs' own models on both sides."""

import json
from contextlib import suppress

import orjson
import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import TypeAdapter

from services.llm_gateway.adapters.anthropic import AnthropicDialect
from services.llm_gateway.answer_forms import answer_of
from services.llm_gateway.chat import Answer, Assembly, ChunkReader
from services.llm_gateway.failures import FailureClass, UpstreamFault
from services.llm_gateway.messages_shape import JSON_TOOL
from services.llm_gateway.model_port.messages_answer import MessageEvents, message_body
from services.llm_gateway.money import NOTHING, Usage

EVENT = TypeAdapter(RawMessageStreamEvent)
USAGE = {
    "input_tokens": 10,
    "cache_read_input_tokens": 5,
    "cache_creation_input_tokens": 7,
    "cache_creation": {"ephemeral_5m_input_tokens": 7, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 9,
    "output_tokens_details": {"thinking_tokens": 4},
}


def message(blocks, stop="end_turn", **more):
    made = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": blocks, "stop_reason": stop,
            "stop_sequence": None, "usage": USAGE, **more}  # fmt: skip
    Message.model_validate(made)
    return orjson.dumps(made)


def read(*args, **more):
    found = AnthropicDialect().read_answer(message(*args, **more))
    ChatCompletion.model_validate({**found.data, "usage": dict(found.data["usage"])})
    assert orjson.loads(found.raw) == found.data
    return found


def stream(*events):
    return b"".join(b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n" for event in events)


def start(**more):
    made = {"id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "content": [], "stop_reason": None,
            "stop_sequence": None, "usage": {**USAGE, "output_tokens": 1}, **more}  # fmt: skip
    return {"type": "message_start", "message": made}


def block(index, begun, *deltas):
    yield {"type": "content_block_start", "index": index, "content_block": begun}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def stop(reason="end_turn", sequence=None, **usage):
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    yield {"type": "message_delta", "delta": delta, "usage": {"output_tokens": 9, **usage}}
    yield {"type": "message_stop"}


def text(*pieces):
    return {"type": "text", "text": ""}, *({"type": "text_delta", "text": piece} for piece in pieces)


def tool(name="f", *pieces, begun=None):
    return {"type": "tool_use", "id": f"toolu_{name}", "name": name, "input": begun or {}}, *(
        {"type": "input_json_delta", "partial_json": piece} for piece in pieces
    )


THOUGHT = (
    {"type": "thinking", "thinking": "", "signature": ""},
    {"type": "thinking_delta", "thinking": "let me"},
    {"type": "thinking_delta", "thinking": " see"},
    {"type": "signature_delta", "signature": "sig"},
)
SEARCH = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}}
WHOLE = (
    start(),
    *block(0, *THOUGHT),
    {"type": "ping"},
    *block(1, {"type": "redacted_thinking", "data": "xx"}),
    *block(2, *text("He", "llo ✓")),
    *block(3, SEARCH, {"type": "input_json_delta", "partial_json": '{"query": '}, {"type": "input_json_delta", "partial_json": '"q"}'}),
    *block(4, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": []}),
    *block(5, *text("found")),
    *block(6, *text(" more")),
    *block(7, *tool("f", "", '{"a', '": 1}')),
    *block(8, *tool("g")),
    {"type": "something_new", "x": 1},
    *stop("tool_use"),
)


def chunks_of(raw, cuts=()):
    reader = AnthropicDialect().reader()
    found, last = [], 0
    for cut in [*sorted(cuts), len(raw)]:
        found += reader.feed(raw[last:cut])
        last = cut
    found += reader.end()
    return reader, found


def gist(found):
    return [
        (chunk.data["choices"], chunk.data.get("usage"), chunk.text, chunk.finish_reason, chunk.meaningful, chunk.opaque) for chunk in found
    ]


def test_fixtures_are_the_sdks_events():
    for event in WHOLE:
        if event["type"] not in ("ping", "something_new"):
            EVENT.validate_python(event)


def test_an_answer():
    found = read([{"type": "text", "text": "Hello"}])
    (choice,) = found.data["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Hello"}
    assert choice["finish_reason"] == "stop"
    usage = found.usage
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (22, 9, 31)
    assert usage["prompt_tokens_details"] == {"cached_tokens": 5, "cache_creation_tokens": 7}
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 4}
    assert usage["cache_creation"]["ephemeral_5m_input_tokens"] == 7


def test_blocks_of_an_answer():
    thought = {"type": "thinking", "thinking": "hm", "signature": "s"}
    call = {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}}
    made = read([thought, {"type": "text", "text": "a"}, call], "tool_use").data["choices"][0]
    assert made["finish_reason"] == "tool_calls"
    assert made["message"]["tool_calls"] == [{"id": "toolu_1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}]
    assert made["message"]["thinking_blocks"] == [thought]
    assert made["message"]["reasoning_content"] == "hm"
    assert "provider_specific_fields" not in made["message"]
    strange = [{"type": "text", "text": "a"}, thought, {"type": "container_upload", "file_id": "f"}, {"type": "text", "text": "b"}]
    kept = read(strange).data["choices"][0]["message"]
    assert kept["content"] == "ab"
    assert kept["provider_specific_fields"]["content_blocks"] == strange


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("max_tokens", "length"),
        ("stop_sequence", "stop"),
        ("tool_use", "tool_calls"),
        ("refusal", "content_filter"),
        ("pause_turn", "stop"),
        ("model_context_window_exceeded", "length"),
    ],
)
def test_reasons_to_stop_survive_both_ways(reason, finish):
    sequence = "END" if reason == "stop_sequence" else None
    found = read([{"type": "text", "text": "x"}], reason, stop_sequence=sequence)
    assert found.data["choices"][0]["finish_reason"] == finish
    back = Message.model_validate_json(message_body(Answer(found.raw, found.data), ["END"], NOTHING))
    assert (back.stop_reason, back.stop_sequence) == (reason, sequence)
    reader, chunks = chunks_of(stream(start(), *block(0, *text("x")), *stop(reason, sequence)))
    assert reader.finished
    assert chunks[-2].finish_reason == (finish if finish != "tool_calls" else "stop")
    if reason != "tool_use":
        made = MessageEvents(["END"])
        ended = made.feed(chunks) + made.end(NOTHING)
        assert b'"stop_reason":"%s"' % reason.encode() in ended


def test_a_stream_of_everything_in_openais_shape():
    reader, chunks = chunks_of(stream(*WHOLE))
    assert reader.done
    assert reader.finished
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.data)
        assert orjson.loads(chunk.raw) == chunk.data
    assembly = Assembly()
    for chunk in chunks:
        assembly.add(chunk)
    assert assembly.text == "Hello ✓found more"
    assert assembly.tool_calls == [
        {"id": "toolu_f", "name": "f", "arguments": '{"a": 1}'},
        {"id": "toolu_g", "name": "g", "arguments": "{}"},
    ]
    assert (assembly.finish_reason, assembly.response_id, assembly.model) == ("tool_calls", "msg_1", "claude-x")
    assert chunks[-1].usage["prompt_tokens"] == 22
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert not chunks[0].meaningful
    thoughts = [chunk.data["choices"][0]["delta"].get("thinking_blocks") for chunk in chunks if chunk.opaque and chunk.data["choices"]]
    assert [{"type": "thinking", "thinking": "let me see", "signature": "sig"}] in thoughts


def test_a_stream_of_everything_comes_back_as_the_same_message():
    _, chunks = chunks_of(stream(*WHOLE))
    made = MessageEvents(())
    raw = b"".join(made.feed([chunk]) for chunk in chunks) + made.end(NOTHING)
    events = [orjson.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: ")]
    for event in events:
        EVENT.validate_python(event)
    assert message_of(events) == message_of(WHOLE)
    assert events[0]["message"]["usage"]["input_tokens"] == 10
    assert events[-2]["usage"]["cache_read_input_tokens"] == 5
    opened = None
    for event in events:
        if event["type"] == "content_block_start":
            assert opened is None
            opened = event["index"]
        elif event["type"] == "content_block_delta":
            assert event["index"] == opened
        elif event["type"] == "content_block_stop":
            opened = None


def message_of(events):
    """What a client adds the events up to."""
    blocks, inputs = [], {}
    for event in events:
        delta = event.get("delta", {})
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"]))
        elif delta.get("type") == "text_delta":
            blocks[event["index"]]["text"] += delta["text"]
        elif delta.get("type") == "thinking_delta":
            blocks[event["index"]]["thinking"] += delta["thinking"]
        elif delta.get("type") == "signature_delta":
            blocks[event["index"]]["signature"] = delta["signature"]
        elif delta.get("type") == "citations_delta":
            blocks[event["index"]].setdefault("citations", []).append(delta["citation"])
        elif delta.get("type") == "input_json_delta":
            inputs[event["index"]] = inputs.get(event["index"], "") + delta["partial_json"]
    for index, given_input in inputs.items():
        blocks[index]["input"] = orjson.loads(given_input or "{}")
    return blocks, [event["delta"] for event in events if event["type"] == "message_delta"]


def test_citations_come_back():
    citation = {
        "type": "char_location",
        "cited_text": "x",
        "document_index": 0,
        "start_char_index": 0,
        "end_char_index": 1,
        "document_title": None,
    }
    events = (start(), *block(0, *text("a"), {"type": "citations_delta", "citation": citation}), *block(1, *text("b")), *stop())
    _, chunks = chunks_of(stream(*events))
    made = MessageEvents(())
    raw = made.feed(chunks) + made.end(NOTHING)
    back = [orjson.loads(line[6:]) for line in raw.split(b"\n") if line.startswith(b"data: ")]
    assert message_of(back)[0] == message_of(events)[0]


RAW = stream(*WHOLE)
KNOWN = gist(chunks_of(RAW)[1])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 2 * len(RAW)), max_size=30), st.booleans(), st.booleans(), st.booleans())
def test_boundaries_line_ends_comments_and_pings_change_nothing(cuts, crlf, comments, pings):
    raw = RAW
    if comments:
        raw = raw.replace(b"event: content_block_delta", b": keep-alive\n\nevent: content_block_delta")
    if pings:
        raw = raw.replace(b"event: content_block_stop", b'event: ping\ndata: {"type": "ping"}\n\nevent: content_block_stop')
    if crlf:
        raw = raw.replace(b"\n", b"\r\n")
    reader, found = chunks_of(raw, [cut for cut in cuts if cut < len(raw)])
    assert gist(found) == KNOWN
    assert reader.finished


@settings(max_examples=100, deadline=None)
@given(st.integers(0, len(RAW)))
def test_a_cut_anywhere_before_the_end_is_never_whole(cut):
    reader, found = chunks_of(RAW[:cut])
    assert reader.finished == any(chunk.finish_reason for chunk in found) == (cut >= RAW.index(b"event: message_stop") - 2)


def test_a_stop_within_a_tool_call_is_refused():
    half = list(block(0, *tool("f", '{"a')))[:-1]
    with pytest.raises(UpstreamFault) as caught:
        chunks_of(stream(start(), *half, *stop("tool_use")))
    assert caught.value.failure.failure_class is FailureClass.MALFORMED
    reader, _ = chunks_of(stream(start(), *half))
    assert not reader.finished


def test_one_spoilt_event_is_skipped_but_not_within_a_tool_call():
    spoilt = b"event: content_block_delta\ndata: {nonsense\n\n"
    raw = stream(start(), *list(block(0, *text("a")))[:-1]) + spoilt + stream({"type": "content_block_stop", "index": 0}, *stop())
    reader, found = chunks_of(raw)
    assert reader.finished
    assert [chunk.after_gap for chunk in found].count(True) == 1
    with pytest.raises(UpstreamFault):
        chunks_of(raw.replace(spoilt, spoilt * 2))
    with pytest.raises(UpstreamFault):
        chunks_of(stream(start(), *list(block(0, *tool("f", "{")))[:-1]) + spoilt)


NAMES = ["type", "index", "delta", "message", "usage", "content_block", "stop_reason", "text", "error", "content"]
KINDS = ["message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta", "error", "x"]
nonsense = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(nonsense, st.sampled_from(KINDS))
def test_nonsense_never_raises_anything_else(value, kind):
    event = {**value, "type": kind} if isinstance(value, dict) else value
    with suppress(UpstreamFault):
        AnthropicDialect().reader().feed(stream(start()) + b"data: " + json.dumps(event).encode() + b"\n\n")
    with suppress(UpstreamFault):
        AnthropicDialect().read_answer(json.dumps(value).encode())


def test_structured_output_by_a_tool_is_content_again():
    found = read([{"type": "tool_use", "id": "t", "name": JSON_TOOL, "input": {"a": 1}}], "tool_use").data["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == ('{"a":1}', "stop")
    assert "tool_calls" not in found["message"]
    _, chunks = chunks_of(stream(start(), *block(0, *tool(JSON_TOOL, '{"a"', ": 1}")), *stop("tool_use")))
    assert "".join(chunk.text for chunk in chunks) == '{"a": 1}'
    assert chunks[-2].finish_reason == "stop"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"content": 3}', b'{"content": []}', b'{"content": [3], "stop_reason": "end_turn"}'])
def test_what_is_no_message_is_malformed(body):
    with pytest.raises(UpstreamFault) as caught:
        AnthropicDialect().read_answer(body)
    assert caught.value.failure.failure_class is FailureClass.MALFORMED


def test_a_stream_of_openais_shape_becomes_events():
    def chunk(delta, finish=None):
        data = {"id": "chatcmpl-1", "model": "gpt", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
        return b"data: " + orjson.dumps(data) + b"\n\n"

    calls = [{"index": 0, "id": "call_1", "function": {"name": "f", "arguments": ""}}, {"index": 0, "function": {"arguments": "{}"}}]
    second = {"index": 1, "id": "call_2", "function": {"name": "g", "arguments": '{"b": 2}'}}
    raw = b"".join([
        chunk({"role": "assistant", "reasoning_content": "hm"}), chunk({"content": "Hi"}), chunk({"tool_calls": [calls[0]]}),
        chunk({"tool_calls": [calls[1]]}), chunk({"tool_calls": [second]}), chunk({}, "tool_calls"), b"data: [DONE]\n\n",
    ])  # fmt: skip
    made = MessageEvents(())
    out = made.feed(ChunkReader().feed(raw)) + made.end(Usage(3, 4))
    events = [orjson.loads(line[6:]) for line in out.split(b"\n") if line.startswith(b"data: ")]
    for event in events:
        EVENT.validate_python(event)
    blocks, (delta,) = message_of(events)
    assert [found["type"] for found in blocks] == ["thinking", "text", "tool_use", "tool_use"]
    assert [found["input"] for found in blocks[2:]] == [{}, {"b": 2}]
    assert delta["stop_reason"] == "tool_use"
    assert events[-2]["usage"]["output_tokens"] == 4


def test_calls_that_ended_with_stop_are_still_for_the_client_to_make():
    # OpenAI and vLLM finish with "stop" where tool_choice forced the call; clients of this API go by the stop_reason.
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    choice = {"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "finish_reason": "stop"}
    made = orjson.loads(message_body(Answer(b"", {"id": "x", "choices": [choice]}), (), NOTHING))
    assert made["stop_reason"] == "tool_use"
    assert [block["type"] for block in made["content"]] == ["tool_use"]
    events = MessageEvents(())
    delta = {"tool_calls": [{"index": 0, **call}]}
    raw = b"".join(
        b"data: " + orjson.dumps({"id": "x", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}) + b"\n\n"
        for delta, finish in ((delta, None), ({}, "stop"))
    )
    events.feed(ChunkReader().feed(raw))
    assert b'"stop_reason":"tool_use"' in events.end(NOTHING)


def test_a_stream_that_was_kept_serves_whole_answers():
    whole = answer_of(AnthropicDialect().reader().feed(stream(start(), *block(0, *text("Hi")), *stop())))
    assert whole is not None
    assert whole.data["choices"][0]["finish_reason"]
