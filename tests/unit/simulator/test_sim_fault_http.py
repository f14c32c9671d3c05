"""Every fault, as a client sees it and as the log has it."""

import asyncio
import time
from email.utils import parsedate_to_datetime

import aiohttp
import orjson
import pytest

from services.common import testing
from services.simulator.faults import KINDS

WORDS = "Write 30 words."


async def raw(sim, model: str, *, stream: bool, content: str = WORDS, **more):
    """Status, headers and as much of the body as came, with the error that ended it."""
    body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream, **more}
    received = b""
    try:
        async with sim.http.post(f"{sim.url}/v1/chat/completions", json=body, allow_redirects=False) as answer:
            async for chunk in answer.content.iter_any():
                received += chunk
            return answer.status, answer.headers, received, None
    except aiohttp.ClientError as error:
        return 0, {}, received, error


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        ("500", 500, None),
        ("503", 503, None),
        ("status=502", 502, None),
        ("status=401", 401, "invalid_api_key"),
        ("status=404", 404, "model_not_found"),
        ("rate_limit", 429, "rate_limit_exceeded"),
        ("insufficient_quota", 429, "insufficient_quota"),
        ("context_length", 400, "context_length_exceeded"),
        ("content_policy", 400, "content_policy_violation"),
        ("redirect", 307, None),
    ],
)
async def test_error_answers(sim, fault, status, code, stream):
    got, headers, body, error = await raw(sim, f"sim-1+{fault}", stream=stream)
    assert error is None
    assert got == status
    assert orjson.loads(body)["error"]["code"] == code
    assert headers["x-simulator"] == "true"
    line = await sim.last_line()
    assert (line["status"], line["billed_nanousd"], line["completion_tokens"]) == (status, 0, 0)


async def test_retry_after_forms(sim):
    async def headers(form: str):
        return (await raw(sim, f"sim-1+rate_limit={form}", stream=False))[1]

    assert (await headers("7"))["retry-after"] == "7"
    assert (await headers("seconds:7"))["retry-after"] == "7"
    assert (await headers("ms:1500"))["retry-after-ms"] == "1500"
    assert (await headers("x-ms:1500"))["x-ms-retry-after-ms"] == "1500"
    assert (await headers("reset:3"))["x-ratelimit-reset"] == "3"
    date = parsedate_to_datetime((await headers("date:100"))["retry-after"]).timestamp()
    assert 50 < date - time.time() < 150
    assert 50 < float((await headers("reset-epoch:100"))["x-ratelimit-reset"]) - time.time() < 150
    assert not {"retry-after", "retry-after-ms", "x-ratelimit-reset"} & {name.lower() for name in await headers("none")}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_reset_comes_before_any_header(sim, stream):
    status, _, body, error = await raw(sim, "sim-1+reset", stream=stream)
    assert (status, body) == (0, b"")
    assert isinstance(error, aiohttp.ClientConnectionError)
    assert (await sim.last_line())["billed_nanousd"] == 0


async def test_a_cut_stream_ends_in_the_middle_and_is_billed_as_far(sim):
    _, _, body, error = await raw(sim, "sim-1+cut_after=5", stream=True)
    assert isinstance(error, aiohttp.ClientPayloadError)
    assert body.count(b'"content":') == 1 + 5
    assert b'finish_reason":"stop' not in body
    line = await sim.last_line()
    assert line["completion_tokens"] == 5
    assert line["finish_reason"] is None
    assert line["aborted"] is False


async def test_a_whole_body_is_cut_in_the_middle(sim):
    _, _, body, error = await raw(sim, "sim-1+cut_after", stream=False)
    assert isinstance(error, aiohttp.ClientPayloadError)
    assert body.startswith(b'{"id"')


async def test_an_early_orderly_end_has_no_finish(sim):
    _, _, body, error = await raw(sim, "sim-1+end_after=5", stream=True)
    assert error is None
    assert body.count(b'"content":') == 1 + 5
    assert b"[DONE]" not in body
    assert b'finish_reason":"' not in body


async def test_error_events(sim):
    _, _, first, _ = await raw(sim, "sim-1+error_event_after", stream=True)
    assert first.startswith(b'data: {"error"')
    assert (await sim.last_line())["billed_nanousd"] == 0
    _, _, later, _ = await raw(sim, "sim-1+error_event_after=4", stream=True)
    assert later.count(b'"content":') == 1 + 4
    assert orjson.loads(later.strip().splitlines()[-1].removeprefix(b"data: "))["error"]["type"] == "server_error"
    assert (await sim.last_line(2))["completion_tokens"] == 4


@pytest.mark.parametrize("stream", [False, True])
async def test_an_error_inside_200(sim, stream):
    status, headers, body, _ = await raw(sim, "sim-1+error_body", stream=stream)
    assert status == 200
    assert headers["content-type"] == "application/json"
    assert "error" in orjson.loads(body)
    assert (await sim.last_line())["billed_nanousd"] == 0


async def test_malformed_json(sim):
    _, _, body, error = await raw(sim, "sim-1+malformed_json", stream=False)
    assert error is None
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(body)
    _, _, body, _ = await raw(sim, "sim-1+malformed_json=2", stream=True)
    broken = []
    for line in body.splitlines():
        if line.startswith(b"data: {"):
            try:
                orjson.loads(line[6:])
            except orjson.JSONDecodeError:
                broken.append(line)
    assert len(broken) == 1, "one event is broken and the others are whole"
    assert b"[DONE]" in body


@pytest.mark.parametrize("stream", [False, True])
async def test_malformed_tool_arguments(sim, tools, stream):
    _, _, body, _ = await raw(sim, "sim-1+malformed_tool_arguments", stream=stream, content="What is 2*3?", tools=[tools.calculator])
    if stream:
        chunks = [orjson.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
        arguments = "".join(
            call["function"]["arguments"]
            for chunk in chunks
            for choice in chunk["choices"]
            for call in choice["delta"].get("tool_calls", [])
        )
    else:
        arguments = orjson.loads(body)["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]
    assert arguments
    with pytest.raises(orjson.JSONDecodeError):
        orjson.loads(arguments)


async def test_a_content_filter_ends_the_answer(sim):
    _, _, answer = await sim.chat(WORDS, model="sim-1+content_filter=4")
    assert answer["choices"][0]["finish_reason"] == "content_filter"
    assert len(answer["choices"][0]["message"]["content"].split()) == 4
    assert answer["usage"]["completion_tokens"] == 4


async def test_what_is_missing(sim):
    _, _, answer = await sim.chat(WORDS, model="sim-1+missing_usage")
    assert "usage" not in answer
    line = await sim.last_line()
    assert line["completion_tokens"] == 30, "it is billed, told or not"
    assert line["usage_sent"] is False
    usage_asked = {"stream_options": {"include_usage": True}}
    assert not any('"usage":{' in event for event in await sim.stream(WORDS, model="sim-1+missing_usage", **usage_asked))
    assert (await sim.stream(WORDS, model="sim-1+missing_done"))[-1] != "[DONE]"
    assert not any('finish_reason":"' in event for event in await sim.stream(WORDS, model="sim-1+missing_finish"))
    _, _, answer = await sim.chat(WORDS, model="sim-1+empty_choices")
    assert answer["choices"] == []
    assert all(orjson.loads(event)["choices"] == [] for event in (await sim.stream(WORDS, model="sim-1+empty_choices"))[:-1])


async def test_odd_events(sim):
    plain = await sim.stream(WORDS)
    twice = await sim.stream(WORDS, model="sim-1+duplicate_chunk=3")
    assert len(twice) == len(plain) + 1
    assert twice[3] == twice[4]
    assert (await sim.last_line(2))["completion_tokens"] == 30, "billed once"
    _, _, body, _ = await raw(sim, "sim-1+keepalive", stream=True)
    assert body.startswith(b": keep-alive\n\n")
    _, _, body, _ = await raw(sim, "sim-1+crlf", stream=True)
    assert b"\r\n\r\n" in body
    assert b"\n\n" not in body
    assert max(map(len, await sim.stream(WORDS, model="sim-1+huge_event=100000"))) > 100_000


@pytest.mark.parametrize("stream", [False, True])
async def test_a_wrong_content_type(sim, stream):
    assert (await raw(sim, "sim-1+wrong_content_type=text/plain", stream=stream))[1]["content-type"] == "text/plain"


@pytest.mark.parametrize("stream", [False, True])
async def test_the_first_token_is_late(sim, stream):
    began = time.monotonic()
    await raw(sim, "sim-1+first_token_delay=300", stream=stream)
    assert time.monotonic() - began >= 0.3
    line = await sim.last_line()
    assert line["first_byte_monotonic_s"] - line["received_monotonic_s"] >= 0.3


@pytest.mark.parametrize("stream", [False, True])
async def test_tokens_come_at_the_asked_rate(sim, stream):
    began = time.monotonic()
    _, _, body, error = await raw(sim, "sim-1+tokens_per_s=100", stream=stream)
    assert error is None
    assert time.monotonic() - began >= 0.29
    assert (await sim.last_line())["completion_tokens"] == 30
    if stream:
        assert body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize(("fault", "billed"), [("hang", 0), ("stall_after=0", 0), ("stall_after=4", 4)])
async def test_an_abandoned_stalled_stream_is_noticed(sim, fault, billed):
    body = {"model": f"sim-1+{fault}", "messages": [{"role": "user", "content": WORDS}], "stream": True}
    asking = asyncio.create_task(sim.http.post(f"{sim.url}/v1/chat/completions", json=body))

    async def waiting():
        _, found = await sim.call("GET", "/sim/in-flight")
        return [line for line in found["requests"] if line["completion_tokens"] == billed]

    await testing.eventually_async(waiting, "the request stalls")
    if not asking.done():
        asking.cancel()
    else:
        (await asking).close()
    left = time.monotonic()
    line = await sim.last_line()
    assert line["aborted"] is True
    assert line["completion_tokens"] == billed
    assert line["aborted_monotonic_s"] - left < 5.0


async def test_a_stream_that_its_client_leaves_is_billed_as_far_as_it_got(sim):
    body = {"model": "sim-1+tokens_per_s=50", "messages": [{"role": "user", "content": "Write 5000 words."}], "stream": True}
    async with sim.http.post(f"{sim.url}/v1/chat/completions", json=body) as answer:
        read = b""
        while read.count(b'"content":') < 5:
            read += await answer.content.readany()
        answer.close()
    line = await sim.last_line()
    assert line["aborted"] is True
    assert 4 <= line["completion_tokens"] < 1000
    assert line["billed_nanousd"] == line["prompt_tokens"] * 150 + line["completion_tokens"] * 600
    assert line["finish_reason"] is None


@pytest.mark.parametrize(("fault", "most"), [("first_token_delay=60000", 0), ("tokens_per_s=0.5", 3)])
async def test_a_whole_answer_that_its_client_does_not_wait_for_costs_what_was_made(sim, fault, most):
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(sim.chat(WORDS, model=f"sim-1+{fault}"), 0.3)
    line = await sim.last_line()
    assert line["aborted"] is True
    assert line["prompt_tokens"] > 0
    assert line["completion_tokens"] <= most


async def test_header_faults_beat_those_of_the_model_name(sim):
    status, _, _ = await sim.chat(model="sim-1+status=500", headers={"x-sim-fault": "status=503; missing_usage"})
    assert status == 503
    status, _, _ = await sim.chat(headers={"x-sim-status": "502"})
    assert status == 502
    _, _, answer = await sim.chat(headers={"x-sim-content-filter": "2"})
    assert answer["choices"][0]["finish_reason"] == "content_filter"


async def test_ordered_faults_fail_as_often_as_asked_and_then_let_go(sim):
    status, order = await sim.call("POST", "/sim/faults", {"match": {"contains": "alpha"}, "fault": "status=503", "times": 2})
    assert status == 201
    assert [(await sim.chat("alpha"))[0] for _ in range(4)] == [503, 503, 200, 200]
    assert (await sim.chat("beta"))[0] == 200
    _, listed = await sim.call("GET", "/sim/faults")
    assert listed["faults"] == [{**order, "times": 0, "applied": 2}]
    assert set(listed["known"]) == set(KINDS)


async def test_ordered_faults_match_by_model_run_and_endpoint_and_may_skip(sim):
    await sim.call("POST", "/sim/faults", {"match": {"model": "sim-2"}, "fault": {"status": 500}})
    assert (await sim.chat(model="sim-1"))[0] == 200
    assert (await sim.chat(model="sim-2"))[0] == 500
    assert (await sim.call("DELETE", "/sim/faults"))[1] == {"deleted": 1}
    assert (await sim.chat(model="sim-2"))[0] == 200
    _, order = await sim.call("POST", "/sim/faults", {"match": {"run": "run-7"}, "fault": "503", "skip": 1, "times": 1})
    statuses = [(await sim.chat(headers={"idempotency-key": "run-7/1/0"}))[0] for _ in range(3)]
    assert statuses == [200, 503, 200]
    assert (await sim.call("DELETE", f"/sim/faults/{order['id']}"))[0] == 200
    assert (await sim.call("DELETE", f"/sim/faults/{order['id']}"))[0] == 404
    await sim.call("POST", "/sim/faults", {"match": {"endpoint": "embeddings"}, "fault": "500"})
    assert (await sim.chat())[0] == 200
    assert (await sim.call("POST", "/v1/embeddings", {"model": "sim-embed", "input": "a"}))[0] == 500


@pytest.mark.parametrize(
    "order",
    [
        {},
        {"fault": "nonsense"},
        {"fault": "status"},
        {"fault": "status=abc"},
        {"fault": "status=99"},
        {"fault": ""},
        {"fault": 5},
        {"fault": "500", "times": 0},
        {"fault": "500", "times": True},
        {"fault": "500", "skip": -1},
        {"fault": "500", "match": {"colour": "red"}},
        {"fault": "500", "match": {"model": 5}},
        {"fault": "500", "match": []},
        {"fault": "500", "match": {"endpoint": "x"}},
        {"fault": "500", "unknown": 1},
        {"fault": "rate_limit=soon"},
    ],
)
async def test_an_order_that_is_not_clear_is_refused(sim, order):
    status, answer = await sim.call("POST", "/sim/faults", order)
    assert (status == 400) == (order.get("match") != [])
    assert status != 400 or answer["error"]["message"]


@pytest.mark.parametrize("model", ["sim-1+nonsense", "sim-1+status", "sim-1+cut_after=-1", "sim-1+tokens_per_s=0", "sim-1+status=nan"])
async def test_a_misspelt_fault_is_no_silent_success(sim, model):
    status, _, answer = await sim.chat(model=model)
    assert status == 400
    assert answer["error"]["code"] in ("unknown_fault", "invalid_fault")


async def test_every_fault_can_be_asked_for_in_both_modes(sim):
    """No combination of one fault and a mode makes the server fail by itself."""
    needs_value = {"first_token_delay": "1", "tokens_per_s": "1000", "status": "418"}
    for name in KINDS.keys() - {"hang", "stall_after"}:
        value = f"={needs_value[name]}" if name in needs_value else ""
        for stream in (False, True):
            status, _, body, _ = await raw(sim, f"sim-1+{name}{value}", stream=stream)
            assert status != 500, name
            assert b"defect" not in body
