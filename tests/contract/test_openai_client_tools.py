"""The openai SDK, unmodified, with tools that its user calls: chat completions."""

import asyncio

import openai
import orjson
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.asyncio(loop_scope="module")
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is there.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False},
        "strict": True,
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASKED = [{"role": "user", "content": '{"city":"Lisbon"}'}]


class Weather(BaseModel):
    """What the SDK makes a tool of."""

    city: str


async def streamed(sdk, **asked):
    """The completion that the SDK's helper makes of the chunks."""
    async with sdk.chat.completions.stream(**asked) as stream:
        async for _ in stream:
            pass
        return await stream.get_final_completion()


async def whole(sdk, **asked):
    return await sdk.chat.completions.create(**asked)


@pytest.mark.parametrize("how", [whole, streamed])
async def test_the_model_asks_for_calls_and_is_given_what_they_gave(sdk, served, how):
    messages = list(ASKED)
    answer = await how(sdk, model="caller", messages=messages, tools=[WEATHER, CLOCK])
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content, answer.usage is not None or how is streamed) == (
        "tool_calls",
        "Let me look.",
        True,
    )
    assert [(call.type, call.function.name, call.function.arguments) for call in choice.message.tool_calls] == [
        ("function", "weather", '{"city":"Lisbon"}'), ("function", "clock", '{"city":"Lisbon"}'),
    ]  # fmt: skip
    made = served.log.newest().request
    assert [(t.name, t.description, t.strict, orjson.loads(t.parameters_json or b"{}")) for t in made.client_tools] == [
        ("weather", "How it is there.", True, WEATHER["function"]["parameters"]), ("clock", "", False, {}),
    ]  # fmt: skip
    # As the SDK's users do it: the message as it came, and a result for each call.
    messages.append(choice.message)
    messages += [{"role": "tool", "tool_call_id": call.id, "content": f"{at} degrees"} for at, call in enumerate(choice.message.tool_calls)]
    done = await how(sdk, model="caller", messages=messages, tools=[WEATHER, CLOCK])
    assert (done.choices[0].finish_reason, done.choices[0].message.content) == ("stop", "They gave 0 degrees, 1 degrees.")
    assert done.choices[0].message.tool_calls is None
    sent = served.log.newest().request
    assert [(m.role, m.text, m.tool_call_id) for m in sent.input] == [
        ("user", '{"city":"Lisbon"}', ""), ("assistant", "Let me look.", ""),
        *[("tool", f"{at} degrees", call.id) for at, call in enumerate(choice.message.tool_calls)],
    ]  # fmt: skip
    assert [(c.tool_call_id, c.name, c.arguments_json) for c in sent.input[1].tool_calls] == [
        (call.id, call.function.name, call.function.arguments.encode()) for call in choice.message.tool_calls
    ]


@pytest.mark.parametrize("how", [whole, streamed])
async def test_on_a_named_thread_the_results_alone_are_appended(sdk, served, how):
    named = {"model": "caller", "tools": [WEATHER, CLOCK], "metadata": {"thread_id": f"calls-{how.__name__}"}}
    first = await how(sdk, messages=ASKED, **named)
    calls = first.choices[0].message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": [{"type": "text", "text": call.function.name}]} for call in calls]
    second = await how(sdk, messages=[*ASKED, first.choices[0].message, *results], **named)
    assert second.choices[0].message.content == "They gave weather, clock."
    assert [(m.role, m.tool_call_id) for m in served.log.newest().request.input] == [("tool", call.id) for call in calls]
    # What the user says beside the results goes with them.
    third = await how(sdk, messages=ASKED, **named)
    said = [{"role": "tool", "tool_call_id": call.id, "content": ""} for call in third.choices[0].message.tool_calls]
    await how(sdk, messages=[third.choices[0].message, *said, {"role": "user", "content": "And?"}], **named)
    assert [m.role for m in served.log.newest().request.input] == ["tool", "tool", "user"]


async def test_the_sdks_own_loop_parses_arguments(sdk):
    tool = openai.pydantic_function_tool(Weather)
    answer = await sdk.chat.completions.parse(model="caller", messages=ASKED, tools=[tool])
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == Weather(city="Lisbon")
    kinds = []
    async with sdk.chat.completions.stream(model="caller", messages=ASKED, tools=[tool]) as stream:
        async for event in stream:
            kinds.append(event.type)
        final = await stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds
    parsed = final.choices[0].message
    assert parsed.tool_calls[0].function.parsed_arguments == Weather(city="Lisbon")
    # The message with what the SDK has parsed in it is one that may be sent back.
    done = await sdk.chat.completions.parse(
        model="caller", tools=[tool],
        messages=[*ASKED, parsed, {"role": "tool", "tool_call_id": parsed.tool_calls[0].id, "content": "19"}],
    )  # fmt: skip
    assert done.choices[0].message.content == "They gave 19."


async def test_the_synchronous_sdk_does_the_same(served):
    def work():
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as sdk:
            messages = list(ASKED)
            with sdk.chat.completions.stream(model="caller", messages=messages, tools=[WEATHER]) as stream:
                message = stream.get_final_completion().choices[0].message
            messages += [message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "19"}]
            return sdk.chat.completions.create(model="caller", messages=messages, tools=[WEATHER]).choices[0].message.content

    assert await asyncio.to_thread(work) == "They gave 19."


@pytest.mark.parametrize(
    ("choice", "passed", "called"),
    [
        ("auto", b"", ["weather", "clock"]),
        ("required", b'"required"', ["weather", "clock"]),
        ("none", b'"none"', []),
        (
            {"type": "function", "function": {"name": "clock"}},
            b'{"type":"function","function":{"name":"clock"}}',
            ["clock"],
        ),
    ],
)
async def test_what_the_model_is_to_call_is_passed_on(sdk, served, choice, passed, called):
    answer = await sdk.chat.completions.create(model="caller", messages=ASKED, tools=[WEATHER, CLOCK], tool_choice=choice)
    assert [call.function.name for call in answer.choices[0].message.tool_calls or ()] == called
    assert served.log.newest().request.tool_choice_json == passed


async def test_the_agents_own_calls_never_show(sdk):
    async with sdk.chat.completions.with_streaming_response.create(model="caller", messages=ASKED, tools=[CLOCK], stream=True) as response:
        raw = (await response.read()).decode()
    assert "calculator" not in raw
    assert "clock" in raw


@pytest.mark.parametrize("more", [{"tools": [WEATHER, CLOCK]}, {"model": "structured", "response_format": {"type": "json_object"}}])
async def test_a_stream_that_is_cut_anywhere_is_told_again_under_its_key(sdk, served, more):
    asked = {"model": "caller", "messages": ASKED, "stream": True, **more}
    key = {"Idempotency-Key": f"cut-{len(more)}"}

    async def chunks(at=None):
        found = []
        async with await sdk.chat.completions.create(**asked, extra_headers=key) as stream:
            async for chunk in stream:
                found.append(chunk.to_dict())
                if len(found) == at:
                    break
        return found

    whole = await chunks()
    before = len(served.log.runs)
    for at in range(1, len(whole) + 1):
        assert await chunks(at) == whole[:at]
        assert await chunks() == whole
    assert len(served.log.runs) == before


async def test_one_call_after_the_other_cannot_be_had_and_that_is_told(sdk):
    answer = await sdk.chat.completions.create(model="caller", messages=ASKED, tools=[CLOCK], parallel_tool_calls=False)
    assert answer.model_extra["bulkhead"]["warnings"][-1]["capability_lost"] == "parallel_tool_calls"
    answer = await sdk.chat.completions.create(model="caller", messages=ASKED, tools=[CLOCK], parallel_tool_calls=True)
    assert answer.model_extra["bulkhead"]["warnings"] == []


def function(**fields):
    return {"tools": [{"type": "function", "function": {"name": "f", **fields}}]}


CALLS = {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "x"}
USER = {"role": "user", "content": "x"}
NAMED = {"metadata": {"thread_id": "t-wrong"}}
UNSUPPORTED = [
    ({"tools": [{"type": "web_search"}]}, "tools[0].type", "web_search"),
    ({"tools": [CLOCK, {"type": "mcp", "server_label": "x"}]}, "tools[1].type", "mcp"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type", "custom"),
    ({"tools": [{"type": "no\nname"}]}, "tools[0].type", "a type of this name"),
    (function(surprise=1), "tools[0].function.surprise", ""),
    ({"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type", ""),
    ({"functions": [{"name": "f"}]}, "functions", ""),
    ({"messages": [{"role": "function", "name": "f", "content": "x"}]}, "messages[0].role", "role tool"),
]
WRONG = [
    ({"tools": {}}, "tools"),
    ({"tools": [CLOCK] * 65}, "tools"),
    ({"tools": [5]}, "tools[0]"),
    ({"tools": [{"type": "function"}]}, "tools[0].function"),
    ({"tools": [{"function": {"name": "f"}}]}, "tools[0].type"),
    ({"tools": [CLOCK, CLOCK]}, "tools[1].function.name"),
    (function(name="no spaces"), "tools[0].function.name"),
    (function(name="f" * 65), "tools[0].function.name"),
    (function(name=None), "tools[0].function.name"),
    (function(description="x" * 4097), "tools[0].function.description"),
    (function(description=5), "tools[0].function.description"),
    (function(strict="yes"), "tools[0].function.strict"),
    (function(parameters="{}"), "tools[0].function.parameters"),
    (function(parameters=[]), "tools[0].function.parameters"),
    (function(parameters={"type": "array"}), "tools[0].function.parameters"),
    (function(parameters={"type": "object", "description": "x" * 32_768}), "tools[0].function.parameters"),
    ({"tools": [CLOCK], "tool_choice": "perhaps"}, "tool_choice"),
    ({"tools": [CLOCK], "tool_choice": 5}, "tool_choice"),
    ({"tools": [CLOCK], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice.function.name"),
    ({"tools": [CLOCK], "tool_choice": {"type": "function"}}, "tool_choice.function"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"messages": [RESULT]}, "messages[0].tool_call_id"),
    ({"messages": [USER, CALLS, {**RESULT, "tool_call_id": "c2"}]}, "messages[2].tool_call_id"),
    ({"messages": [USER, CALLS, RESULT, RESULT]}, "messages[3].tool_call_id"),
    ({"messages": [USER, CALLS, RESULT, CALLS, RESULT]}, "messages[3]"),
    ({"messages": [USER, CALLS, USER]}, "messages[1]"),
    ({"messages": [USER, {**CALLS, "tool_calls": [*CALLS["tool_calls"], {**CALLS["tool_calls"][0], "id": "c2"}]}, RESULT]}, "messages[1]"),
    ({"messages": [USER, CALLS]}, "messages"),
    ({"messages": [{**USER, "tool_calls": CALLS["tool_calls"]}]}, "messages[0].tool_calls"),
    ({"messages": [{**CALLS, "tool_calls": [5]}, USER]}, "messages[0].tool_calls[0]"),
    ({"messages": [{**CALLS, "tool_calls": [{"id": "c"}]}, USER]}, "messages[0].tool_calls[0].function"),
    ({"messages": [{**CALLS, "tool_calls": [{"id": "", "function": {}}]}, USER]}, "messages[0].tool_calls[0].id"),
    ({"messages": [{**CALLS, "tool_calls": [{"id": "c" * 129, "function": {}}]}, USER]}, "messages[0].tool_calls[0].id"),
    (
        {"messages": [{**CALLS, "tool_calls": [{"id": "c", "function": {"name": "f"}}]}, USER]},
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"messages": [USER, CALLS, {**RESULT, "tool_call_id": 5}]}, "messages[2].tool_call_id"),
    ({"messages": [USER, CALLS, {**RESULT, "content": None}]}, "messages[2].content"),
    ({"messages": [CALLS, {**RESULT, "tool_call_id": "c2"}], **NAMED}, "messages[1].tool_call_id"),
    ({"messages": [RESULT, RESULT], **NAMED}, "messages[1].tool_call_id"),
    ({"messages": [RESULT], **NAMED}, "messages"),
]


@pytest.mark.parametrize(
    ("given", "param", "code", "says"),
    [(*one[:2], "unsupported_parameter", one[2]) for one in UNSUPPORTED] + [(*o, "invalid_input", "") for o in WRONG],
)
async def test_what_is_not_supported_or_wrong_is_named(sdk, served, given, param, code, says):
    before = len(served.log.runs)
    asked = {"model": "caller", "messages": ASKED, **given}
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(**asked)
    assert (caught.value.param, caught.value.code, caught.value.type) == (param, code, "invalid_request_error")
    assert says in caught.value.body["message"]
    assert len(served.log.runs) == before
