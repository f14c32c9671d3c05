"""Tools that a run's client calls itself, forms of answers and images, through every product surface and a real orchestrator."""

import base64
from contextlib import AsyncExitStack

import aiohttp
import openai
import orjson
import pytest
import pytest_asyncio
from bulkhead.llm.v1 import llm_pb2
from pydantic import BaseModel

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect
from services.gateway.app import build
from services.gateway.settings import Settings
from services.orchestrator.testing.fakes import fakes, obedient
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.contract.ag_ui_client import Client, checked, parsed
from tests.contract.responses_sdk import all_of
from tests.integration.blob_client import png

pytestmark = pytest.mark.asyncio(loop_scope="module")
ASK = 'tool ask_user {"question": "which one?"}'
MIXED = f'tools\ntool calculator {{"a": 1}}\n{ASK}\ntool show {{}}'
# The scripted model counts results: of a conversation that is sent again those of the agent's own tools are not a part.
THEIRS = f"tools\n{ASK}\ntool show {{}}"
PARAMETERS = {"type": "object", "properties": {"question": {"type": "string"}}, "required": ["question"]}
NAMES = ("ask_user", "show")
CHAT_TOOLS = [
    {"type": "function", "function": {"name": "ask_user", "description": "Asks.", "parameters": PARAMETERS}},
    {"type": "function", "function": {"name": "show"}},
]
TOOLS = [{"type": "function", "name": "ask_user", "description": "Asks.", "parameters": PARAMETERS}, {"type": "function", "name": "show"}]


class Place(BaseModel):
    """A form."""

    city: str


class Front:
    """A gateway before an orchestrator that keeps blobs."""

    def __init__(self, url, key, behind):
        self.url, self.key, self.behind = url, key, behind

    def given(self):
        """What the last model call was given but for the prompt."""
        return [message for message in self.behind.models.calls[-1].request.messages if message.role != "system"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(identities, _state_server, tmp_path_factory):
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(fakes(identities))
        config = write_config(tmp_path_factory.mktemp("config"))
        below = settings_for(identities, behind, _state_server, config, segments_dir=tmp_path_factory.mktemp("blobs"))
        await stack.enter_async_context(served(below, identities))
        settings = Settings(
            env="test", http_port=testing.free_port(), metrics_port=0, state_url=_state_server, memory_address="127.0.0.1:1",
            orchestrator_address=f"127.0.0.1:{below.grpc_port}", tool_executor_address="127.0.0.1:1", drain_grace_s=3,
            **identities.settings("gateway"),
        )  # fmt: skip
        await stack.enter_async_context(testing.running(settings, build))
        state = connect(_state_server)
        stack.push_async_callback(state.aclose)
        key = (await Accounts(state).create_key(tenant="acme", user="ana", tier="enterprise", scopes=("*",))).secret
        yield Front(f"http://127.0.0.1:{settings.http_port}", key, behind)


@pytest_asyncio.fixture(loop_scope="module")
async def sdk(front):
    async with openai.AsyncOpenAI(base_url=f"{front.url}/v1", api_key=front.key, max_retries=0) as client:
        yield client
    front.behind.models.reply = obedient


@pytest_asyncio.fixture(loop_scope="module")
async def http(front):
    async with aiohttp.ClientSession(front.url, headers={"authorization": f"Bearer {front.key}"}) as session:
        yield session


def replies(*texts):
    """A model that says these one after the other."""
    left = list(texts)
    return lambda request: llm_pb2.Message(role="assistant", text=left.pop(0))


@pytest.mark.parametrize("thread", ["", "chat-calls"])
@pytest.mark.parametrize("stream", [False, True])
async def test_chat_completions_ask_and_go_on(front, sdk, thread, stream):
    named = {"model": "quick", "tools": CHAT_TOOLS, **({"metadata": {"thread_id": f"{thread}-{stream}"}} if thread else {})}

    async def say(messages):
        if not stream:
            return (await sdk.chat.completions.create(messages=messages, **named)).choices[0]
        async with sdk.chat.completions.stream(messages=messages, **named) as chunks:
            return (await chunks.get_final_completion()).choices[0]

    said = [{"role": "user", "content": MIXED if thread else THEIRS}]
    first = await say(said)
    assert (first.finish_reason, [call.function.name for call in first.message.tool_calls]) == ("tool_calls", list(NAMES))
    assert orjson.loads(first.message.tool_calls[0].function.arguments) == {"question": "which one?"}
    said.append(first.message)
    said += [{"role": "tool", "tool_call_id": call.id, "content": f"the {call.function.name} one"} for call in first.message.tool_calls]
    second = await say(said)
    assert second.finish_reason == "stop"
    assert "the ask_user one ; the show one" in second.message.content
    # On its thread the model sees what the agent's own tool gave as well.
    assert sum(message.role == "tool" for message in front.given()) == (3 if thread else 2)


async def test_responses_ask_and_go_on_and_are_the_same_from_every_event_on(sdk):
    asked = {"model": "quick", "tools": TOOLS, "temperature": 0.5, "metadata": {"team": "x"}, "instructions": "Be brief."}
    whole = await all_of(await sdk.responses.create(input=MIXED, stream=True, **asked))
    final = whole[-1]["response"]
    assert [item["type"] for item in final["output"]] == ["mcp_call", "function_call", "function_call"]
    for position in range(len(whole) + 1):
        after = {"starting_after": whole[position - 1]["sequence_number"]} if position else {}
        tail = await all_of(await sdk.responses.retrieve(final["id"], stream=True, **after))
        assert whole[:position] + tail == whole
    known = (await sdk.responses.retrieve(final["id"])).to_dict()
    assert known == final
    assert [known[name] for name in ("temperature", "metadata", "instructions")] == [0.5, {"team": "x"}, "Be brief."]
    assert (known["tools"][0]["name"], known["tools"][0]["parameters"]) == ("ask_user", PARAMETERS)
    calls = [item for item in final["output"] if item["type"] == "function_call"]
    results = [{"type": "function_call_output", "call_id": call["call_id"], "output": call["name"]} for call in calls]
    second = await sdk.responses.create(input=results, previous_response_id=final["id"], model="quick", tools=TOOLS)
    assert "ask_user ; show" in second.output_text
    assert second.conversation.id == final["conversation"]["id"]
    # Once more behind the same response, which branches off: its calls wait there too.
    other = await sdk.responses.create(input=results, previous_response_id=final["id"], model="quick", tools=TOOLS)
    assert "ask_user ; show" in other.output_text
    assert other.conversation.id != second.conversation.id
    items = [item.type async for item in sdk.conversations.items.list(second.conversation.id, order="asc")]
    assert items[-5:] == ["function_call", "function_call", "function_call_output", "function_call_output", "message"]


async def test_a_whole_conversation_of_a_response_can_be_sent_again(sdk):
    said = [{"role": "user", "content": THEIRS}]
    first = await sdk.responses.create(input=said, model="quick", tools=TOOLS)
    calls = [item for item in first.output if item.type == "function_call"]
    said += [*first.output, *({"type": "function_call_output", "call_id": call.call_id, "output": call.name} for call in calls)]
    assert "ask_user ; show" in (await sdk.responses.create(input=said, model="quick", tools=TOOLS)).output_text


async def test_results_that_nobody_waits_for_are_refused_in_the_form_of_the_surface(sdk):
    result = {"role": "tool", "tool_call_id": "c1", "content": "x"}
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(model="quick", messages=[result], metadata={"thread_id": "nobody-waits"})
    assert (caught.value.param, caught.value.code) == ("messages[0].tool_call_id", "tool_call_unknown")
    answer = await sdk.responses.create(model="quick", input="say x")
    output = {"type": "function_call_output", "call_id": "c1", "output": "x"}
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.create(model="quick", input=[output], previous_response_id=answer.id, instructions="Sing.")
    assert (caught.value.param, caught.value.code) == ("input[0].call_id", "tool_call_unknown")


async def test_the_name_of_a_tool_of_the_agents_is_refused_by_the_name_of_the_field(sdk):
    mine = {"name": "calculator", "parameters": {"type": "object"}}
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(
            model="quick", messages=[{"role": "user", "content": "x"}], tools=[CHAT_TOOLS[0], {"type": "function", "function": mine}]
        )
    assert caught.value.param == "tools[1].function.name"
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.create(model="quick", input="x", tools=[{"type": "function", **mine}])
    assert caught.value.param == "tools[0].name"


@pytest.mark.parametrize("how", ["chat", "chat stream", "responses", "responses stream"])
async def test_an_answer_has_its_form_also_where_it_was_asked_for_again(front, sdk, how):
    front.behind.models.reply = replies("Of course! Lisbon.", '{"city": "Lisbon"}')
    said = [{"role": "user", "content": "Where?"}]
    if how == "chat":
        parsed_answer = (await sdk.chat.completions.parse(model="quick", messages=said, response_format=Place)).choices[0].message.parsed
    elif how == "chat stream":
        async with sdk.chat.completions.stream(model="quick", messages=said, response_format=Place) as stream:
            parsed_answer = (await stream.get_final_completion()).choices[0].message.parsed
    elif how == "responses":
        parsed_answer = (await sdk.responses.parse(model="quick", input="Where?", text_format=Place)).output_parsed
    else:
        async with sdk.responses.stream(model="quick", input="Where?", text_format=Place) as stream:
            parsed_answer = (await stream.get_final_response()).output_parsed
    assert parsed_answer == Place(city="Lisbon")
    front.behind.models.reply = replies("no", "still no")
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk.chat.completions.parse(model="quick", messages=said, response_format=Place)
    assert (caught.value.status_code, caught.value.code) == (502, "output_schema")


async def test_images_reach_the_model(front, sdk):
    told = "data:image/png;base64," + base64.b64encode(png()).decode()
    part = {"type": "image_url", "image_url": {"url": told, "detail": "low"}}
    await sdk.chat.completions.create(model="quick", messages=[{"role": "user", "content": [part, {"type": "text", "text": "say seen"}]}])
    seen = orjson.loads(front.given()[-1].content_json)
    assert [one["type"] for one in seen] == ["image_url", "text"]
    assert seen[0]["image_url"]["url"].startswith("data:image/png;base64,")
    image = {"type": "input_image", "image_url": told}
    first = await sdk.responses.create(model="quick", input=[{"role": "user", "content": [image, {"type": "input_text", "text": "say x"}]}])
    kept = (await sdk.responses.input_items.list(first.id)).data[0].content[0]
    again = {"type": "input_image", "file_id": kept.file_id, "detail": "auto"}
    await sdk.responses.create(model="quick", input=[{"role": "user", "content": [again, {"type": "input_text", "text": "say y"}]}])
    assert orjson.loads(front.given()[-1].content_json)[0]["type"] == "image_url"
    # Behind a response the image goes with its conversation.
    said = [{"role": "user", "content": [image, {"type": "input_text", "text": "say z"}]}]
    behind = await sdk.responses.create(model="quick", input=said, previous_response_id=first.id)
    kept = (await sdk.responses.input_items.list(behind.id)).data[0].content[0]
    async with aiohttp.ClientSession(front.url, headers={"authorization": f"Bearer {front.key}"}) as http:
        async with http.get(f"/v1/blobs/{kept.file_id}") as response:
            assert f"conv_{(await response.json())['thread_id']}" == behind.conversation.id
        await sdk.conversations.delete(behind.conversation.id)
        async with http.get(f"/v1/blobs/{kept.file_id}") as response:
            assert response.status == 404
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.create(model="quick", input=[{"role": "user", "content": [{**again, "file_id": "blob_none"}]}])
    assert caught.value.param == "input[0].content[0].file_id"
    with pytest.raises(openai.BadRequestError) as caught:
        wrong = {"type": "image_url", "image_url": {"url": "data:image/png;base64,bm8="}}
        await sdk.chat.completions.create(model="quick", messages=[{"role": "user", "content": [wrong]}])
    assert caught.value.param == "messages[0].content[0].image_url.url"


async def test_ag_ui_asks_and_goes_on(http):
    tools = [{"name": "ask_user", "description": "Asks.", "parameters": PARAMETERS}, {"name": "show", "description": ""}]
    said = [{"id": "u1", "role": "user", "content": MIXED}]

    async def run(run_id, messages):
        body = {"threadId": "ag-ui-calls", "runId": run_id, "messages": messages, "tools": tools}
        async with http.post("/ag-ui/quick", json=body) as response:
            assert response.status == 200, await response.text()
            return checked(parsed(await response.read()))

    client = Client(said).take(await run("ag-1", said))
    (asked,) = [message for message in client.messages if message.get("toolCalls")]
    assert [call["function"]["name"] for call in asked["toolCalls"]] == ["calculator", *NAMES]
    answered = {message["toolCallId"] for message in client.messages if message["role"] == "tool"}
    client.messages += [
        {"id": f"result-{call['id']}", "role": "tool", "toolCallId": call["id"], "content": call["function"]["name"]}
        for call in asked["toolCalls"]
        if call["id"] not in answered
    ]
    events = await run("ag-2", client.messages)
    assert "ask_user ; show" in events[-1]["result"]["text"]
    # Whoever comes without the conversation is told of the calls and their results.
    again = Client().take(await run("ag-2", []))
    assert [message["toolCallId"] for message in again.messages if message["role"] == "tool"] == [
        call["id"] for call in asked["toolCalls"][1:]
    ]


async def test_native_runs_ask_and_go_on(http):
    async def run(**body):
        async with http.post("/v1/threads/native-calls/runs", json={"agent": "quick", **body}, headers={"prefer": "wait=20"}) as response:
            assert response.status == 200, await response.text()
            return await response.json()

    tools = [{"name": "ask_user", "parameters": PARAMETERS}, {"name": "show"}]
    first = await run(input=MIXED, client_tools=tools, metadata={"team": "x"})
    assert (first["finish_reason"], first["metadata"]) == ("tool_calls", {"team": "x"})
    said = [{"role": "tool", "content": call["name"], "tool_call_id": call["tool_call_id"]} for call in first["client_tool_calls"]]
    async with http.post("/v1/threads/native-calls/runs", json={"agent": "quick", "input": said[:1]}) as response:
        assert (response.status, (await response.json())["reason"]) == (400, "TOOL_CALL_UNANSWERED")
    second = await run(input=[*said, {"role": "user", "content": "echo context"}])
    async with http.get("/v1/threads/native-calls/snapshot") as response:
        known = {one["run_id"]: one for one in (await response.json())["runs"]}
    assert known[first["run_id"]]["client_tool_calls"] == first["client_tool_calls"]
    assert known[second["run_id"]]["input"] == [*said, {"role": "user", "content": "echo context"}]
    assert second["output_text"].endswith('tool:{"result": 0}|tool:ask_user|tool:show|user:echo context')
