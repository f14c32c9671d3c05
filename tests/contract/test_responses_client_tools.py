"""The openai SDK, unmodified, with tools that its user calls and with forms of answers: /v1/responses and /v1/conversations."""

import openai
import orjson
import pytest
from openai.types import responses as types
from pydantic import BaseModel

from tests.contract.responses_sdk import all_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}
WEATHER = {"type": "function", "name": "weather", "description": "How it is there.", "parameters": SCHEMA, "strict": True}
CLOCK = {"type": "function", "name": "clock", "parameters": None, "strict": False}
ASKED = '{"city":"Lisbon"}'
TOOLS = {"model": "caller", "tools": [WEATHER, CLOCK]}


class Place(BaseModel):
    """A form, and the arguments of a tool."""

    city: str


def calls_of(response):
    return [item for item in response.output if item.type == "function_call"]


def results(calls):
    return [{"type": "function_call_output", "call_id": call.call_id, "output": f"{call.name}!"} for call in calls]


async def test_the_client_is_asked_to_call_and_says_what_came_of_it(sdk, served):
    first = await sdk.responses.create(input=ASKED, **TOOLS)
    assert [item.type for item in first.output] == ["mcp_call", "message", "function_call", "function_call"]
    assert (first.status, first.output_text) == ("completed", "Let me look.")
    calls = calls_of(first)
    assert [(call.name, call.arguments, call.status) for call in calls] == [("weather", ASKED, "completed"), ("clock", ASKED, "completed")]
    made = served.log.newest().request
    assert [(tool.name, tool.strict, orjson.loads(tool.parameters_json or b"{}")) for tool in made.client_tools] == [
        ("weather", True, SCHEMA), ("clock", False, {}),
    ]  # fmt: skip
    second = await sdk.responses.create(input=results(calls), previous_response_id=first.id, **TOOLS)
    assert (second.status, second.output_text) == ("completed", "They gave weather!, clock!.")
    assert second.conversation.id == first.conversation.id
    assert [(m.role, m.text, m.tool_call_id) for m in served.log.newest().request.input] == [
        ("tool", "weather!", calls[0].call_id), ("tool", "clock!", calls[1].call_id),
    ]  # fmt: skip


async def test_in_a_conversation_the_results_go_on_where_it_waits(sdk):
    conversation = await sdk.conversations.create()
    first = await sdk.responses.create(input=ASKED, conversation=conversation.id, **TOOLS)
    second = await sdk.responses.create(input=results(calls_of(first)), conversation=conversation.id, **TOOLS)
    assert second.output_text == "They gave weather!, clock!."
    listed = [item async for item in sdk.conversations.items.list(conversation.id, order="asc")]
    assert [item.type for item in listed] == [
        "message", "mcp_call", "message", "function_call", "function_call", "function_call_output", "function_call_output", "message",
    ]  # fmt: skip
    assert [item.call_id for item in listed[3:5]] == [item.call_id for item in listed[5:7]]
    for item in listed:
        assert (await sdk.conversations.items.retrieve(item.id, conversation_id=conversation.id)).to_dict() == item.to_dict()


async def test_a_whole_conversation_can_be_sent_again(sdk, served):
    said = [{"role": "user", "content": ASKED}]
    first = await sdk.responses.create(input=said, **TOOLS)
    # As the SDK's users do it: all of the output behind what was asked, then the results.
    said = [*said, *first.output, *results(calls_of(first))]
    second = await sdk.responses.create(input=said, **TOOLS)
    assert second.output_text == "They gave weather!, clock!."
    sent = served.log.newest().request.input
    assert [(m.role, m.text, len(m.tool_calls)) for m in sent] == [
        ("user", ASKED, 0), ("assistant", "Let me look.", 2), ("tool", "weather!", 0), ("tool", "clock!", 0),
    ]  # fmt: skip
    listed = [item async for item in sdk.responses.input_items.list(second.id, order="asc")]
    assert [item.type for item in listed] == [
        "message", "message", "function_call", "function_call", "function_call_output", "function_call_output",
    ]  # fmt: skip
    assert (listed[2].call_id, listed[2].arguments, listed[4].output) == (calls_of(first)[0].call_id, ASKED, "weather!")
    assert len({item.id for item in listed}) == 6
    paged = [item.id async for item in sdk.responses.input_items.list(second.id, order="asc", limit=2)]
    assert paged == [item.id for item in listed]


async def test_a_stream_tells_of_calls_piece_by_piece(sdk):
    events = await all_of(await sdk.responses.create(input=ASKED, stream=True, **TOOLS))
    told = [event["type"].removeprefix("response.") for event in events]
    at = told.index("function_call_arguments.delta")
    assert told[at - 1 : at + 3] == [
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
    ]  # fmt: skip
    begun, done = events[at - 1]["item"], events[at + 2]["item"]
    assert (begun["arguments"], begun["status"], done["arguments"], done["status"]) == ("", "in_progress", ASKED, "completed")
    assert events[at]["delta"] == events[at + 1]["arguments"] == ASKED
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    assert events[-1]["type"] == "response.completed"


CUT = [
    {"input": ASKED, **TOOLS, "instructions": "Sing.", "temperature": 0.5, "metadata": {"team": "x"}},
    {"input": ASKED, **TOOLS, "tool_choice": {"type": "function", "name": "clock"}, "max_output_tokens": 9, "max_tool_calls": 3},
    {"input": ASKED, "model": "caller", "tools": [{**CLOCK, "name": f"f{number}"} for number in range(20)], "background": True},
    {"input": ASKED, "model": "structured", "text": {"format": {"type": "json_schema", "name": "s", "schema": SCHEMA, "strict": True}}},
    {"input": "rephrase", "model": "structured", "text": {"format": {"type": "json_object"}}},
]


@pytest.mark.parametrize("asked", CUT, ids=["calls", "named", "many", "form", "refusal"])
async def test_a_stream_that_is_cut_anywhere_goes_on_where_it_was(sdk, asked):
    whole = await all_of(await sdk.responses.create(stream=True, **asked))
    response_id = whole[0]["response"]["id"]
    assert await all_of(await sdk.responses.retrieve(response_id, stream=True)) == whole
    for position, event in enumerate(whole, 1):
        tail = await all_of(await sdk.responses.retrieve(response_id, stream=True, starting_after=event["sequence_number"]))
        assert whole[:position] + tail == whole
    known = (await sdk.responses.retrieve(response_id)).to_dict()
    assert known == whole[-1]["response"]
    # What it was asked for is known without the request.
    for name, value in asked.items():
        if name not in ("input", "text", "tools"):
            assert known[name] == value, name
    assert [tool["name"] for tool in known["tools"]] == [tool["name"] for tool in asked.get("tools", ())]
    if "text" in asked:
        assert known["text"]["format"] == asked["text"]["format"]


async def test_the_answer_in_the_background_knows_what_was_asked_too(sdk):
    asked = {"input": ASKED, "instructions": "Sing.", "background": True, "metadata": {"a": "b"}, **TOOLS}
    at_once = await sdk.responses.create(**asked)
    shown = (at_once.instructions, at_once.background, at_once.metadata, [tool.name for tool in at_once.tools], at_once.tool_choice)
    assert shown == ("Sing.", True, {"a": "b"}, ["weather", "clock"], "auto")


async def test_labels_as_many_as_there_may_be_leave_no_room_for_more(sdk, served):
    labels = {f"k{number}": "v" for number in range(16)}
    made = await sdk.responses.create(model="assistant", input="x", metadata=labels, temperature=0.5)
    assert dict(served.log.newest().request.metadata) == labels
    known = await sdk.responses.retrieve(made.id)
    assert (known.metadata, known.temperature, made.temperature) == (labels, None, 0.5)
    behind = await sdk.responses.create(model="assistant", input="x", previous_response_id=made.id, metadata={"k": "v"})
    known = await sdk.responses.retrieve(behind.id)
    assert (known.previous_response_id, known.metadata) == (made.id, {"k": "v"})


async def test_the_sdk_parses_arguments_and_answers(sdk):
    parsed = await sdk.responses.parse(model="structured", input=ASKED, text_format=Place)
    assert parsed.output_parsed == Place(city="Lisbon")
    async with sdk.responses.stream(model="structured", input=ASKED, text_format=Place) as stream:
        final = await stream.get_final_response()
    assert final.output_parsed == Place(city="Lisbon")
    called = await sdk.responses.parse(
        model="caller", input=ASKED, tools=[openai.pydantic_function_tool(Place)["function"] | {"type": "function"}]
    )
    assert orjson.loads(calls_of(called)[0].arguments) == {"city": "Lisbon"}
    # What the SDK has parsed may be sent back with it.
    again = [{"role": "user", "content": ASKED}, *called.output, *results(calls_of(called))]
    assert (await sdk.responses.parse(model="caller", input=again)).output_text == "They gave Place!."


async def test_what_is_no_answer_is_a_refusal(sdk):
    answer = await sdk.responses.parse(model="structured", input="rephrase", text_format=Place)
    assert answer.output_parsed is None
    (part,) = answer.output[0].content
    assert (part.type, part.refusal) == ("refusal", "Say it otherwise.")
    types.Response.model_validate(answer.to_dict())
    async with sdk.responses.stream(model="structured", input="rephrase", text_format=Place) as stream:
        kinds = [event.type async for event in stream]
    assert "response.refusal.done" in kinds
    # It is sent back as it was answered.
    said = [{"role": "user", "content": "x"}, *answer.output, {"role": "user", "content": ASKED}]
    assert (await sdk.responses.parse(model="structured", input=said, text_format=Place)).output_parsed == Place(city="Lisbon")


async def test_an_answer_that_never_has_the_form_is_an_error(sdk):
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk.responses.create(model="fail", input="OUTPUT_SCHEMA", text={"format": {"type": "json_object"}})
    assert (caught.value.status_code, caught.value.code) == (502, "output_schema")
    known = await sdk.responses.retrieve(f"resp_{caught.value.response.headers['x-bulkhead-run-id']}")
    assert (known.status, known.error.code, known.model_extra["bulkhead"]["reason"]) == ("failed", "server_error", "OUTPUT_SCHEMA")


async def test_what_the_model_is_to_call_is_passed_on(sdk, served):
    for choice, passed in (
        ("auto", b""), ("none", b'"none"'), ("required", b'"required"'),
        ({"type": "function", "name": "clock"}, b'{"type":"function","function":{"name":"clock"}}'),
    ):  # fmt: skip
        answer = await sdk.responses.create(input=ASKED, tool_choice=choice, **TOOLS)
        assert served.log.newest().request.tool_choice_json == passed
        told = (await sdk.responses.retrieve(answer.id)).to_dict()["tool_choice"]
        assert told == choice


async def test_other_tenants_find_no_call_and_no_result(sdk, served):
    first = await sdk.responses.create(input=ASKED, **TOOLS)
    other = sdk.with_options(api_key=await served.issue("other"))
    with pytest.raises(openai.NotFoundError):
        await other.conversations.items.retrieve(calls_of(first)[0].id, conversation_id=first.conversation.id)
    with pytest.raises(openai.BadRequestError):
        await other.responses.create(input=results(calls_of(first)), previous_response_id=first.id, **TOOLS)
