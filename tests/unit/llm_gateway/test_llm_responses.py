"""The Responses API as translation: requests to chat completions, chunks to events. OpenAI's own models read the results."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from services.common.errors import InvalidInput, UpstreamFailed
from services.llm_gateway.chat import ChunkReader
from services.llm_gateway.model_port.responses import RESPONSES
from services.llm_gateway.model_port.responses_reasoning import sealed, unsealed
from services.llm_gateway.model_port.responses_request import chat_body
from services.llm_gateway.model_port.responses_shape import Frame, items_of
from services.llm_gateway.model_port.responses_stream import ResponseEvents
from services.llm_gateway.money import Usage
from services.llm_gateway.registry import Deployment
from services.llm_gateway.results import Finished, Outcome

EVENT = TypeAdapter(ResponseStreamEvent)
ADD = {"type": "function", "name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}
THINKING = [{"type": "thinking", "thinking": "Hm.", "signature": "c2ln"}]
DEPLOYMENT = Deployment(id="d", group="main", provider="openai", adapter="openai", model="m", mode="chat")


def outcome(finish: str = "stop") -> Outcome:
    return Outcome(DEPLOYMENT, Usage(input=7, output=5, reasoning=2), finish, "r", "m-1", 1, 0, 0)


def request(**fields: Any) -> dict[str, Any]:
    return {"model": "main", "input": "hi", **fields}


def test_a_text_is_a_message_of_the_user():
    assert chat_body(request()) == {"messages": [{"role": "user", "content": "hi"}]}


def test_parameters():
    schema = {"type": "object", "properties": {}}
    made = chat_body(
        request(
            instructions="Be brief.", max_output_tokens=9, temperature=0.5, top_p=0.5, parallel_tool_calls=False, metadata={"a": "b"},
            reasoning={"effort": "low", "summary": "auto"}, tools=[ADD], tool_choice={"type": "function", "name": "add"}, user=None,
            text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}, "verbosity": "low"}, store=True,
            include=["reasoning.encrypted_content", "message.output_text.logprobs"], top_logprobs=2, stream=True, top_k=3, max_tool_calls=2,
        )
    )  # fmt: skip
    function = {"name": "add", "description": "Adds.", "parameters": {"type": "object"}, "strict": True}
    assert made == {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        "max_completion_tokens": 9, "temperature": 0.5, "top_p": 0.5, "parallel_tool_calls": False, "metadata": {"a": "b"},
        "reasoning_effort": "low", "verbosity": "low", "logprobs": True, "top_logprobs": 2, "stream": True,
        "stream_options": {"include_usage": True}, "top_k": 3,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "add"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
    }  # fmt: skip


def test_allowed_tools():
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "add"}]}
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert chat_body(request(tools=[ADD], tool_choice=choice))["tool_choice"] == {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": tools},
    }


def test_a_conversation():
    extra = {"google": {"thought_signature": "c2ln"}}
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "Look:"},
            {"type": "input_image", "image_url": "https://example.test/a.png", "detail": "low"},
            {"type": "input_file", "file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"},
        ]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": sealed(THINKING)},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
         "content": [{"type": "output_text", "text": "I add.", "annotations": []}]},
        {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "add", "arguments": "{}", "extra_content": extra},
        {"type": "function_call", "call_id": "b", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "a", "output": "1"},
        {"type": "function_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "2"}]},
        {"role": "assistant", "content": "Three."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No more."}]},
        {"role": "user", "content": "Why?"},
    ]  # fmt: skip
    function = {"name": "add", "arguments": "{}"}
    assert chat_body(request(input=items))["messages"] == [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": [
            {"type": "text", "text": "Look:"},
            {"type": "image_url", "image_url": {"url": "https://example.test/a.png", "detail": "low"}},
            {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"}},
        ]},
        {"role": "assistant", "content": "I add.", "thinking_blocks": THINKING, "tool_calls": [
            {"id": "a", "type": "function", "function": function, "extra_content": extra},
            {"id": "b", "type": "function", "function": function},
        ]},
        {"role": "tool", "tool_call_id": "a", "content": "1"},
        {"role": "tool", "tool_call_id": "b", "content": "2"},
        {"role": "assistant", "content": "Three."},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No more."}]},
        {"role": "user", "content": "Why?"},
    ]  # fmt: skip


def test_thinking_of_others_is_left_out():
    assert unsealed(sealed(THINKING)) == THINKING
    for other in ("gAAAA", None, 3, "bulkhead-1:!", "bulkhead-1:e30="):
        assert unsealed(other) == []


UNSUPPORTED = [
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"truncation": "auto"}, "truncation"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"n": 2}, "n"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [ADD, {"type": "mcp", "server_label": "x"}]}, "tools[1].type"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "file_1"}]}]}, "input[0].content[0].image_url"),
    ({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x"}]}]}, "input[0].content[0].file_data"),
]
WRONG = [
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({"input": ["x"]}, "input[0]"),
    ({"input": [{"type": "reasoning", "summary": []}]}, "input"),
    ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "f"}]}, "input[0].arguments"),
    ({"input": [{"type": "function_call_output", "output": "1"}]}, "input[0].call_id"),
    ({"input": [{"type": "function_call_output", "call_id": "a"}]}, "input[0].output"),
    ({"instructions": 3}, "instructions"),
    ({"max_output_tokens": -1}, "max_output_tokens"),
    ({"max_output_tokens": True}, "max_output_tokens"),
    ({"temperature": 3}, "temperature"),
    ({"stream": "yes"}, "stream"),
    ({"include": "x"}, "include"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"tools": "x"}, "tools"),
    ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ({"tools": [{"type": "function", "name": "f", "parameters": 3}]}, "tools[0].parameters"),
    ({"tools": [{}]}, "tools[0].type"),
    ({"tools": [ADD] * 2001}, "tools"),
    ({"tool_choice": "often"}, "tool_choice"),
    ({"tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"text": "x"}, "text"),
    ({"text": {"format": {"type": "json_schema"}}}, "text.format"),
    ({"text": {"format": {"type": "xml"}}}, "text.format.type"),
    ({"reasoning": "high"}, "reasoning"),
    ({"reasoning": {"effort": 3}}, "reasoning.effort"),
]


@pytest.mark.parametrize(("fields", "param"), UNSUPPORTED)
def test_what_the_gateway_has_not_is_refused_by_name(fields, param):
    with pytest.raises(InvalidInput) as refused:
        chat_body(request(**fields))
    assert (refused.value.reason, refused.value.metadata["param"]) == ("UNSUPPORTED_PARAMETER", param)


@pytest.mark.parametrize(("fields", "field"), WRONG)
def test_what_is_wrong_is_named(fields, field):
    with pytest.raises(InvalidInput) as wrong:
        chat_body(request(**fields))
    assert wrong.value.violations[0].field == field


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.sampled_from(["", "x", "user", "assistant", "function", "json_schema"]),
    lambda s: (
        st.lists(s, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "call_id", "output", "name", "format", "schema", "text", "tools", "mode"]),
            s | st.sampled_from(["message", "function_call", "input_text", "input_image", "allowed_tools", "function_call_output"]),
            max_size=4,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from(["input", "tools", "tool_choice", "text", "reasoning", "include", "metadata", "stream_options", "instructions"]), JSON
)
def test_any_json_is_translated_or_refused(field, value):
    try:
        made = chat_body(request(**{field: value}))
    except InvalidInput:
        return
    assert made["messages"]


CHOICE = {
    "index": 0,
    "finish_reason": "tool_calls",
    "message": {
        "role": "assistant",
        "content": "Let me add.",
        "reasoning_content": "Hm.",
        "thinking_blocks": THINKING,
        "tool_calls": [{"id": "a", "type": "function", "function": {"name": "add", "arguments": '{"a":1}'}, "extra_content": {"k": 1}}],
    },
}


def test_a_whole_answer():
    asked = request(tools=[ADD], include=["reasoning.encrypted_content"], text={"verbosity": "low"}, metadata={"k": "v"})
    frame = Frame.of(asked)
    usage = {"prompt_tokens": 10, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6, "cache_creation_tokens": 1}}
    made = Response.model_validate(frame.ended("tool_calls", "m-1", items_of(frame, CHOICE), usage, outcome().usage))
    reasoning, message, call = made.output
    assert (reasoning.type, reasoning.summary[0].text) == ("reasoning", "Hm.")
    assert unsealed(reasoning.encrypted_content) == THINKING
    assert (message.status, made.output_text, made.status) == ("completed", "Let me add.", "completed")
    assert (call.call_id, call.name, call.arguments, call.extra_content) == ("a", "add", '{"a":1}', {"k": 1})
    assert (made.usage.input_tokens, made.usage.input_tokens_details.cached_tokens) == (10, 6)
    assert made.usage.input_tokens_details.cache_write_tokens == 1
    assert made.usage.total_tokens == 14
    assert made.metadata == {"k": "v"}
    # The output goes back as input, as callers do that keep their own history.
    again = chat_body(request(input=[{"role": "user", "content": "hi"}, *(item.model_dump() for item in made.output)]))
    assert again["messages"][1]["thinking_blocks"] == THINKING
    assert again["messages"][1]["tool_calls"][0]["extra_content"] == {"k": 1}


@pytest.mark.parametrize(("finish", "reason"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_short_is_incomplete(finish, reason):
    frame = Frame.of(request())
    choice = {"finish_reason": finish, "message": {"content": "Half"}}
    made = Response.model_validate(frame.ended(finish, "m", items_of(frame, choice), None, outcome().usage))
    assert (made.status, made.incomplete_details.reason, made.output[0].status) == ("incomplete", reason, "incomplete")
    assert made.usage.output_tokens == 5


def sse(raw: bytes) -> list[dict[str, Any]]:
    found = []
    for block in raw.split(b"\n\n")[:-1]:
        kind, data = block.split(b"\n")
        event = orjson.loads(data.removeprefix(b"data: "))
        assert kind == b"event: " + event["type"].encode()
        EVENT.validate_python(event)
        found.append(event)
    return found


def streamed(deltas: list[dict[str, Any]], finish: str = "stop", asked: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    reader = ChunkReader()
    events = ResponseEvents(Frame.of(asked or request()), "main")
    raw = b""
    for number, delta in enumerate(deltas):
        last = finish if number == len(deltas) - 1 else None
        chunk = {"id": "c", "model": "m-1", "choices": [{"index": 0, "delta": delta, "finish_reason": last}]}
        raw += events.feed(reader.feed(b"data: " + orjson.dumps(chunk) + b"\n\n"))
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
    raw += events.feed(reader.feed(b"data: " + orjson.dumps(usage) + b"\n\n"))
    return sse(raw + events.end(Finished("", [], outcome(finish))))


def test_the_events_of_a_text():
    found = streamed([{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {}])
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created", "in_progress", "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done", "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in found] == list(range(10))
    last = found[-1]["response"]
    assert last["output"][0]["content"][0]["text"] == found[6]["text"] == "Hello"
    assert (last["model"], last["usage"]["input_tokens"], last["id"]) == ("m-1", 3, found[0]["response"]["id"])


def test_the_events_of_thinking_text_and_calls():
    found = streamed(
        [
            {"reasoning_content": "Hm"},
            {"reasoning_content": "."},
            {"thinking_blocks": THINKING},
            {"content": "I add."},
            {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "add", "arguments": ""}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": '{"x"'}}]},
            {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "add", "arguments": "{}"}}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
            {},
        ],
        "tool_calls",
        request(include=["reasoning.encrypted_content"]),
    )
    output = found[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert output[0]["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert unsealed(output[0]["encrypted_content"]) == THINKING
    assert [(item["call_id"], item["arguments"]) for item in output[2:]] == [("a", '{"x":1}'), ("b", "{}")]
    _check_order(found)


def test_calls_that_only_their_ids_tell_apart_stay_apart():
    calls = [{"index": 0, "id": name, "function": {"name": "add", "arguments": "{}"}} for name in "abc"]
    output = streamed([{"tool_calls": [call]} for call in calls], "tool_calls")[-1]["response"]["output"]
    assert [(item["call_id"], item["arguments"]) for item in output] == [("a", "{}"), ("b", "{}"), ("c", "{}")]


def _check_order(found: list[dict[str, Any]]) -> None:
    """Each item is opened once, filled while it is open, and closed once with the sum of its deltas."""
    opened: dict[int, str] = {}
    closed: set[int] = set()
    sums: dict[int, str] = {}
    for event in found:
        place = event.get("output_index")
        if event["type"] == "response.output_item.added":
            assert place == len(opened)
            opened[place] = event["item"]["id"]
        elif event["type"] == "response.output_item.done":
            assert event["item"]["id"] == opened[place]
            closed.add(place)
        elif place is not None:
            assert event["item_id"] == opened[place]
            assert place not in closed
            if event["type"].endswith(".delta"):
                sums[place] = sums.get(place, "") + event["delta"]
    assert closed == set(opened)
    for place, item in enumerate(found[-1]["response"]["output"]):
        parts = item.get("content") or item.get("summary") or []
        whole = item.get("arguments", "".join(part.get("text", "") + part.get("refusal", "") for part in parts))
        assert sums.get(place, "") == whole


DELTAS = st.one_of(
    st.just({}),
    st.text(max_size=4).map(lambda text: {"content": text}),
    st.text(max_size=4).map(lambda text: {"reasoning_content": text}),
    st.text(max_size=4).map(lambda text: {"refusal": text}),
    st.builds(
        lambda index, name, text: {"tool_calls": [{"index": index, "id": f"c{index}", "function": {"name": name, "arguments": text}}]},
        st.integers(0, 2),
        st.sampled_from(["add", None]),
        st.text(max_size=4),
    ),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(DELTAS, min_size=1, max_size=10), st.sampled_from(["stop", "length", "tool_calls"]))
def test_any_order_of_deltas_makes_whole_items(deltas, finish):
    found = streamed(deltas, finish)
    _check_order(found)
    assert found[-1]["type"] == ("response.incomplete" if finish == "length" else "response.completed")
    assert found[-1]["response"]["output"]


def test_a_stream_that_breaks_off_failed_and_is_not_completed():
    reader, events = ChunkReader(), ResponseEvents(Frame.of(request()), "main")
    raw = b""
    for delta in ({"content": "Hel"}, {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "add", "arguments": "{"}}]}):
        raw += events.feed(reader.feed(b"data: " + orjson.dumps({"choices": [{"index": 0, "delta": delta}]}) + b"\n\n"))
    found = sse(raw + events.fail(UpstreamFailed("the model's answer broke off")))
    assert found[-1]["type"] == "response.failed"
    response = found[-1]["response"]
    assert (response["status"], response["error"]) == ("failed", {"code": "server_error", "message": "the model's answer broke off"})
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_an_error_of_the_gateway_itself_is_an_error_event():
    (event,) = sse(RESPONSES.event(RESPONSES.internal("abc")))
    assert (event["type"], event["code"], event["message"]) == ("error", "internal", "internal error abc")


def test_thinking_by_its_other_name_and_calls_without_ids():
    call = {"type": "function", "function": {"name": "add", "arguments": "{}"}}
    thought, made = items_of(
        Frame.of(request()), {"message": {"content": None, "reasoning": "Hm.", "tool_calls": [call]}, "finish_reason": "stop"}
    )
    assert thought["summary"][0]["text"] == "Hm."
    assert made["call_id"]
    chunk = {"id": "r", "model": "m", "choices": [{"index": 0, "delta": {"reasoning": "Hm."}, "finish_reason": None}]}
    events = ResponseEvents(Frame.of(request()), "m")
    assert b"response.reasoning_summary_text.delta" in events.feed(ChunkReader().feed(b"data: " + orjson.dumps(chunk) + b"\n\n"))
