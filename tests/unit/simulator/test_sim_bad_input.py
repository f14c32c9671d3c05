"""Nothing a client sends makes the simulator answer 500, and what is wrong is named in OpenAI's form."""

import asyncio

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.simulator import planner
from services.simulator.chat_request import parse_chat, parse_object
from services.simulator.embeddings import parse_embeddings
from services.simulator.refusals import Refused
from tests.unit.simulator.any_json import ANY_JSON, well_refused

USER = [{"role": "user", "content": "hi"}]
CALL = {"id": "c", "type": "function", "function": {"name": "t", "arguments": "{}"}}


async def post(sim, body: bytes, path: str = "/v1/chat/completions", **headers: str):
    async with sim.http.post(sim.url + path, data=body, headers={"content-type": "application/json", **headers}) as answer:
        return answer.status, orjson.loads(await answer.read())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"model": "sim-1"',
        b'{"model": "\xff"}',
        b'{"model": "sim-1", "messages": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"\x00\x01\x02",
        '{"model": "sim-1"}'.encode("utf-16"),
    ],
)
async def test_what_is_no_json_object(sim, body):
    for path in ("/v1/chat/completions", "/v1/embeddings", "/sim/faults"):
        status, answer = await post(sim, body, path)
        assert status == 400
        assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 5}, "model"),
        ({"model": ""}, "model"),
        ({"model": "a\nb: c"}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "nonsense"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [CALL]}, *USER]}, "messages[0]"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 5}, "stream_options"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": -1}, "top_p"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_completion_tokens": "9"}, "max_completion_tokens"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": "2"}, "n"),
        ({"reasoning_effort": "vast"}, "reasoning_effort"),
        ({"reasoning_effort": ["low"]}, "reasoning_effort"),
        ({"seed": "x"}, "seed"),
        ({"stop": [1]}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"tools": {}}, "tools"),
        ({"tools": [5]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}, "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools[1].function.name"),
        ({"tools": [{"type": "function", "function": {"name": f"t{n}"}} for n in range(2000)]}, "tools"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a"}}], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    ],
)
async def test_what_is_wrong_is_named(sim, fields, param):
    status, answer = await post(sim, orjson.dumps({"model": "sim-1", "messages": USER, **fields}))
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["message"]


async def test_unknown_fields_are_let_through(sim):
    status, _ = await post(sim, orjson.dumps({"model": "sim-1", "messages": USER, "top_k": 5, "extra": {"a": [1]}}))
    assert status == 200


@pytest.mark.parametrize("size", [10 * 1024 * 1024 + 1, 30 * 1024 * 1024])
async def test_a_body_beyond_10_mb_is_refused(sim, size):
    status, answer = await post(sim, b'{"model":"' + b"x" * (size - 10))
    assert status == 413
    assert answer["error"]["code"] == "request_too_large"


async def test_paths_and_methods_that_do_not_exist(sim):
    assert (await sim.call("GET", "/v1/nothing"))[0] == 404
    assert (await sim.call("GET", "/v1/chat/completions"))[0] == 405
    assert (await sim.call("POST", "/v1/models"))[0] == 405
    assert (await sim.call("GET", "/sim/log?after=x"))[0] == 400
    assert (await sim.call("GET", "/sim/log?limit=99999999999"))[0] == 400


async def test_odd_headers(sim):
    for headers in ({"x-sim-nonsense": "1"}, {"x-sim-scenario": "unknown"}, {"x-sim-fault": "nonsense"}, {"x-sim-status": ""}):
        status, answer = await post(sim, orjson.dumps({"model": "sim-1", "messages": USER}), **headers)
        assert status == 400
        assert answer["error"]["code"] in ("unknown_fault", "invalid_fault", "unknown_scenario")


async def test_a_body_that_never_ends_does_not_hold_up_others(sim):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(sim.url.rpartition(":")[2]))
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
    await writer.drain()
    assert (await sim.chat())[0] == 200
    writer.close()
    line = await sim.last_line(2)
    assert line["status"] == 400
    del reader


_FIELDS_TEXT = (
    "model messages tools tool_choice stream stream_options max_tokens max_completion_tokens temperature top_p n stop seed response_format "
    "parallel_tool_calls user metadata"
)
_FIELDS = _FIELDS_TEXT.split()


@pytest.mark.parametrize("examples", [100, pytest.param(1_000, marks=pytest.mark.system)])
def test_any_json_is_answered_or_refused(examples):
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(body=st.dictionaries(st.sampled_from(_FIELDS), ANY_JSON, max_size=6), valid=st.booleans())
    def holds(body, valid):
        if valid:
            body = {**body, "model": "sim-1", "messages": USER}
        try:
            planner.reply_to(parse_chat(body), lambda wanted: ["x"] * wanted)
        except Refused as refused:
            well_refused(refused)

    holds()


_SCHEMA = st.recursive(
    st.sampled_from([{"type": "string"}, {"type": "integer"}, {"enum": ["a"]}, {"type": "boolean"}]) | ANY_JSON,
    lambda children: st.fixed_dictionaries(
        {"type": st.sampled_from(["object", "array", ["object", "null"]])},
        optional={
            "properties": st.dictionaries(st.sampled_from(["query", "url", "expression", "code", "timezone", "a"]), children, max_size=3),
            "required": st.lists(st.sampled_from(["query", "a", "zzz"]) | st.integers(), max_size=2),
            "items": children,
            "anyOf": st.lists(children, max_size=2),
        },
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    schema=_SCHEMA,
    text=st.sampled_from(["What is 2*3?", "What time is it?", "fetch https://a.b/c", "how do leases work", "```\nx\n```"])
    | st.text(max_size=80),
    choice=st.sampled_from(["auto", "required"]),
    name=st.sampled_from(["search_documents", "clock_time", "calculator", "get_weather"]),
)
def test_any_tool_schema_is_answered_or_refused(schema, text, choice, name):
    tool = {"type": "function", "function": {"name": name, "parameters": schema}}
    try:
        reply = planner.reply_to(
            parse_chat({"model": "m", "messages": [{"role": "user", "content": text}], "tools": [tool], "tool_choice": choice}),
            lambda wanted: ["x"] * wanted,
        )
    except Refused as refused:
        well_refused(refused)
    else:
        for call in reply.tool_calls():
            assert isinstance(orjson.loads(call["function"]["arguments"]), dict)


@settings(max_examples=200, deadline=None)
@given(content=st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")), result=st.text(max_size=100))
def test_any_text_and_any_tool_result_is_answered(content, result):
    messages = [
        {"role": "system", "content": f"<context>{content}</context>"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c", "content": result},
    ]
    assert planner.reply_to(parse_chat({"model": "m", "messages": messages}), lambda wanted: ["x"] * wanted).finish_reason == "stop"


@settings(max_examples=200, deadline=None)
@given(body=st.dictionaries(st.sampled_from(["model", "input", "dimensions", "encoding_format"]), ANY_JSON, max_size=4))
def test_any_embeddings_request_is_answered_or_refused(body):
    try:
        parse_embeddings(body)
    except Refused as refused:
        well_refused(refused)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_refused_or_an_object(body):
    try:
        assert isinstance(parse_object(body), dict)
    except Refused as refused:
        well_refused(refused)


HOSTILE = (
    "what is " * 50_000,
    "a" * 500_000,
    "http://" * 50_000,
    "`" * 100_000,
    "“" * 100_000,
    ", and what" * 20_000,
    "\n" * 500_000,
    " " * 500_000,
    "use " * 100_000,
    "<context>" * 50_000,
    "<context>" + "<turn " * 50_000 + "</context>",
    "<context>" + "<turn>" * 50_000 + "</context>",
    "<script" * 50_000 + "</style>",
    "</a" + "<" * 200_000,
    "- " * 100_000,
    "multiply it by " * 20_000,
)


# A careless expression takes minutes for one of these; the limit is far above what a loaded machine needs.
@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:12])
def test_hostile_texts_are_read_in_time(text):
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "do_it", "parameters": schema}}
    told = [{"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "c", "content": text}]
    for messages in ([{"role": "user", "content": text}, *USER], [{"role": "system", "content": text}, *USER], [*USER, *told]):
        planner.reply_to(parse_chat({"model": "m", "messages": messages}), lambda wanted: ["x"] * wanted)
    asked = {"model": "m", "messages": [{"role": "user", "content": text}]}
    planner.reply_to(parse_chat({**asked, "tools": [tool], "tool_choice": "required"}), lambda wanted: ["x"] * wanted)
    planner.reply_to(parse_chat({**asked, "response_format": {"type": "json_object"}}), lambda wanted: ["x"] * wanted)
