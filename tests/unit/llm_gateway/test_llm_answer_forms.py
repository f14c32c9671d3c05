"""Whole answers and streams, made from one another."""

import orjson
import pytest
from bulkhead.llm.v1 import llm_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.llm_gateway.answer_forms import answer_of, chunks_in, chunks_of, events_of
from services.llm_gateway.chat import Assembly, ChunkReader, parse_answer
from services.llm_gateway.messages_shape import BLOCKS, OWN_FIELDS
from services.llm_gateway.model_port.messages_answer import MessageEvents, message_body
from services.llm_gateway.money import NOTHING
from services.llm_gateway.proto_answers import StreamedAnswer, message_of
from services.llm_gateway.proto_chat import chat_call

NAMES, TEXTS = st.text(min_size=1, max_size=8), st.text(max_size=20)
CALLS = st.lists(st.fixed_dictionaries({"id": NAMES, "name": NAMES, "arguments": TEXTS}), max_size=3)
MESSAGES = st.fixed_dictionaries({"content": st.none() | TEXTS, "reasoning_content": st.none() | TEXTS, "calls": CALLS})


def answer(messages, usage=True):
    choices = []
    for index, made in enumerate(messages):
        message = {"role": "assistant", "content": made["content"]}
        if made["reasoning_content"] is not None:
            message["reasoning_content"] = made["reasoning_content"]
        if made["calls"]:
            message["tool_calls"] = [
                {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
                for call in made["calls"]
            ]
        choices.append({"index": index, "message": message, "finish_reason": "tool_calls" if made["calls"] else "stop"})
    data = {"id": "c-1", "created": 7, "model": "m", "object": "chat.completion", "choices": choices}
    if usage:
        data["usage"] = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return data


@given(st.lists(MESSAGES, min_size=1, max_size=3), st.booleans())
def test_there_and_back(messages, usage):
    data = answer(messages, usage)
    chunks = chunks_of(data)
    assert answer_of(chunks).data == data
    parse_answer(answer_of(chunks).raw)
    reader = ChunkReader()
    reader.feed(events_of(chunks))
    assert reader.finished
    assert reader.malformed_events == 0
    assembly = Assembly()
    for chunk in chunks:
        assembly.add(chunk)
    assert assembly.text == (data["choices"][0]["message"]["content"] or "")
    assert assembly.tool_calls == messages[0]["calls"]


@given(st.text(min_size=1), st.lists(st.integers(1, 5), max_size=8))
def test_deltas_of_any_size_add_up(text, sizes):
    events, rest = [], text
    for size in [*sizes, len(text)]:
        events.append({"id": "c", "choices": [{"index": 0, "delta": {"content": rest[:size]}}]})
        rest = rest[size:]
    events.append({"id": "c", "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks = chunks_in(b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events))
    assert answer_of(chunks).data["choices"][0]["message"]["content"] == text


def test_events_keep_their_bytes():
    raw = b'data: {"id" : "x",\ndata:  "choices":[]}\n\ndata: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n'
    assert [chunk.raw for chunk in chunks_in(events_of(chunks_in(raw)))] == [chunk.raw for chunk in chunks_in(raw)]


def test_interleaved_tool_calls_and_thinking_blocks():
    def delta(finish=None, **fields):
        return {"choices": [{"index": 0, "delta": fields, "finish_reason": finish}]}

    block = {"type": "thinking", "thinking": "hm", "signature": "s"}
    events = [
        delta(role="assistant", thinking_blocks=[block], reasoning_content="hm"),
        delta(tool_calls=[{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}]),
        delta(tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": "{"}}]),
        delta(tool_calls=[{"index": 1, "function": {"arguments": "{}"}}, {"index": 0, "function": {"arguments": "}"}}]),
        delta("tool_calls"),
    ]
    made = answer_of(chunks_in(b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events)))
    message = made.data["choices"][0]["message"]
    assert message["thinking_blocks"] == [block]
    assert [(call["id"], call["function"]) for call in message["tool_calls"]] == [
        ("a", {"name": "f", "arguments": "{}"}),
        ("b", {"name": "g", "arguments": "{}"}),
    ]


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"index": 0, "delta": {"content": "x"}}]},
        {"choices": [{"index": 0, "delta": {"hologram": "x"}, "finish_reason": "stop"}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}, {"index": 1, "delta": {"content": "x"}}]},
        {"choices": []},
    ],
    ids=["unfinished", "unknown content", "one choice unfinished", "empty"],
)
def test_what_cannot_be_put_together_is_no_answer(event):
    assert answer_of(chunks_in(b"data: " + orjson.dumps(event) + b"\n\n")) is None


@pytest.mark.parametrize("numbered", [{"index": 0}, {}], ids=["every call is 0", "no numbers"])
def test_calls_that_only_their_ids_tell_apart_stay_apart(numbered):
    def piece(**call):
        return {"choices": [{"index": 0, "delta": {"tool_calls": [{**numbered, **call}]}, "finish_reason": None}]}

    events = [
        piece(id="a", type="function", function={"name": "f", "arguments": '{"x"'}),
        piece(function={"arguments": ":1}"}),
        piece(id="b", type="function", function={"name": "f", "arguments": '{"x"'}),
        piece(function={"arguments": ":2}"}),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]},
    ]
    chunks = chunks_in(b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events))
    calls = answer_of(chunks).data["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["function"]["arguments"]) for call in calls] == [("a", '{"x":1}'), ("b", '{"x":2}')]
    deltas = [event.tool_call_delta for event in StreamedAnswer().feed(chunks)]
    assert [delta.index for delta in deltas] == [0, 0, 1, 1]


@pytest.mark.parametrize("numbers", [(0, 0, 0), (None, None, None), (0, 0, 1), (0, 1, 2)])
def test_the_sum_of_a_stream_keeps_calls_apart_too(numbers):
    """Some servers number every call 0 or none at all, and each of them comes whole or with what follows its head."""
    first, second, third = ({} if number is None else {"index": number} for number in numbers)
    calls = [
        {**first, "id": "a", "function": {"name": "add", "arguments": '{"x"'}},
        {**first, "function": {"arguments": ":1}"}},
        {**second, "id": "b", "function": {"name": "add", "arguments": "{}"}},
        {**third, "id": "c", "function": {"name": "sub", "arguments": "{}"}},
    ]
    assembly = Assembly()
    for call in calls:
        for chunk in chunks_in(b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]}) + b"\n\n"):
            assembly.add(chunk)
    assert [(call["id"], call["arguments"]) for call in assembly.tool_calls] == [("a", '{"x":1}'), ("b", "{}"), ("c", "{}")]


def calling(*calls):
    events = [{"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]} for call in calls]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    return chunks_in(b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events))


def test_the_input_of_a_custom_tool_is_put_together_too():
    chunks = calling(
        {"index": 0, "id": "a", "type": "custom", "custom": {"name": "shell", "input": ""}},
        {"index": 0, "custom": {"input": "rm -r "}},
        {"index": 0, "custom": {"input": "/tmp/x"}},
        {"index": 0, "id": "b", "type": "custom", "custom": {"name": "shell", "input": "ls"}},
    )
    calls = answer_of(chunks).data["choices"][0]["message"]["tool_calls"]
    assert [(call["id"], call["custom"]) for call in calls] == [
        ("a", {"name": "shell", "input": "rm -r /tmp/x"}),
        ("b", {"name": "shell", "input": "ls"}),
    ]


@pytest.mark.parametrize(
    "later", [{"extra_content": {"google": {"thought_signature": "two"}}}, {"custom": "text"}, {"mcp": {"server": "b"}}]
)
def test_what_a_later_piece_of_a_call_says_otherwise_is_not_dropped(later):
    first = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}, "mcp": {"server": "a"}}
    first["extra_content"] = {"google": {"thought_signature": "one"}}
    assert answer_of(calling(first, {"index": 0, **later})) is None


def test_arguments_that_come_as_an_object_stay_what_they_are():
    chunks = calling({"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}})
    assert answer_of(chunks).data["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"x":1}'
    assert [event.tool_call_delta.arguments_fragment for event in StreamedAnswer().feed(chunks)] == ['{"x":1}']
    assembly = Assembly()
    for chunk in chunks:
        assembly.add(chunk)
    assert assembly.tool_calls == [{"id": "a", "name": "f", "arguments": '{"x":1}'}]
    events = MessageEvents(())
    assert rb'"partial_json":"{\"x\":1}"' in events.feed(chunks)


@given(st.lists(MESSAGES, min_size=1, max_size=3), st.integers(0, 4))
def test_a_stream_of_text_only_has_the_same_text_and_nothing_else(messages, size):
    chunks, all_of_it, text_only = chunks_of(answer(messages)), StreamedAnswer(), StreamedAnswer(text_only=True)
    parts = [chunks[:size], chunks[size:]]
    told, kept = ([event for part in parts for event in stream.feed(part)] for stream in (all_of_it, text_only))

    def texts(events):
        choices = range(len(messages))
        deltas = [event.text_delta for event in events if event.HasField("text_delta")]
        return ["".join(delta.text for delta in deltas if delta.choice == number) for number in choices]

    assert texts(kept) == texts(told) == [made["content"] or "" for made in messages]
    assert {event.WhichOneof("event") for event in kept} <= {"text_delta"}


def test_what_a_token_has_beside_its_probability_goes_along():
    tokens = [{"token": "a", "logprob": -0.5, "token_id": 64}]
    choice = {"index": 0, "delta": {"content": "a"}, "logprobs": {"content": tokens}}
    detail = StreamedAnswer().feed(chunks_in(b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"))[0].detail_delta
    assert [entry.token for entry in detail.logprobs.content] == ["a"]
    assert orjson.loads(detail.choice_json) == {"logprobs": {"content": tokens}}


def test_an_answer_of_nothing_but_thought_can_be_sent_back():
    thought = message_of({"role": "assistant", "content": None, "reasoning": "hm"})
    asked = llm_pb2.CompletionInput(model="m", messages=[llm_pb2.Message(role="user", text="x"), thought])
    assert chat_call(asked, stream=False).body["messages"][1] == {"role": "assistant", "content": None, "reasoning": "hm"}


@pytest.mark.parametrize(
    "odd", [{"thinking_blocks": 5}, {OWN_FIELDS: {"stop_reason": {}}}, {OWN_FIELDS: {BLOCKS: [5, {"type": "text", "text": "b"}]}}]
)
def test_members_of_no_known_shape_break_no_message(odd):
    message = {"role": "assistant", "content": "b", **odd}
    data = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    events = MessageEvents(())
    said = events.feed(chunks_of(data)) + events.end(NOTHING)
    assert b'"text_delta","text":"b"' in said
    assert b"message_stop" in said
    whole = orjson.loads(message_body(parse_answer(orjson.dumps(data)), (), NOTHING))
    assert whole["stop_reason"] == "end_turn"
    assert whole["content"][-1] == {"type": "text", "text": "b"}
