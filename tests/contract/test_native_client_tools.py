"""Tools of the client, forms of answers, images and labels on the native run routes."""

import aiohttp
import jsonschema
import orjson
import pytest
import pytest_asyncio

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOOL = {"name": "weather", "description": "How it is there.", "parameters": {"type": "object"}, "strict": True}
ASKED = '{"city":"Lisbon"}'
CALL = {"tool_call_id": "c1", "name": "weather", "arguments": ASKED}
ASKING = {"role": "assistant", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "19", "tool_call_id": "c1"}
USER = {"role": "user", "content": "x"}


@pytest_asyncio.fixture(loop_scope="module")
async def http(served):
    async with aiohttp.ClientSession(served.url, headers=served.headers(prefer="wait=20")) as session:
        yield session


async def ran(http, thread_id, **body):
    async with http.post(f"/v1/threads/{thread_id}/runs", json=body) as response:
        assert response.status == 200, await response.text()
        return await response.json()


async def test_a_run_says_what_its_client_is_to_call_and_the_next_one_brings_the_results(http, served):
    first = await ran(http, "t-calls", agent="caller", input=ASKED, client_tools=[TOOL, {"name": "clock"}], metadata={"team": "x"})
    assert (first["status"], first["finish_reason"], first["output_text"]) == ("succeeded", "tool_calls", "Let me look.")
    calls = first["client_tool_calls"]
    assert [(call["name"], call["arguments"]) for call in calls] == [("weather", ASKED), ("clock", ASKED)]
    made = served.log.newest().request.client_tools
    assert [(tool.name, tool.description, tool.parameters_json, tool.strict) for tool in made] == [
        ("weather", "How it is there.", b'{"type":"object"}', True), ("clock", "", b"", False),
    ]  # fmt: skip
    results = [{"role": "tool", "content": f"{call['name']}!", "tool_call_id": call["tool_call_id"]} for call in calls]
    second = await ran(http, "t-calls", agent="caller", input=results)
    assert (second["output_text"], second["finish_reason"], second["client_tool_calls"]) == ("They gave weather!, clock!.", "stop", None)
    async with http.get(f"/v1/runs/{first['run_id']}") as response:
        known = await response.json()
    assert (known["client_tool_calls"], known["metadata"]) == (calls, {"team": "x"})
    async with http.get("/v1/threads/t-calls/runs") as response:
        listed = (await response.json())["data"]
    # A list leaves labels out, and does not say that there are none.
    assert [(run["finish_reason"], run["metadata"]) for run in listed] == [("stop", None), ("tool_calls", None)]


async def test_a_conversation_with_calls_can_be_said_at_once(http, served):
    said = [{"role": "user", "content": ASKED}, {**ASKING, "content": "Let me look."}, RESULT]
    assert (await ran(http, "t-whole", agent="caller", input=said, client_tools=[TOOL]))["output_text"] == "They gave 19."
    sent = served.log.newest().request.input
    assert [(m.role, m.text, m.tool_call_id, len(m.tool_calls)) for m in sent] == [
        ("user", ASKED, "", 0), ("assistant", "Let me look.", "", 1), ("tool", "19", "c1", 0),
    ]  # fmt: skip


async def test_choices_forms_and_images_are_passed_on(http, served):
    choice = {"type": "function", "function": {"name": "weather"}}
    form = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}, "strict": True}}
    images = [{"blob_id": "blob_1"}, {"blob_id": "blob_2", "detail": "high"}]
    await ran(
        http, "t-more", agent="caller", client_tools=[TOOL], tool_choice=choice, response_format=form,
        input=[{"role": "user", "images": images}],
    )  # fmt: skip
    made = served.log.newest().request
    assert (orjson.loads(made.tool_choice_json), orjson.loads(made.response_format_json)) == (choice, form)
    assert [(image.blob_id, image.detail) for image in made.input[0].images] == [("blob_1", "auto"), ("blob_2", "high")]
    # The agent's own tools can be meant too.
    await ran(http, "t-none", agent="caller", tool_choice="none", input="x")
    assert served.log.newest().request.tool_choice_json == b'"none"'


async def test_the_events_are_those_that_the_schema_describes(http):
    first = await ran(http, "t-schema", agent="caller", client_tools=[TOOL], input=[{"role": "user", "content": ASKED, "images": []}])
    async with http.get("/schemas/events/v1.json") as response:
        schema = await response.json()
    async with http.get("/replay/t-schema") as response:
        events = (await response.json())["events"]
    told = {event["type"]: event for event in events}
    for kind in ("run_queued", "run_finished"):
        jsonschema.Draft202012Validator(schema).validate(told[kind])
    call = schema["$defs"]["ClientToolCall"]
    for one in (*told["run_finished"]["data"]["client_tool_calls"], *told["interrupt_raised"]["data"]["calls"]):
        jsonschema.Draft202012Validator(call).validate(one)
    assert told["run_finished"]["data"]["client_tool_calls"] == first["client_tool_calls"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"client_tools": [TOOL] * 65}, "client_tools"),
        ({"client_tools": [TOOL, TOOL]}, "client_tools[1].name"),
        ({"client_tools": [{**TOOL, "name": "no spaces"}]}, "client_tools.0.name"),
        ({"client_tools": [{**TOOL, "type": "function"}]}, "client_tools.0.type"),
        ({"client_tools": [{**TOOL, "parameters": []}]}, "client_tools.0.parameters"),
        ({"client_tools": [{**TOOL, "parameters": {"type": "array"}}]}, "client_tools[0].parameters"),
        ({"client_tools": [{**TOOL, "parameters": {"description": "x" * 32_768}}]}, "client_tools[0].parameters"),
        ({"client_tools": [{**TOOL, "description": "ü" * 4_000}]}, "client_tools[0].description"),
        ({"client_tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        ({"client_tools": [TOOL], "tool_choice": {"type": "web_search"}}, "tool_choice.type"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": "json"}, "response_format"),
        ({"input": [RESULT, RESULT]}, "input"),
        ({"input": [USER, ASKING, {**RESULT, "tool_call_id": "c2"}]}, "input"),
        ({"input": [USER, ASKING, USER]}, "input"),
        ({"input": [USER, ASKING]}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input"),
        ({"input": [{**USER, "tool_call_id": "c1"}]}, "input"),
        ({"input": [{**USER, "tool_calls": [CALL]}]}, "input"),
        ({"input": [{**RESULT, "images": [{"blob_id": "b"}]}]}, "input"),
        ({"input": [{**USER, "images": [{"blob_id": "b"}] * 9}]}, "input"),
        ({"input": [{**USER, "images": [{"blob_id": "a/b"}]}]}, "input"),
        ({"input": [{**USER, "images": [{"url": "https://example.com/x.png"}]}]}, "input"),
        ({"input": [{"role": "user", "content": " "}]}, "input"),
    ],
)
async def test_what_is_wrong_is_named_and_begins_nothing(http, served, body, field):
    before = len(served.log.runs)
    async with http.post("/v1/threads/t-wrong/runs", json={"agent": "caller", "input": "x", **body}) as response:
        assert response.status == 422, await response.text()
        problem = await response.json()
    assert problem["errors"][0]["field"].startswith(field), problem["errors"]
    assert len(served.log.runs) == before
