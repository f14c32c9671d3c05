"""Bad input on every surface: the error that clients branch on, no call upstream, nothing reserved and nothing booked."""

import gzip
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import aiohttp
import grpc
import orjson
import pytest
import pytest_asyncio
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.errors import BulkheadError, InvalidInput, NotFound
from services.common.valkey import connect
from tests.integration.llm_gateway.bad_input import CONVERSATIONS, GOOD, HEADERS, bodies, nested, raw_bodies
from tests.integration.llm_gateway.conftest import served, simulated
from tests.integration.llm_gateway.proof import deployment, pair

pytestmark = pytest.mark.asyncio(loop_scope="module")
MASTER = "sk-operator-of-the-test"
PATHS = pytest.mark.parametrize("path", GOOD)
KINDS = {"invalid_request_error", "not_found_error", "request_too_large"}


def special(sim_url: str, name: str, model: str, mode: str, price: float) -> dict[str, Any]:
    """A model that does not chat."""
    made = deployment(name, "sim-1", f"{sim_url}/v1")
    made["litellm_params"]["model"] = f"openai/{model}"
    return {**made, "model_info": {"mode": mode, "input_cost_per_token": price}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stack(identities, _state_server, tmp_path_factory) -> AsyncIterator[Any]:
    async with simulated() as sim:
        content = pair(sim.url)
        content["model_list"] += [
            special(sim.url, "vectors", "sim-embed", "embedding", 2e-8),
            special(sim.url, "ranker", "sim-rerank", "rerank", 4e-8),
        ]
        folder = tmp_path_factory.mktemp("bad")
        async with served(content, identities, _state_server, folder, sim, master_key=MASTER) as made:
            made.state = connect(_state_server, timeout_s=10.0)
            await made.state.flushall()
            state = await made.post("/key/generate", {"user_id": "ana"}, authorization=f"Bearer {MASTER}")
            assert state[0] == 200
            made.key = state[1]["key"]
            yield made
            await made.state.aclose()


async def untouched(stack) -> None:
    """No provider has been asked, nothing is reserved and nothing was booked."""
    assert not await stack.sim.log()
    assert not await stack.sim.in_flight()
    assert not [key async for key in stack.state.scan_iter("llm:{*}:open")]
    assert not [key async for key in stack.state.scan_iter("llm:{*}:ledger")]


def refused(path: str, status: int, answer: Any) -> None:
    """The error body of the surface, with a status that fits."""
    assert 400 <= status < 500, (status, answer)
    error = answer["error"]
    assert error["message"]
    assert len(error["message"]) < 1000
    assert error["type"] in KINDS, answer
    if path == "/v1/messages":
        assert answer["type"] == "error"
        assert answer["request_id"]
    else:
        assert set(error) >= {"message", "type", "param", "code"}


async def ask(stack, path: str, body: Any, headers: Mapping[str, str] | None = None) -> tuple[int, Any, Mapping[str, str]]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = {"authorization": f"Bearer {stack.key}", "content-type": "application/json", **(headers or {})}
    async with stack.http.post(stack.url + path, data=data, headers=sent) as answer:
        return answer.status, orjson.loads(await answer.read()), answer.headers


@PATHS
async def test_bodies_that_are_no_request(stack, path):
    for name, raw in raw_bodies(path).items():
        status, answer, _ = await ask(stack, path, raw)
        refused(path, status, answer)
        assert status == (413 if name == "ten-megabytes" else 400), name
    status, answer, _ = await ask(stack, path, gzip.compress(orjson.dumps(GOOD[path])), {"content-encoding": "gzip"})
    refused(path, status, answer)
    await untouched(stack)


@PATHS
async def test_requests_that_say_what_cannot_be(stack, path):
    for name, body in bodies(path).items():
        status, answer, headers = await ask(stack, path, body)
        refused(path, status, answer)
        assert "x-evil" not in headers
        unknown = name.startswith("model-") and name not in ("model-null", "model-number", "model-empty", "model-list")
        assert status == (404 if unknown else 400), (name, status, answer)
        if path != "/v1/messages" and not unknown and name not in ("empty-object", "schema-deep"):
            # Clients show which field it was.
            assert answer["error"]["param"], (name, answer)
        if path != "/v1/messages" and unknown:
            assert (answer["error"]["code"], answer["error"]["param"]) == ("model_not_found", "model")
    await untouched(stack)


@pytest.mark.parametrize("path", CONVERSATIONS)
async def test_streams_are_refused_as_plainly(stack, path):
    for body in bodies(path).values():
        if isinstance(body.get("stream", True), bool):
            status, answer, headers = await ask(stack, path, {**body, "stream": True} if "stream_options" not in body else {**body, "n": 0})
            refused(path, status, answer)
            assert headers["content-type"].startswith("application/json")
    await untouched(stack)


@PATHS
async def test_headers_that_say_what_cannot_be(stack, path):
    for name, headers in HEADERS.items():
        status, answer, _ = await ask(stack, path, GOOD[path], headers)
        refused(path, status, answer)
        assert status == (415 if "content-type" in headers else 400), name
    await untouched(stack)


@PATHS
async def test_what_a_request_says_never_becomes_a_header(stack, path):
    for name in ("x-request-id", "x-canary", "traceparent", "baggage"):
        status, _, headers = await ask(stack, path, {}, {name: "a%0d%0ax-evil: 1"})
        assert status == 400
        assert "x-evil" not in headers
    # Line ends in a header are refused by HTTP itself; nothing behind them is taken for a header.
    with pytest.raises((ValueError, aiohttp.ClientError)):
        await ask(stack, path, {}, {"x-request-id": "a\r\nx-evil: 1"})
    await untouched(stack)


@PATHS
async def test_other_methods_keys_and_paths(stack, path):
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        async with stack.http.request(method, stack.url + path, headers={"authorization": f"Bearer {stack.key}"}) as answer:
            assert (answer.status, answer.headers["allow"]) == (405, "POST")
    for key in ("", "wrong", "sk-" + "x" * 5000, "\u00e9", stack.key[:-1]):
        status, answer, _ = await ask(stack, path, GOOD[path], {"authorization": f"Bearer {key}"})
        assert (status, answer["error"]["type"]) == (401, "authentication_error")
    await untouched(stack)


ADMIN = {
    "/key/generate": [
        {"max_budget": -1}, {"max_budget": "much"}, {"max_budget": 1e30}, {"rpm_limit": 0}, {"rpm_limit": 1.5}, {"tpm_limit": "x"},
        {"models": "main"}, {"models": [7]}, {"duration": "soon"}, {"budget_duration": "never"}, {"user_id": 7}, {"team_id": "nobody"},
        {"metadata": "x"}, {"nonsense": 1}, {"max_parallel_requests": -1}, {"user_id": "a\r\nb"}, {"key_alias": "x" * 10_000},
    ],
    "/key/update": [{}, {"key": "sk-nobody", "max_budget": 1}, {"key": 7}, {"max_budget": 1}],
    "/key/delete": [{}, {"keys": "x"}, {"keys": [7]}, {"keys": ["sk-nobody"]}],
    "/team/new": [{"team_id": 7}, {"team_id": "a", "max_budget": -1}, {"members_with_roles": "x"}, {"nonsense": 1}],
    "/user/new": [{"user_id": 7}, {"max_budget": "x"}, {"models": "x"}, {"nonsense": 1}],
}  # fmt: skip


@pytest.mark.parametrize("path", ADMIN)
async def test_admin_requests_that_cannot_be(stack, path):
    operator = {"authorization": f"Bearer {MASTER}"}
    before = sorted(await stack.state.keys("acct:*"))
    for body in [*ADMIN[path], b"", b"{nope", b"[]", b"\xff", b'{"max_budget":NaN}']:
        status, answer, _ = await ask(stack, path, body, operator)
        assert 400 <= status < 500, (body, status, answer)
        assert answer["error"]["message"]
    status, answer, _ = await ask(stack, path, {}, {"authorization": f"Bearer {stack.key}"})
    assert status in (400, 401, 403), (status, answer)
    # Nothing of it was kept.
    assert sorted(await stack.state.keys("acct:*")) == before
    await untouched(stack)


def said(**fields: Any) -> llm_pb2.CompletionInput:
    return llm_pb2.CompletionInput(**{"model": "main", "messages": [llm_pb2.Message(role="user", text="hello")], **fields})


GRPC = {
    "model-unknown": said(model="nobody"),
    "messages-empty": said(messages=[]),
    "role-unknown": said(messages=[llm_pb2.Message(role="robot", text="a")]),
    "role-empty": said(messages=[llm_pb2.Message(text="a")]),
    "tokens-negative": said(max_tokens=-1),
    "tokens-zero": said(max_tokens=0),
    "tokens-huge": said(max_tokens=2**62),
    "temperature-high": said(temperature=9.0),
    "temperature-nan": said(temperature=float("nan")),
    "temperature-infinite": said(temperature=float("inf")),
    "tool-no-name": said(tools=[llm_pb2.ToolDefinition(parameters_json=b"{}")]),
    "tool-twice": said(tools=[llm_pb2.ToolDefinition(name="f", parameters_json=b"{}")] * 2),
    "tool-bad-json": said(tools=[llm_pb2.ToolDefinition(name="f", parameters_json=b"{nope")]),
    "tool-bad-utf8": said(tools=[llm_pb2.ToolDefinition(name="f", parameters_json=b"\xff")]),
    "tool-schema-list": said(tools=[llm_pb2.ToolDefinition(name="f", parameters_json=b"[]")]),
    "tool-schema-type": said(tools=[llm_pb2.ToolDefinition(name="f", parameters_json=b'{"type":"strange"}')]),
    "tools-thousands": said(tools=[llm_pb2.ToolDefinition(name=f"f{n}", parameters_json=b"{}") for n in range(3000)]),
    "choice-bad-json": said(tool_choice_json=b"{nope"),
    "choice-number": said(tool_choice_json=b"7"),
    "choice-alone": said(tool_choice_json=b'"required"'),
    "format-unknown": said(response_format_json=b'{"type":"yaml"}'),
    "format-list": said(response_format_json=b"[]"),
    "extra-bad-json": said(extra_json=b"{nope"),
    "extra-list": said(extra_json=b"[]"),
    "extra-model": said(extra_json=b'{"model":"other"}'),
    "extra-messages": said(extra_json=b'{"messages":[]}'),
    "extra-stop": said(extra_json=b'{"stop":7}'),
    "run-budget-alone": said(run_budget_microusd=5),
    "run-budget-negative": said(run_id="r", run_budget_microusd=-5),
    "max-cost-negative": said(max_cost_microusd=-5),
}


@pytest.mark.parametrize("mode", ["unary", "stream"])
async def test_the_same_over_grpc(stack, mode):
    for name, wanted in GRPC.items():
        with testing.calling(stack.identities), pytest.raises(BulkheadError) as raised:
            if mode == "unary":
                await stack.llm.Complete(llm_pb2.CompleteRequest(input=wanted))
            else:
                async for _ in stack.llm.StreamComplete(llm_pb2.StreamCompleteRequest(input=wanted)):
                    pass
        assert isinstance(raised.value, NotFound if name == "model-unknown" else InvalidInput), (name, raised.value)
        assert raised.value.code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND)
    await untouched(stack)


def texts(**fields: Any) -> llm_pb2.EmbedRequest:
    return llm_pb2.EmbedRequest(**{"model": "vectors", "texts": ["a"], **fields})


def ranked(**fields: Any) -> llm_pb2.RerankRequest:
    return llm_pb2.RerankRequest(**{"model": "ranker", "query": "q", "documents": ["a", "b"], **fields})


def tokens(*lists: list[int]) -> dict[str, Any]:
    return {"texts": [], "token_lists": [llm_pb2.TokenList(tokens=given) for given in lists]}


VECTORS = {
    "model-unknown": texts(model="nobody"),
    "model-of-chats": texts(model="main"),
    "texts-none": texts(texts=[]),
    "text-empty": texts(texts=["a", ""]),
    "texts-thousands": texts(texts=["a"] * 3000),
    "tokens-beside-texts": texts(token_lists=[llm_pb2.TokenList(tokens=[1])]),
    "tokens-none": texts(**tokens([])),
    "tokens-negative": texts(**tokens([1], [-1])),
    "dimensions-negative": texts(dimensions=-1),
    "extra-bad-json": texts(extra_json=b"{"),
    "extra-bad-utf8": texts(extra_json=b"\xff"),
    "extra-input": texts(extra_json=b'{"input":"x"}'),
    "extra-user": texts(extra_json=b'{"user":7}'),
    "key-long": texts(idempotency_key="k" * 1000),
    "key-injection": texts(idempotency_key="a\r\nx-evil: 1"),
    "max-cost-negative": texts(max_cost_microusd=-1),
}
RANKINGS = {
    "model-unknown": ranked(model="nobody"),
    "model-of-chats": ranked(model="main"),
    "query-empty": ranked(query=""),
    "documents-none": ranked(documents=[]),
    "document-empty": ranked(documents=["a", ""]),
    "documents-thousands": ranked(documents=["a"] * 2000),
    "top-negative": ranked(top_n=-1),
    "extra-documents": ranked(extra_json=b'{"documents":[]}'),
    "max-cost-negative": ranked(max_cost_microusd=-1),
}


async def test_vectors_and_rankings_over_grpc(stack):
    for method, table in ((stack.embedder.Embed, VECTORS), (stack.embedder.Rerank, RANKINGS)):
        for name, wanted in table.items():
            with testing.calling(stack.identities), pytest.raises(NotFound if name == "model-unknown" else InvalidInput):
                await method(wanted)
            await untouched(stack)


async def test_requests_whose_tokens_are_to_be_counted(stack):
    path = "/v1/messages/count_tokens"
    for name, raw in raw_bodies("/v1/messages").items():
        status, answer, _ = await ask(stack, path, raw)
        refused("/v1/messages", status, answer)
        assert status == (413 if name == "ten-megabytes" else 400), name
    for name, body in bodies("/v1/messages").items():
        # What an answer may be long does not concern its prompt, and any block has a length.
        if not name.startswith("max-tokens-") and name != "block-unknown":
            status, answer, _ = await ask(stack, path, body)
            refused("/v1/messages", status, answer)
    await untouched(stack)


async def test_tokens_of_what_is_nested_too_deeply_are_not_counted(stack):
    block = b'{"model":"main","messages":[{"role":"user","content":[{"type":"x","a":' + nested(500) + b"}]}]}"
    status, answer, _ = await ask(stack, "/v1/messages/count_tokens", block)
    refused("/v1/messages", status, answer)
