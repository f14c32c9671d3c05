"""Nothing a client sends in Anthropic's or Gemini's dialect makes the simulator answer 500, and what is wrong is named in its form."""

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.simulator import planner
from services.simulator.anthropic_request import parse_messages
from services.simulator.gemini_embeddings import parse_batch, parse_embed
from services.simulator.gemini_request import parse_generate
from services.simulator.refusals import Refused
from tests.unit.simulator.any_json import ANY_JSON, well_refused

USER = [{"role": "user", "content": "hi"}]
TOOL = {"name": "t", "input_schema": {"type": "object"}}
USE = {"type": "tool_use", "id": "toolu_1", "name": "t", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "toolu_1", "content": "x"}
GENERATE = "/v1beta/models/sim-1:generateContent"


@pytest.mark.parametrize(
    "path", ["/v1/messages", "/v1/messages/count_tokens", GENERATE, "/v1beta/models/sim-embed:embedContent", "/v1/rerank"]
)
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"model": "\xff"}', b"[" * 100_000, b"\x00\x01", '{"a":1}'.encode("utf-16")])
async def test_what_is_no_json_object(sim, path, body):
    async with sim.http.post(sim.url + path, data=body, headers={"content-type": "application/json"}) as answer:
        assert answer.status == 400
        told = orjson.loads(await answer.read())
    assert told["error"]["message"]
    if "messages" in path:
        assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
    elif "v1beta" in path:
        assert (told["error"]["code"], told["error"]["status"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"model": None}, "model: Field required"),
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"messages": None}, "messages: Field required"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}]}, "non-empty"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "nonsense"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": ""}]}]}, "non-empty"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "source"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "unexpected `tool_use_id`"),
        ({"messages": [*USER, {"role": "assistant", "content": [USE]}, *USER]}, "without `tool_result` blocks"),
        ({"messages": [*USER, {"role": "assistant", "content": [USE]}]}, "without `tool_result` blocks"),
        ({"messages": [*USER, {"role": "assistant", "content": [{**USE, "id": "a b"}]}]}, "should match pattern"),
        ({"messages": [*USER, {"role": "assistant", "content": [{**USE, "input": "{}"}]}]}, "valid dictionary"),
        ({"system": 5}, "system"),
        ({"stream": "yes"}, "stream"),
        ({"temperature": 1.5}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"stop_sequences": [" "]}, "non-whitespace"),
        ({"tools": {}}, "tools"),
        ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools.0.custom.name"),
        ({"tools": [{"name": "t"}]}, "input_schema"),
        ({"tools": [{"name": "t", "input_schema": {}}]}, "input_schema.type"),
        ({"tools": [TOOL, TOOL]}, "unique"),
        ({"tool_choice": {"type": "any"}}, "while providing tools"),
        ({"tools": [TOOL], "tool_choice": "auto"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "u"}}, "not found"),
        ({"thinking": {"type": "enabled", "budget_tokens": 100}}, "budget_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 2000}}, "must be greater than"),
        ({"thinking": {"type": "adaptive"}, "temperature": 0.5}, "may only be set to 1"),
        ({"thinking": {"type": "adaptive"}, "tools": [TOOL], "tool_choice": {"type": "any"}}, "forces tool use"),
        ({"output_config": {"format": {"type": "json"}}}, "json_schema"),
        ({"output_config": {"effort": "vast"}}, "effort"),
    ],
)
async def test_what_is_wrong_is_named_in_anthropic_s_form(sim, fields, named):
    status, answer = await sim.call("POST", "/v1/messages", {"model": "sim-1", "max_tokens": 50, "messages": USER, **fields})
    assert status == 400
    assert (answer["type"], answer["error"]["type"]) == ("error", "invalid_request_error")
    assert named in answer["error"]["message"]
    assert (await sim.last_line())["billed_nanousd"] == 0


@pytest.mark.parametrize("path", ["/v1/messages", GENERATE])
async def test_a_body_beyond_10_mb_is_refused(sim, path):
    async with sim.http.post(sim.url + path, data=b'{"a":"' + b"x" * 11_000_000 + b'"}') as answer:
        assert answer.status == 413
        told = orjson.loads(await answer.read())
    assert told["error"].get("type", "request_too_large") == "request_too_large"


async def test_an_unknown_method_of_a_model(sim):
    status, answer = await sim.call("POST", "/v1beta/models/sim-1:paint", {})
    assert (status, answer["error"]["status"]) == (404, "NOT_FOUND")
    assert (await sim.call("POST", "/v1beta/models/:generateContent", {}))[0] in (400, 404)


async def test_openai_s_prefill_goes_on_word_for_word_unless_told_otherwise(sim):
    asked = [{"role": "user", "content": "Write 20 words."}]
    whole = (await sim.chat(asked))[2]["choices"][0]["message"]["content"]
    begun = [*asked, {"role": "assistant", "content": whole[:31]}]
    assert whole[:31] + (await sim.chat(begun))[2]["choices"][0]["message"]["content"] == whole
    assert (await sim.chat(begun, model="sim-1+restart"))[2]["choices"][0]["message"]["content"] == whole
    assert (await sim.chat(begun, model="sim-1+no_prefill"))[0] == 400
    script = {"steps": [{"text": "The first of two answers."}, {"text": "The second."}]}
    await sim.call("PUT", "/sim/scenarios/two-answers", script)
    begun = [*asked, {"role": "assistant", "content": "The first of"}]
    _, _, answer = await sim.chat(begun, headers={"x-sim-scenario": "two-answers"})
    assert answer["choices"][0]["message"]["content"] == " two answers."
    await sim.call("DELETE", "/sim/scenarios/two-answers")


_ANTHROPIC_TEXT = (
    "model messages max_tokens system tools tool_choice stream temperature top_k stop_sequences thinking "
    "output_config metadata cache_control"
)
_GEMINI_TEXT = "contents systemInstruction tools toolConfig generationConfig cachedContent labels system_instruction tool_config"
_BLOCK = st.dictionaries(
    st.sampled_from(["type", "text", "source", "id", "name", "input", "tool_use_id", "content", "thinking", "signature", "cache_control"]),
    ANY_JSON | st.sampled_from(["text", "tool_use", "thinking", "image", "toolu_1"]),
    max_size=5,
)
_PART = st.dictionaries(
    st.sampled_from(["text", "inlineData", "functionCall", "functionResponse", "thought", "thoughtSignature"]), ANY_JSON, max_size=3
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    body=st.dictionaries(st.sampled_from(_ANTHROPIC_TEXT.split()), ANY_JSON, max_size=6),
    blocks=st.lists(_BLOCK, max_size=3),
    valid=st.booleans(),
)
def test_any_messages_request_is_answered_or_refused(body, blocks, valid):
    if valid:
        told = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": blocks}, {"role": "user", "content": blocks}]
        body = {"tools": [TOOL], **body, "model": "sim-1", "max_tokens": 9, "messages": told}
    try:
        asked = parse_messages(body, orjson.dumps(body))
        planner.reply_to(asked.chat, lambda wanted: ["x"] * wanted)
    except Refused as refused:
        well_refused(refused)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    body=st.dictionaries(st.sampled_from(_GEMINI_TEXT.split()), ANY_JSON, max_size=6),
    parts=st.lists(_PART, max_size=3),
    valid=st.booleans(),
)
def test_any_generate_request_is_answered_or_refused(body, parts, valid):
    if valid:
        told = [{"role": "user", "parts": [{"text": "hi"}]}, {"role": "model", "parts": parts}, {"role": "user", "parts": parts}]
        body = {**body, "contents": told}
    for read in (
        lambda: planner.reply_to(parse_generate(body, "m", False)[0], lambda wanted: ["x"] * wanted),
        lambda: parse_embed(body, "m"),
    ):
        try:
            read()
        except Refused as refused:
            well_refused(refused)


@settings(max_examples=100, deadline=None)
@given(
    body=st.dictionaries(
        st.sampled_from(["requests"]), st.lists(ANY_JSON | st.dictionaries(st.sampled_from(["content", "model"]), ANY_JSON), max_size=3)
    )
)
def test_any_batch_of_embeddings_is_answered_or_refused(body):
    try:
        parse_batch(body, "m")
    except Refused as refused:
        well_refused(refused)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    schema=ANY_JSON
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["OBJECT", "ARRAY", "STRING"])}, optional={"properties": ANY_JSON, "items": ANY_JSON, "anyOf": ANY_JSON}
    )
)
def test_any_schema_is_used_or_refused(schema):
    contents = [{"parts": [{"text": "What is 2*3?"}]}]
    tools = [{"functionDeclarations": [{"name": "t", "parameters": schema}]}]
    calling = {"functionCallingConfig": {"mode": "ANY"}}
    try:
        request, _ = parse_generate({"contents": contents, "tools": tools, "toolConfig": calling}, "m", False)
        planner.reply_to(request, lambda wanted: ["x"] * wanted)
    except Refused as refused:
        well_refused(refused)
