"""The openai SDK, unmodified, with a form that the answer is to have: chat completions."""

import openai
import orjson
import pytest
from pydantic import BaseModel

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXT = '{"steps":["6*7"],"result":42}'
SCHEMA = {"type": "object", "properties": {"result": {"type": "integer"}}, "required": ["result"]}


class Sum(BaseModel):
    """The form."""

    steps: list[str]
    result: int


def said(text):
    return [{"role": "user", "content": text}]


async def test_the_sdk_parses_the_answer(sdk, served):
    answer = await sdk.chat.completions.parse(model="structured", messages=said(TEXT), response_format=Sum)
    assert answer.choices[0].message.parsed == Sum(steps=["6*7"], result=42)
    passed = orjson.loads(served.log.newest().request.response_format_json)
    assert (passed["type"], passed["json_schema"]["name"], passed["json_schema"]["strict"]) == ("json_schema", "Sum", True)
    assert passed["json_schema"]["schema"]["required"] == ["steps", "result"]


async def test_of_an_answer_that_is_asked_for_again_no_stream_shows_a_word(sdk):
    contents = []
    async with sdk.chat.completions.stream(model="structured", messages=said(TEXT), response_format=Sum) as stream:
        async for event in stream:
            if event.type == "content.delta":
                contents.append(event.delta)
        final = await stream.get_final_completion()
    assert "".join(contents) == TEXT
    assert final.choices[0].message.parsed == Sum(steps=["6*7"], result=42)


@pytest.mark.parametrize("form", [{"type": "json_object"}, {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}])
async def test_forms_are_passed_on(sdk, served, form):
    answer = await sdk.chat.completions.create(model="structured", messages=said("{}"), response_format=form)
    assert answer.choices[0].message.content == "{}"
    assert orjson.loads(served.log.newest().request.response_format_json) == form


async def test_a_text_is_what_comes_anyway(sdk, served):
    answer = await sdk.chat.completions.create(model="assistant", messages=said("x"), response_format={"type": "text"})
    assert answer.choices[0].message.content == "You said: x"
    assert served.log.newest().request.response_format_json == b""


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_no_answer_is_a_refusal(sdk, stream):
    if stream:
        async with sdk.chat.completions.stream(model="structured", messages=said("rephrase"), response_format=Sum) as chunks:
            kinds = [event.type async for event in chunks]
            message = (await chunks.get_final_completion()).choices[0].message
        assert "refusal.done" in kinds
    else:
        message = (await sdk.chat.completions.parse(model="structured", messages=said("rephrase"), response_format=Sum)).choices[0].message
    assert (message.parsed, message.content, message.refusal) == (None, None, "Say it otherwise.")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_never_has_the_form_is_an_error(sdk, stream):
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk.chat.completions.create(
            model="fail", messages=said("OUTPUT_SCHEMA"), response_format={"type": "json_object"}, stream=stream
        )
    assert (caught.value.status_code, caught.value.code, caught.value.type) == (502, "output_schema", "server_error")
    assert caught.value.response.headers["x-should-retry"] == "false"


async def test_beside_calls_of_tools_there_is_no_text_that_would_be_taken_for_the_answer(sdk):
    tool = openai.pydantic_function_tool(Sum, name="sum")
    answer = await sdk.chat.completions.parse(model="caller", messages=said(TEXT), response_format=Sum, tools=[tool])
    message = answer.choices[0].message
    assert (message.content, message.parsed, message.tool_calls[0].function.parsed_arguments.result) == (None, None, 42)


def form(**fields):
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": {}, **fields}}


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ("json", "response_format", "invalid_input"),
        ({}, "response_format.type", "unsupported_parameter"),
        ({"type": "grammar"}, "response_format.type", "unsupported_parameter"),
        ({"type": "json_object", "surprise": 1}, "response_format.surprise", "unsupported_parameter"),
        ({"type": "json_schema"}, "response_format.json_schema", "invalid_input"),
        (form(name="no spaces"), "response_format.json_schema.name", "invalid_input"),
        (form(schema=None), "response_format.json_schema.schema", "invalid_input"),
        (form(schema="{}"), "response_format.json_schema.schema", "invalid_input"),
        (form(schema=[]), "response_format.json_schema.schema", "invalid_input"),
        (form(strict=1), "response_format.json_schema.strict", "invalid_input"),
        (form(description=1), "response_format.json_schema.description", "invalid_input"),
        (form(surprise=1), "response_format.json_schema.surprise", "unsupported_parameter"),
        (form(schema={"description": "x" * 65_536}), "response_format", "invalid_input"),
    ],
)
async def test_forms_that_are_none_are_named(sdk, served, given, param, code):
    before = len(served.log.runs)
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(model="structured", messages=said("x"), response_format=given)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert len(served.log.runs) == before
