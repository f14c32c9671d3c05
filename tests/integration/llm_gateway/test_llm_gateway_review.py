"""What only a served gateway shows: work that outlives its caller and its process, models by alias, what gRPC answers beside HTTP."""

import asyncio
import json

import pytest
from orjson import loads

from services.common import testing
from services.common.accounts import Accounts, LimitSet
from services.common.valkey import connect

BODY = {"model": "main", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_keyed_call_whose_caller_has_left_is_finished_before_the_process_ends(serve, provider, models, wire):
    answer = wire.answer(wire.completion("done"))
    head, _, rest = answer.partition(b"\r\n\r\n")
    slow = await provider(lambda number, request: head + b"\r\n\r\n" + wire.PAUSE * 8 + rest)
    content = models(slow.url)
    async with serve(content) as stack:
        asking = asyncio.create_task(stack.post("/v1/chat/completions", BODY, idempotency_key="k-1"))
        await testing.eventually_async(lambda: received(slow, 1), "the provider's request")
        asking.cancel()
    async with serve(content) as stack:
        status, body, headers = await stack.post("/v1/chat/completions", BODY, idempotency_key="k-1")
    assert (status, body["choices"][0]["message"]["content"], headers["x-bulkhead-cache"]) == (200, "done", "replayed")
    assert len(slow.received) == 1


async def received(provider, count):
    return len(provider.received) >= count


async def limited(stack, state_url, **limits):
    client = connect(state_url)
    key = await Accounts(client).create_key(tenant="acme", user="bo", tier="enterprise", scopes=["*"], limits=LimitSet(**limits))
    await client.aclose()
    stack.key = key.secret


async def test_an_alias_or_an_auto_model_that_is_allowed_allows_what_it_stands_for(serve, models, sim, state_url):
    content = models(sim.url, model_group_alias={"small": "main"})
    content["router_settings"]["auto_router"] = {"name": "auto", "cheap": "main", "balanced": "main", "best": "main"}
    async with serve(content) as stack:
        for name in ("small", "auto"):
            await limited(stack, state_url, models=(name,))
            status, body, _ = await stack.post("/v1/chat/completions", {**BODY, "model": name})
            assert status == 200, body
            status, body, _ = await stack.post("/v1/chat/completions", {**BODY, "model": "backup"})
            assert (status, body["error"]["code"]) == (403, "model_not_allowed")


async def test_an_auto_model_chooses_among_the_models_that_its_caller_may_use(serve, models, sim, state_url):
    content = models(sim.url)
    content["router_settings"]["auto_router"] = {"name": "auto", "cheap": "backup", "balanced": "backup", "best": "main"}
    async with serve(content) as stack:
        await limited(stack, state_url, models=("main",))
        status, body, headers = await stack.post("/v1/chat/completions", {**BODY, "model": "auto"})
        assert status == 200, body
        assert headers["x-litellm-model-group"] == "main"
        assert "not_allowed:backup" in loads(headers["x-bulkhead-routing"])["reasons"]


on_shared_loop = pytest.mark.asyncio(loop_scope="module")


@on_shared_loop
async def test_a_key_that_was_used_before_with_another_body_is_the_callers_fault(stack):
    await stack.post("/v1/chat/completions", BODY, idempotency_key="k-2")
    status, body, _ = await stack.post("/v1/chat/completions", {**BODY, "seed": 1}, idempotency_key="k-2")
    assert (status, body["error"]["type"], body["error"]["code"]) == (422, "invalid_request_error", "idempotency_mismatch")


@on_shared_loop
@pytest.mark.parametrize("key", ["", "nested-1"])
async def test_a_request_that_is_nested_too_deeply_is_refused(stack, key):
    schema: dict = {}
    for _ in range(300):
        schema = {"properties": schema}
    tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
    headers = {"idempotency_key": key} if key else {}
    status, body, _ = await stack.post("/v1/chat/completions", json.dumps({**BODY, "tools": [tool]}).encode(), **headers)
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")
    assert await stack.sim.log() == []


@on_shared_loop
@pytest.mark.parametrize(
    ("path", "more"),
    [("chat/completions", {}), ("messages", {"max_tokens": 50}), ("responses", {"input": "hi"}), ("completions", {"prompt": "hi"})],
)
async def test_a_stream_says_who_answers_and_where_the_time_went(stack, path, more):
    body = {**({} if path in ("responses", "completions") else BODY), "model": "main", "stream": True, **more}
    sent = {"authorization": f"Bearer {stack.key}", "content-type": "application/json"}
    async with stack.http.post(f"{stack.url}/v1/{path}", data=json.dumps(body), headers=sent) as answer:
        assert answer.status == 200, await answer.text()
        head = answer.headers
        assert (head["x-litellm-model-group"], head["x-litellm-attempted-retries"]) == ("main", "0")
        times = {part.split(";dur=")[0]: float(part.split("=")[1]) for part in head["server-timing"].split(", ")}
        assert set(times) == {"queue", "reserve", "upstream", "overhead"}
        assert times["upstream"] > 0
        # What it costs is known at its end.
        assert "x-litellm-response-cost" not in head
        assert "cost_microusd=" in await answer.text() or path == "responses"


@on_shared_loop
async def test_a_stream_that_is_replayed_says_so_in_its_headers(stack):
    sent = {"authorization": f"Bearer {stack.key}", "content-type": "application/json", "idempotency-key": "stream-1"}
    seen = []
    for _ in range(2):
        async with stack.http.post(f"{stack.url}/v1/chat/completions", data=json.dumps({**BODY, "stream": True}), headers=sent) as answer:
            seen.append((answer.headers.get("x-bulkhead-cache"), (await answer.text()).endswith("data: [DONE]\n\n")))
    assert seen == [(None, True), ("replayed", True)]
