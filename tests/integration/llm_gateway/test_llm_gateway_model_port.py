"""The OpenAI-compatible port: what passes through, who is let in, and what bad input is answered with."""

import asyncio
import time

import orjson
import pytest

from services.common import testing
from services.common.accounts import Accounts
from services.common.valkey import connect

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Tell me about ships and bulkheads, please."}]


def chat(**fields):
    return {"model": "main", "messages": HELLO, **fields}


async def stream_of(stack, body, **headers) -> tuple[int, list[str]]:
    """Status and the data lines of a stream."""
    sent = {"authorization": f"Bearer {stack.key}", **headers}
    async with stack.http.post(stack.url + CHAT, json=body, headers=sent) as answer:
        text = (await answer.read()).decode()
        return answer.status, [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


async def test_a_completion_comes_as_the_provider_made_it(stack):
    status, body, headers = await stack.post(CHAT, chat(), x_request_id="req-7")
    assert status == 200
    assert (body["object"], body["model"], body["choices"][0]["finish_reason"]) == ("chat.completion", "sim-1", "stop")
    assert body["system_fingerprint"] == "bulkhead-simulator"  # a field that the gateway does not know
    (line,) = await stack.sim.logged(1)
    assert float(headers["x-litellm-response-cost"]) == line["billed_nanousd"] / 1e9
    assert (headers["x-request-id"], headers["x-litellm-model-group"], headers["x-litellm-attempted-retries"]) == ("req-7", "main", "0")
    assert line["headers"]["x-request-id"] == "req-7"


async def test_a_stream_is_relayed_event_by_event_and_ends_with_done(stack):
    status, data = await stream_of(stack, chat(stream=True))
    assert (status, data[-1]) == (200, "[DONE]")
    chunks = [orjson.loads(d) for d in data[:-1]]
    _, whole, _ = await stack.post(CHAT, chat())
    text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
    # The gateway asked for usage itself; a client that did not is not surprised by an event without choices.
    assert all(c["choices"] for c in chunks)
    _, data = await stream_of(stack, chat(stream=True, stream_options={"include_usage": True}))
    assert orjson.loads(data[-2])["usage"]["completion_tokens"] > 0


async def test_an_error_after_the_first_byte_is_the_last_event_and_no_done_follows(stack):
    await stack.sim.order("cut_after=3")
    status, data = await stream_of(stack, chat(stream=True))
    assert status == 200
    error = orjson.loads(data[-1])["error"]
    assert (error["type"], error["failure_class"]) == ("server_error", "cut")
    assert "[DONE]" not in data
    assert not any(orjson.loads(d).get("choices", [{}])[0].get("finish_reason") for d in data[:-1])


async def test_an_error_before_the_first_byte_is_a_status(stack):
    await stack.sim.order("status=401")
    status, body, headers = await stack.post(CHAT, chat(stream=True))
    assert (status, body["error"]["code"]) == (502, "upstream_credentials_exhausted")
    assert headers["x-should-retry"] == "false"


async def test_a_fallback_is_told_in_the_headers(stack):
    await stack.sim.order("status=401", model="sim-1")
    status, body, headers = await stack.post(CHAT, chat())
    assert (status, body["model"], headers["x-litellm-model-group"]) == (200, "sim-2", "backup")
    assert (headers["x-litellm-attempted-fallbacks"], headers["x-bulkhead-warnings"]) == ("1", "model_fallback")


@pytest.mark.parametrize(
    ("fault", "status", "kind", "code"),
    [
        ("status=500", 502, "server_error", "upstream_failed"),
        ("rate_limit=seconds:600", 503, "server_error", "upstream_rate_limited"),
        ("context_length", 400, "invalid_request_error", "context_length_exceeded"),
        ("content_policy", 400, "invalid_request_error", "content_policy_violation"),
        ("status=404", 502, "server_error", "upstream_model_gone"),
    ],
)
async def test_failures_have_the_status_and_code_that_clients_branch_on(stack, fault, status, kind, code):
    await stack.sim.order(fault)
    got, body, headers = await stack.post(CHAT, chat())
    assert (got, body["error"]["type"], body["error"]["code"]) == (status, kind, code)
    assert set(body["error"]) >= {"message", "type", "param", "code"}
    assert ("retry-after" in headers) == (status == 503)


DEEP = b'{"model": "main", "messages": [{"role": "user", "content": "x"}], "x": ' + b"[" * 300 + b"]" * 300 + b"}"
BAD = [
    (b"", 400, None),
    (b"{", 400, None),
    (b"[]", 400, None),
    (b"null", 400, None),
    (b'"text"', 400, None),
    (b"\xff\xfe\x00", 400, None),
    (b'{"model": "main", "messages": [{"role": "user", "content": "\\ud800"}]}', 400, None),
    (b"[" * 100_000, 400, None),
    (DEEP, 400, None),
    (DEEP.replace(b"[" * 300 + b"]" * 300, b"[" * 3000 + b"]" * 3000), 400, None),
    ({"messages": HELLO}, 400, "model"),
    ({"model": 7, "messages": HELLO}, 400, "model"),
    ({"model": "", "messages": HELLO}, 400, "model"),
    ({"model": "nobody", "messages": HELLO}, 404, "model"),
    ({"model": "vectors", "messages": HELLO}, 400, "model"),
    ({"model": "main"}, 400, "messages"),
    ({"model": "main", "messages": []}, 400, "messages"),
    ({"model": "main", "messages": "hi"}, 400, "messages"),
    ({"model": "main", "messages": [7]}, 400, "messages[0]"),
    ({"model": "main", "messages": [{"role": "wizard", "content": "x"}]}, 400, "messages[0].role"),
    ({"model": "main", "messages": [{"role": ["user"], "content": "x"}]}, 400, "messages[0].role"),
    ({"model": "main", "messages": [{"role": "user"}]}, 400, "messages[0].content"),
    ({"model": "main", "messages": [{"role": "user", "content": 7}]}, 400, "messages[0].content"),
    (chat(stream="yes"), 400, "stream"),
    (chat(max_tokens=-1), 400, "max_tokens"),
    (chat(max_tokens=1.5), 400, "max_tokens"),
    (chat(max_tokens=True), 400, "max_tokens"),
    (chat(temperature="hot"), 400, "temperature"),
    (chat(temperature=3), 400, "temperature"),
    (chat(n=0), 400, "n"),
    (chat(tools=7), 400, "tools"),
    (chat(tools=[{"type": "function"}]), 400, "tools[0].function"),
    (chat(tools=[{"type": "function", "function": {"name": "f", "parameters": 7}}]), 400, "tools[0].function.parameters"),
    (chat(tools=[{"type": "function", "function": {"name": f"f{n}"}} for n in range(2001)]), 400, "tools"),
    (chat(tool_choice=7), 400, "tool_choice"),
    (chat(response_format="json"), 400, "response_format"),
    (chat(stream_options=7), 400, "stream_options"),
    (chat(stream=True, stream_options=[]), 400, "stream_options"),
]


@pytest.mark.parametrize(("body", "status", "param"), BAD)
async def test_bad_bodies_get_the_error_form_and_no_provider_hears_of_them(stack, body, status, param):
    got, answer, _ = await stack.post(CHAT, body)
    assert (got, answer["error"]["param"]) == (status, param)
    assert (answer["error"]["type"], bool(answer["error"]["message"])) == ("invalid_request_error", True)
    assert await stack.sim.log() == []


async def test_an_unknown_model_is_named_by_its_code(stack):
    _, body, _ = await stack.post(CHAT, chat(model="nobody\r\nx-evil: 1"))
    assert body["error"]["code"] == "model_not_found"


async def test_ten_megabytes_are_too_many_and_nine_are_not(stack):
    filler = "x" * (10 * 1024 * 1024)
    status, body, _ = await stack.post(CHAT, chat(messages=[{"role": "user", "content": filler}]))
    assert (status, body["error"]["code"]) == (413, "request_too_large")

    async def pieces():
        for _ in range(12):
            yield b"x" * (1024 * 1024)

    async with stack.http.post(stack.url + CHAT, data=pieces(), headers={"authorization": f"Bearer {stack.key}"}) as answer:
        assert answer.status == 413
    status, _, _ = await stack.post(CHAT, chat(metadata={"note": "y" * 2_000_000}))
    assert status == 200


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 401, "invalid_api_key"),
        ({"authorization": "Bearer "}, 401, "invalid_api_key"),
        ({"authorization": "Basic eDp5"}, 401, "invalid_api_key"),
        ({"authorization": "Bearer sk-not-ours"}, 401, "invalid_api_key"),
        ({"authorization": "Bearer bh_" + "x" * 43}, 401, "invalid_api_key"),
        ({"authorization": "Bearer bh_" + "x" * 5000}, 401, "invalid_api_key"),
    ],
)
async def test_a_wrong_key_is_told_first(stack, headers, status, code):
    async with stack.http.post(stack.url + CHAT, data=b"{", headers=headers) as answer:
        body = orjson.loads(await answer.read())
        assert (answer.status, body["error"]["code"], body["error"]["type"]) == (status, code, "authentication_error")


async def test_a_key_without_the_scope_is_forbidden(stack, _state_server):
    client = connect(_state_server)
    issued = await Accounts(client).create_key(tenant="acme", user="bob", tier="free", scopes=["runs:read"])
    await client.aclose()
    async with stack.http.post(stack.url + CHAT, json=chat(), headers={"authorization": f"Bearer {issued.secret}"}) as answer:
        assert answer.status == 403
        assert orjson.loads(await answer.read())["error"]["code"] == "insufficient_scope"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("POST", "/v1/models", 405),
        ("GET", "/nowhere", 404),
        ("DELETE", "/v1/embeddings", 405),
        ("POST", "/v1/files/nowhere", 405),
    ],
)
async def test_unknown_routes_and_methods(stack, method, path, status):
    async with stack.http.request(method, stack.url + path, headers={"authorization": f"Bearer {stack.key}"}) as answer:
        assert answer.status == status
        assert orjson.loads(await answer.read())["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/models", None, 200),
        ("GET", "/key/info", None, 200),
        ("POST", "/v1/messages/count_tokens", chat(), 200),
        ("POST", CHAT, {}, 400),
        ("POST", CHAT, chat(model="nobody"), 404),
        ("GET", CHAT, None, 405),
        ("POST", CHAT, chat(), 502),
    ],
)
async def test_answers_of_no_model_say_how_long_they_took(stack, method, path, body, status):
    await stack.sim.order("status=401")
    async with stack.http.request(method, stack.url + path, json=body, headers={"authorization": f"Bearer {stack.key}"}) as answer:
        assert answer.status == status, await answer.text()
        name, _, took_ms = answer.headers["server-timing"].partition(";dur=")
        assert (name, int(float(took_ms))) == ("total", int(answer.headers["openai-processing-ms"]))


async def test_a_body_of_another_type_is_refused(stack):
    status, _, _ = await stack.post(CHAT, b"model=main", content_type="application/x-www-form-urlencoded")
    assert status == 415


@pytest.mark.parametrize("value", ["soon", "-5", "0", "1e3", "9" * 30, "٣"])
async def test_a_wait_that_is_no_number_of_milliseconds_is_refused(stack, value):
    sent = {"authorization": f"Bearer {stack.key}", "x-request-timeout-ms": value}
    async with stack.http.post(stack.url + CHAT, json=chat(), headers=sent) as answer:
        assert answer.status == 400


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_wait_that_a_client_gives_bounds_the_call_to_the_leaf(stack, streamed):
    await stack.sim.order("first_token_delay=20000")
    started = time.monotonic()
    status, body, _ = await stack.post(CHAT, chat(stream=streamed), x_request_timeout_ms="500")
    assert (status, body["error"]["type"]) == (504, "server_error")
    assert time.monotonic() - started < 5
    assert all(line["aborted"] for line in await stack.sim.logged(1))


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_client_that_hangs_up_ends_the_call_at_the_simulator(stack, streamed):
    await stack.sim.order("tokens_per_s=10" if streamed else "first_token_delay=30000")
    host, port = stack.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    raw = orjson.dumps(chat(stream=streamed))
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.key}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(raw)}\r\n\r\n".encode()
        + raw
    )
    if streamed:
        await reader.readuntil(b"data: ")
    await testing.eventually_async(stack.sim.in_flight, "the call is in flight")
    left = time.monotonic()
    writer.close()
    (line,) = await stack.sim.logged(1)
    assert line["aborted"]
    assert line["aborted_monotonic_s"] - left < 3.0


@pytest.mark.parametrize(("sent", "seen"), [("true", "true"), ("True", None), ("1", None), ("false", None)])
async def test_only_true_is_a_canary(stack, sent, seen):
    await stack.post(CHAT, chat(), x_canary=sent)
    (line,) = await stack.sim.logged(1)
    assert line["headers"].get("x-canary") == seen


async def test_models_are_listed_and_shown(stack):
    sent = {"authorization": f"Bearer {stack.key}"}
    async with stack.http.get(stack.url + "/v1/models", headers=sent) as answer:
        assert [m["id"] for m in orjson.loads(await answer.read())["data"]] == ["main", "backup", "vectors"]
    async with stack.http.get(stack.url + "/v1/models/backup", headers=sent) as answer:
        assert orjson.loads(await answer.read())["owned_by"] == "simulator"
    async with stack.http.get(stack.url + "/v1/models/nobody", headers=sent) as answer:
        assert (answer.status, orjson.loads(await answer.read())["error"]["code"]) == (404, "model_not_found")
    async with stack.http.get(stack.url + "/v1/models") as answer:
        assert answer.status == 401


async def test_embeddings_in_both_encodings(stack):
    status, body, _ = await stack.post("/v1/embeddings", {"model": "vectors", "input": ["one", "two"]})
    assert (status, len(body["data"]), len(body["data"][0]["embedding"]), body["usage"]["prompt_tokens"]) == (200, 2, 256, 2)
    _, coded, _ = await stack.post("/v1/embeddings", {"model": "vectors", "input": "one", "encoding_format": "base64"})
    assert isinstance(coded["data"][0]["embedding"], str)


@pytest.mark.parametrize(
    "fields",
    [{}, {"input": ""}, {"input": []}, {"input": [""]}, {"input": 7}, {"input": [1, "a"]}, {"input": [1, 2]}, {"input": ["a"] * 2049},
     {"input": "a", "encoding_format": "hex"}, {"input": "a", "dimensions": 0}, {"input": "a", "dimensions": 7}, {"input": [[]]}],
)  # fmt: skip
async def test_embeddings_that_cannot_be(stack, fields):
    status, body, _ = await stack.post("/v1/embeddings", {"model": "vectors", **fields})
    assert (status, body["error"]["type"]) == (400, "invalid_request_error")


async def test_probes_need_no_key(stack):
    async with stack.http.get(stack.url + "/health") as answer:
        assert answer.status == 200

    async def ready():
        async with stack.http.get(stack.url + "/ready") as answer:
            return answer.status == 200

    await testing.eventually_async(ready, "ready")


async def test_a_body_that_stops_coming_is_waited_for_until_the_deadline(stack):
    host, port = stack.url.removeprefix("http://").split(":")
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {stack.key}\r\nx-request-timeout-ms: 300\r\n"
        "content-type: application/json\r\ncontent-length: 1000\r\n\r\n"
    )
    async with asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(head.encode() + b"{")
        # To the end of the connection: whoever sends the rest later must not have it taken for another request.
        answer = await reader.read()
        writer.close()
    assert answer.split()[1] == b"408"
    assert b'"code":"request_timeout"' in answer
