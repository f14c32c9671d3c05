"""An `auto` model through the served gateway: the choice, its reasons, and the group that really answered."""

import pytest
from bulkhead.llm.v1 import llm_pb2
from orjson import loads

from services.common import testing

HARD = (
    "Prove that the algorithm below terminates, derive its time complexity step by step, compare three alternatives, and design a "
    "distributed version with a consistency argument:\n```python\ndef f(n):\n    return n if n < 2 else f(n - 1) + f(n - 2)\n```"
)


@pytest.fixture
def routed(models, sim):
    content = models(sim.url)
    content["router_settings"]["auto_router"] = {"name": "auto", "cheap": "main", "balanced": "main", "best": "backup"}
    return content


@pytest.mark.parametrize("stream", [False, True])
async def test_the_request_decides_who_answers(serve, routed, stream):
    async with serve(routed) as stack:
        await asked(stack, stream)


async def asked(stack, stream):
    with testing.calling(stack.identities):
        for text, model in (("hi", "main"), (HARD, "backup")):
            source = llm_pb2.CompletionInput(model="auto", messages=[llm_pb2.Message(role="user", text=text)])
            if stream:
                events = [e async for e in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=source))]
                outcome = events[-1].finished.outcome
            else:
                outcome = (await stack.llm.Complete(llm_pb2.CompleteRequest(input=source))).outcome
            why = loads(outcome.routing_json)
            assert (outcome.model, why["model"]) == (model, model)
            assert why["reasons"]


async def test_auto_over_http_is_a_model_like_any_other(serve, routed):
    async with serve(routed) as stack:
        body = {"model": "auto", "messages": [{"role": "user", "content": "hi"}]}
        status, answer, headers = await stack.post("/v1/chat/completions", body)
        assert status == 200, answer
        assert headers["x-litellm-model-group"] == "main"
        assert loads(headers["x-bulkhead-routing"])["tier"] == "balanced"
        async with stack.http.get(f"{stack.url}/v1/models", headers={"authorization": f"Bearer {stack.key}"}) as listed:
            assert "auto" in {entry["id"] for entry in loads(await listed.read())["data"]}
