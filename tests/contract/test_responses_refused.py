"""What /v1/responses and /v1/conversations do not take: named in OpenAI's own error, never ignored and never a 500."""

import aiohttp
import openai
import orjson
import pytest
import pytest_asyncio

from tests.contract.responses_sdk import finds_nothing

pytestmark = pytest.mark.asyncio(loop_scope="module")
MESSAGE = {"type": "message", "role": "user", "content": "x"}
FUNCTION = {"type": "function", "name": "f", "parameters": {}, "strict": False}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
RESULT = {"type": "function_call_output", "call_id": "c", "output": "x"}
DECISION = {"type": "mcp_approval_response", "approval_request_id": "mcpr_run_1.1.0", "approve": True}


@pytest_asyncio.fixture(loop_scope="module")
async def http(served):
    async with aiohttp.ClientSession(served.url, headers=served.headers(content_type="application/json")) as session:
        yield session


UNSUPPORTED = [
    ({"tools": [FUNCTION, {"type": "web_search"}]}, "tools[1].type"),
    ({"tools": [{"type": "mcp", "server_label": "x"}]}, "tools[0].type"),
    ({"tools": [{**FUNCTION, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "web_search_preview"}}, "tool_choice.type"),
    ({"include": ["message.output_text.logprobs"]}, "include"),
    ({"include": ["reasoning.encrypted_content", "message.output_text.logprobs"]}, "include"),
    ({"truncation": "sideways"}, "truncation"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"moderation": {"model": "m"}}, "moderation"),
    ({"generate": False}, "generate"),
    ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options.prewarm"),
    ({"n": 2}, "n"),
    ({"logprobs": True}, "logprobs"),
    ({"stop": ["\n"]}, "stop"),
    ({"functions": [FUNCTION]}, "functions"),
    ({"audio": {"voice": "alloy"}}, "audio"),
    ({"messages": [MESSAGE]}, "messages"),
    ({"max_tokens": 5}, "max_tokens"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format.type"),
    ({"text": {"format": {"type": "json_object", "surprise": 1}}}, "text.format.surprise"),
    ({"text": {"surprise": 1}}, "text.surprise"),
    ({"service_tier": "ultrafast"}, "service_tier"),
    ({"conversation": {"id": "conv_x", "surprise": 1}}, "conversation.surprise"),
    ({"conversation": "conv_x", "store": False}, "store"),
    ({"input": [{**CALL, "surprise": 1}, RESULT]}, "input[0].surprise"),
    ({"input": [CALL, {**RESULT, "surprise": 1}]}, "input[1].surprise"),
    ({"input": [CALL, {**RESULT, "output": [{"type": "input_image", "image_url": "x"}]}]}, "input[1].output[0].type"),
    ({"input": [{"type": "web_search_call", "id": "r"}, MESSAGE]}, "input[0].type"),
    ({"input": [{"type": "mcp_list_tools", "id": "r"}, MESSAGE]}, "input[0].type"),
    ({"input": [{"type": ["reasoning"]}, MESSAGE]}, "input[0].type"),
    ({"input": [{**MESSAGE, "content": [{"type": "input_file", "file_id": "f"}]}]}, "input[0].content[0].type"),
    ({"input": [{**MESSAGE, "content": [{"type": "input_audio"}]}]}, "input[0].content[0].type"),
    ({"input": [{**MESSAGE, "content": [{"type": "input_image", "image_url": "https://x.org/y.png"}]}]}, "input[0].content[0].image_url"),
    ({"input": [{**MESSAGE, "role": "system", "content": [{"type": "input_image", "file_id": "f"}]}]}, "input[0].content[0].type"),
    ({"input": [{"type": "item_reference", "id": "msg_1", "surprise": 1}]}, "input[0].surprise"),
    ({"input": [{**MESSAGE, "surprise": 1}]}, "input[0].surprise"),
    ({"input": [{**MESSAGE, "content": [{"type": "input_text", "text": "x", "prompt_cache_breakpoint": {}}]}]}, "input[0].content[0]"),
    ({"input": [DECISION, MESSAGE], "previous_response_id": "resp_run_1"}, "input"),
    ({"input": [DECISION], "previous_response_id": "resp_run_1", "instructions": "x"}, "instructions"),
    ({"input": [DECISION], "previous_response_id": "resp_run_1", "temperature": 0}, "temperature"),
    ({"input": [DECISION], "previous_response_id": "resp_run_1", "store": False}, "store"),
]
WRONG = [
    ({"tools": [FUNCTION] * 65}, "tools"),
    ({"tools": [FUNCTION, FUNCTION]}, "tools[1].name"),
    ({"tools": [{**FUNCTION, "parameters": {"type": "string"}}]}, "tools[0].parameters"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [FUNCTION], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice.name"),
    ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
    ({"text": {"format": {"type": "json_schema", "name": "s", "schema": []}}}, "text.format.schema"),
    ({"text": {"format": "json"}}, "text.format"),
    ({"input": [RESULT]}, "input[0].call_id"),
    ({"input": [CALL]}, "input"),
    ({"input": [CALL, MESSAGE]}, "input[0]"),
    ({"input": [CALL, CALL, RESULT]}, "input[0]"),
    ({"input": [CALL, RESULT, RESULT]}, "input[2].call_id"),
    ({"input": [{**CALL, "arguments": {}}, RESULT]}, "input[0].arguments"),
    ({"input": [{**CALL, "name": "no spaces"}, RESULT]}, "input[0].name"),
    ({"input": [{**CALL, "call_id": None}, RESULT]}, "input[0].call_id"),
    ({"input": [CALL, {**RESULT, "output": None}]}, "input[1].output"),
    ({"input": [{"type": "mcp_call"}]}, "input"),
    ({"input": [{"type": "mcp_approval_request"}]}, "input"),
    ({"input": [{"type": "reasoning"}]}, "input"),
    ({"input": [MESSAGE, {"type": "item_reference"}]}, "input[1].id"),
    ({"input": [MESSAGE, {"type": "item_reference", "id": 5}]}, "input[1].id"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"include": "reasoning.encrypted_content"}, "include"),
    ({"include": [5]}, "include"),
    ({"truncation": True}, "truncation"),
    ({"top_p": True}, "top_p"),
    ({"top_p": 2}, "top_p"),
    ({"top_logprobs": "3"}, "top_logprobs"),
    ({"reasoning": "high"}, "reasoning"),
    ({"text": {"verbosity": 5}}, "text.verbosity"),
    ({"stream": True, "stream_options": {"include_obfuscation": "yes"}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": [1]}, "stream_options"),
    ({"user": 5}, "user"),
    ({"prompt_cache_key": 5}, "prompt_cache_key"),
    ({"prompt_cache_retention": {}}, "prompt_cache_retention"),
    ({"safety_identifier": ["me"]}, "safety_identifier"),
    ({"input": [{**MESSAGE, "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
    ({"input": [{**MESSAGE, "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0].content[0].image_url"),
    ({"input": [{**MESSAGE, "content": [{"type": "input_image", "file_id": "no spaces"}]}]}, "input[0].content[0].file_id"),
    ({"metadata": {"bulkhead.response": "x"}}, "metadata.bulkhead.response"),
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"input": None}, "input"),
    ({"input": 5}, "input"),
    ({"input": " "}, "input"),
    ({"input": []}, "input"),
    ({"input": [5]}, "input[0]"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [{"role": ["user"], "content": "x"}]}, "input[0].role"),
    ({"input": [{**MESSAGE, "content": [5]}]}, "input[0].content[0]"),
    ({"input": [{**MESSAGE, "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
    ({"input": [MESSAGE, {"role": "assistant", "content": "x"}]}, "input"),
    ({"input": [MESSAGE] * 1001}, "input"),
    ({"input": [{**DECISION, "approve": "yes"}]}, "input[0].approve"),
    ({"input": [{**DECISION, "approval_request_id": "mcpr_run_1"}]}, "input"),
    ({"input": [DECISION]}, "previous_response_id"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
    ({"background": True, "store": False}, "background"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"max_tool_calls": 0}, "max_tool_calls"),
    ({"max_tool_calls": 2**40}, "max_tool_calls"),
    ({"temperature": 3}, "temperature"),
    ({"metadata": {"k": 1}}, "metadata.k"),
    ({"metadata": {f"k{n}": "" for n in range(17)}}, "metadata"),
    ({"conversation": 5}, "conversation"),
    ({"conversation": {"id": 5}}, "conversation.id"),
    ({"conversation": "conv_x", "previous_response_id": "resp_run_1"}, "previous_response_id"),
]


@pytest.mark.parametrize(("given", "param", "code"), [(*one, "unsupported_parameter") for one in UNSUPPORTED] + [(*o, None) for o in WRONG])
async def test_what_is_not_supported_or_wrong_is_named(http, served, given, param, code):
    before = len(served.log.runs)
    async with http.post("/v1/responses", data=orjson.dumps({"model": "assistant", "input": "x", **given})) as response:
        error = (await response.json())["error"]
        assert (response.status, error["type"], response.headers["x-should-retry"]) == (400, "invalid_request_error", "false")
    assert error["param"].startswith(param)
    assert error["code"] == (code or "invalid_input")
    assert len(served.log.runs) == before


NOT_USED = {
    "tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "include": [], "truncation": "disabled", "top_p": 1.0, "user": "me",
    "text": {"format": {"type": "text"}}, "reasoning": None, "prompt_cache_key": "k", "safety_identifier": "s", "store": True,
    "prompt_cache_retention": "24h", "top_logprobs": 0,
    "stream": False, "background": None, "conversation": None, "previous_response_id": None, "metadata": None, "instructions": None,
}  # fmt: skip


async def test_what_asks_for_nothing_else_is_taken(sdk):
    answer = await sdk.responses.create(model="assistant", input="x", **NOT_USED)
    assert (answer.output_text, answer.bulkhead["warnings"]) == ("You said: x", [])


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/conversations", "/v1/conversations/conv_c-bad"])
@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{", "invalid_json"),
        (b'{"a": NaN}', "invalid_json"),
        (b'{"metadata": {"a": "\xff"}}', "invalid_encoding"),
        (b'{"input": "\\ud800", "model": "assistant"}', "invalid_json"),
        (b'{"a":' + b"[" * 1000 + b"]" * 1000 + b"}", "nested_too_deeply"),
        (b'{"a":' * 1000 + b"1" + b"}" * 1000, "nested_too_deeply"),
        (b"[]", "invalid_input"),
        (b"null", "invalid_input"),
        (b'"text"', "invalid_input"),
    ],
    ids=["cut", "nan", "latin", "surrogate", "lists", "objects", "list", "null", "string"],
)
async def test_bodies_that_are_not_what_the_route_takes(http, served, path, data, code):
    served.log.make_thread("acme", "c-bad")
    async with http.post(path, data=data) as response:
        body = await response.json()
    assert (response.status, set(body), body["error"]["code"]) == (400, {"error"}, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}


async def test_a_field_that_is_there_twice_is_refused_and_a_nul_is_a_character(http):
    async with http.post("/v1/responses", data=b'{"model":"nobody","input":"x","model":"assistant"}') as response:
        error = (await response.json())["error"]
        assert (response.status, error["code"], error["param"]) == (400, "invalid_json", "model")
    async with http.post("/v1/responses", data=b'{"input":"y\\u0000","model":"assistant"}') as response:
        answer = await response.json()
    assert answer["output"][0]["content"][0]["text"] == "You said: y\0"


@pytest.mark.parametrize("given", ["resp_", "resp_none", "run_1", "resp_a b", "resp_" + "x" * 200, "resp_..%2F..", "resp_\u00e4"])
async def test_ids_that_name_nothing(http, given):
    for method, path in [
        ("GET", given), ("GET", f"{given}?stream=true"), ("DELETE", given), ("POST", f"{given}/cancel"), ("GET", f"{given}/input_items"),
    ]:  # fmt: skip
        async with http.request(method, f"/v1/responses/{path}") as response:
            assert response.status == 404, path
            assert (await response.json())["error"]["code"] in ("response_not_found", "route_not_found")
    async with http.post("/v1/responses", json={"model": "assistant", "input": "x", "previous_response_id": given}) as response:
        assert response.status == 400
        assert (await response.json())["error"]["code"] == "previous_response_not_found"


async def test_other_tenants_find_nothing(sdk, served):
    mine = await sdk.responses.create(model="assistant", input="x")
    asked = served.log.newest().run
    other = sdk.with_options(api_key=await served.issue("other"))
    await finds_nothing(other, mine)
    assert served.log.newest().run == asked


async def test_unknown_models_keys_and_scopes(sdk, served):
    for model in ("nobody", "x" * 200):
        with pytest.raises(openai.NotFoundError) as caught:
            await sdk.responses.create(model=model, input="x")
        assert caught.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        await sdk.with_options(api_key="bh_" + "x" * 40).responses.create(model="assistant", input="x")
    reader = sdk.with_options(api_key=await served.issue(scopes=("runs:read",)))
    mine = await sdk.responses.create(model="assistant", input="x")
    assert (await reader.responses.retrieve(mine.id)).id == mine.id
    for call in (
        reader.responses.create(model="assistant", input="x"),
        reader.responses.cancel(mine.id),
        reader.responses.delete(mine.id),
        reader.conversations.create(),
        reader.conversations.delete(mine.conversation.id),
    ):
        with pytest.raises(openai.PermissionDeniedError):
            await call


NEEDED = {
    ("POST", "/v1/responses"): ("runs:read", "runs:write"),
    ("GET", "/v1/responses/{response}"): ("runs:read",),
    ("GET", "/v1/responses/{response}/input_items"): ("runs:read",),
    ("POST", "/v1/responses/{response}/cancel"): ("runs:read", "runs:write"),
    ("DELETE", "/v1/responses/{response}"): ("runs:read", "threads:write"),
    ("POST", "/v1/conversations"): ("threads:write",),
    ("GET", "/v1/conversations/{conversation}"): ("threads:read",),
    ("POST", "/v1/conversations/{conversation}"): ("threads:read", "threads:write"),
    ("DELETE", "/v1/conversations/{conversation}"): ("threads:read", "threads:write"),
    ("GET", "/v1/conversations/{conversation}/items"): ("runs:read",),
    ("POST", "/v1/conversations/{conversation}/items"): ("threads:read", "threads:write"),
    ("GET", "/v1/conversations/{conversation}/items/{item}"): ("runs:read",),
    ("DELETE", "/v1/conversations/{conversation}/items/{item}"): ("threads:read", "threads:write"),
}


async def test_every_route_asks_for_its_scopes(served, sdk):
    async with aiohttp.ClientSession(served.url) as http:
        async with http.get("/openapi.json") as response:
            paths = (await response.json())["paths"]
        ours = [path for path in paths if path.startswith(("/v1/responses", "/v1/conversations"))]
        assert sum(len(paths[path]) for path in ours) == len(NEEDED)
        keys = {scope: await served.issue(scopes=(scope,)) for scope in ("runs:read", "runs:write", "threads:read", "threads:write")}
        for (method, path), scopes in NEEDED.items():
            made = await sdk.responses.create(model="assistant", input="x")
            names = {"response": made.id, "conversation": made.conversation.id, "item": made.output[0].id}
            body = {"json": {"model": "assistant", "input": "x"} if "responses" in path else {"metadata": {}}} if method == "POST" else {}
            for scope, key in keys.items():
                async with http.request(method, path.format(**names), headers={"x-api-key": key}, **body) as response:
                    assert (response.status == 403) == (scopes != (scope,)), (method, path, scope)
            # With all of them it is done, or refused for what it asks.
            both = {"x-api-key": await served.issue(scopes=scopes)}
            async with http.request(method, path.format(**names), headers=both, **body) as response:
                assert response.status in (200, 400), (method, path)


async def test_bad_cursors_and_parameters(http, sdk):
    answer = await sdk.responses.create(model="assistant", input="x")
    waiting = await sdk.responses.create(model="hang", input="x", background=True)
    for query in (
        "stream=true&starting_after=-1", "stream=true&starting_after=x", f"stream=true&starting_after={2**63}",
        "stream=true&starting_after=99999999", "starting_after=1", "stream=perhaps", "include_obfuscation=true", "include[]=x",
        "surprise=1",
    ):  # fmt: skip
        for one in (answer, waiting):
            async with http.get(f"/v1/responses/{one.id}?{query}") as response:
                assert response.status == 400, query
                assert "error" in await response.json()
    for path in (f"/v1/responses/{answer.id}/input_items", f"/v1/conversations/{answer.conversation.id}/items"):
        for query in (
            "after=x",
            "after=msg_none.0",
            f"after={answer.output[0].id}9",
            "after=",
            "limit=0",
            "limit=101",
            "limit=x",
            "order=sideways",
            "surprise=1",
            "include[]=x",
        ):
            async with http.get(f"{path}?{query}") as response:
                assert response.status == (200 if query == "after=" else 400), query
    await sdk.responses.cancel(waiting.id)


async def test_what_conversations_do_not_do_is_named(sdk):
    made = await sdk.conversations.create(metadata={"topic": "tea"})
    said = [{"type": "message", "role": "user", "content": "x"}]
    for call, param in (
        (sdk.conversations.create(items=said), "items"),
        (sdk.conversations.create(extra_body={"surprise": 1}), "surprise"),
        (sdk.conversations.create(metadata={"k": 5}), "metadata.k"),
        (sdk.conversations.update(made.id, metadata={"topic": "coffee"}), "metadata"),
        (sdk.conversations.items.create(made.id, items=said), "items"),
        (sdk.conversations.items.delete("msg_x", conversation_id=made.id), "item_id"),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await call
        assert caught.value.param == param
    assert (await sdk.conversations.update(made.id, metadata={"topic": "tea"})).metadata == {"topic": "tea"}
    assert (await sdk.conversations.create(items=[])).id != made.id
