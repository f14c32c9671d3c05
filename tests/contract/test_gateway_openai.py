"""The openai SDK, unmodified, against /v1/chat/completions and /v1/models."""

import asyncio

import aiohttp
import openai
import orjson
import pytest
import pytest_asyncio

from services.common import testing
from services.gateway import fakes

HELLO = [{"role": "user", "content": "hello"}]


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(identities, _state_server):
    async with fakes.gateway(identities, _state_server, proof_wait_s=0.5) as gateway:
        yield gateway


async def text_of(stream):
    text, finish, usage, extension = "", None, None, None
    async for chunk in stream:
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
            finish = chunk.choices[0].finish_reason or finish
        usage = chunk.usage or usage
        extension = (chunk.model_extra or {}).get("bulkhead") or extension
    return text, finish, usage, extension


async def test_a_completion_has_text_usage_and_finish_reason(sdk, served):
    raw = await sdk.chat.completions.with_raw_response.create(model="assistant", messages=HELLO, temperature=0.5, max_tokens=50)
    answer = raw.parse()
    assert answer.choices[0].message.content == "You said: hello"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 5, 12)
    run = served.log.runs[("acme", raw.headers["x-bulkhead-run-id"])]
    assert answer.id == f"chatcmpl-{run.run.run_id}"
    assert raw.headers["x-bulkhead-thread-id"] == run.run.thread_id
    assert (run.request.temperature, run.request.max_tokens, run.request.append_only_output) == (0.5, 50, True)


async def test_a_stream_brings_the_same_text_and_usage_when_asked(sdk):
    stream = await sdk.chat.completions.create(
        model="assistant", messages=HELLO, stream=True, stream_options={"include_usage": True}, max_completion_tokens=9
    )
    text, finish, usage, extension = await text_of(stream)
    assert (text, finish) == ("You said: hello", "stop")
    assert usage.total_tokens == 12
    assert extension["run_id"].startswith("run_")


async def test_a_stream_without_usage_ends_with_done_and_no_usage(served):
    async with aiohttp.ClientSession(headers=served.headers()) as http:
        body = {"model": "assistant", "messages": HELLO, "stream": True}
        async with http.post(f"{served.url}/v1/chat/completions", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in (await response.text()).split("\n\n") if line]
    assert lines[-1] == "data: [DONE]"
    assert all("usage" not in line for line in lines)
    assert orjson.loads(lines[0][6:])["choices"][0]["delta"]["role"] == "assistant"


async def test_without_a_thread_all_messages_go_to_an_ephemeral_one(sdk, served):
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "assistant", "content": "Yes?"}, *HELLO]
    await sdk.chat.completions.create(model="assistant", messages=messages)
    request = served.log.newest().request
    assert request.thread_id == ""
    assert [(m.role, m.text) for m in request.input] == [("system", "Be brief."), ("assistant", "Yes?"), ("user", "hello")]


@pytest.mark.parametrize("how", ["metadata", "header"])
async def test_on_a_named_thread_only_the_last_message_is_appended(sdk, served, how):
    messages = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "Yes."}, *HELLO]
    named = {"metadata": {"thread_id": "mine", "team": "x"}} if how == "metadata" else {"extra_headers": {"x-bulkhead-thread-id": "mine"}}
    await sdk.chat.completions.create(model="assistant", messages=messages, **named)
    request = served.log.newest().request
    assert request.thread_id == "mine"
    assert [m.text for m in request.input] == ["hello"]
    assert dict(request.metadata) == ({"team": "x"} if how == "metadata" else {})


async def test_a_takeover_in_mid_text_shows_no_text_twice(sdk):
    stream = await sdk.chat.completions.create(model="takeover", messages=HELLO, stream=True)
    assert (await text_of(stream))[0] == "The answer is forty-two."


async def test_citations_and_warnings_come_with_the_answer(sdk):
    answer = await sdk.chat.completions.create(model="tools", messages=HELLO, extra_body={"top_p": 0.5, "surprise": 1})
    extension = answer.model_extra["bulkhead"]
    assert extension["citations"][0]["title"] == "README.md"
    assert [w["code"] for w in extension["warnings"]] == ["memory_unavailable", "parameters_ignored"]
    assert extension["warnings"][1]["capability_lost"] == "top_p, surprise"


@pytest.mark.parametrize(
    ("reason", "error", "status"),
    [
        ("CONTEXT_LENGTH_EXCEEDED", openai.BadRequestError, 400),
        ("BUDGET_EXCEEDED", openai.RateLimitError, 429),
        ("OVERLOADED", openai.InternalServerError, 503),
        ("DEADLINE_EXCEEDED", openai.InternalServerError, 504),
        ("SOMETHING_NEW", openai.InternalServerError, 500),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_an_early_failure_has_a_status_of_its_own(sdk, reason, error, status, stream):
    with pytest.raises(error) as caught:
        await sdk.chat.completions.create(model="fail", messages=[{"role": "user", "content": reason}], stream=stream)
    assert caught.value.status_code == status
    assert caught.value.code == ("insufficient_quota" if reason == "BUDGET_EXCEEDED" else reason.lower())
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.response.headers["x-bulkhead-run-id"]


async def test_a_failure_in_mid_stream_is_an_error_and_no_end(sdk, served):
    stream = await sdk.chat.completions.create(model="fail_late", messages=HELLO, stream=True)
    with pytest.raises(openai.APIError) as caught:
        await text_of(stream)
    assert caught.value.code == "upstream_failed"
    async with aiohttp.ClientSession(headers=served.headers()) as http:
        body = {"model": "fail_late", "messages": HELLO, "stream": True}
        async with http.post(f"{served.url}/v1/chat/completions", json=body) as response:
            raw = await response.text()
    assert "[DONE]" not in raw
    assert '"finish_reason":"' not in raw


async def test_unknown_models_and_keys_are_openai_errors(sdk, served):
    with pytest.raises(openai.NotFoundError) as caught:
        await sdk.chat.completions.create(model="nobody", messages=HELLO)
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError) as refused:
        await sdk.with_options(api_key="bh_" + "x" * 40).models.list()
    assert refused.value.code == "invalid_api_key"
    limited = await served.issue(scopes=("runs:read",))
    with pytest.raises(openai.PermissionDeniedError) as forbidden:
        await sdk.with_options(api_key=limited).chat.completions.create(model="assistant", messages=HELLO)
    assert "runs:write" in str(forbidden.value)


async def test_the_agents_are_the_models(sdk):
    listed = [model.id async for model in await sdk.models.list()]
    assert listed[0] == "assistant"
    assert (await sdk.models.retrieve("assistant")).owned_by == "bulkhead"
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("nobody")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"functions": [TOOL["function"]]}, "functions"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"stop": ["x"]}, "stop"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0].role"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": []}, "messages"),
        ({"metadata": {"thread_id": "no spaces"}}, "metadata.thread_id"),
        ({"metadata": {"thread_id": "no-line-break\n"}}, "metadata.thread_id"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
    ],
)
async def test_what_is_not_supported_or_wrong_is_named(sdk, given, param):
    asked = {"model": "assistant", "messages": HELLO, **given}
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(**asked)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


async def test_the_time_to_wait_bounds_the_answer_and_not_the_run(sdk, served):
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat.completions.create(model="silent", messages=HELLO, stream=stream, extra_headers={"x-request-timeout-ms": "300"})
        assert caught.value.status_code == 504
        run = served.log.runs[("acme", caught.value.response.headers["x-bulkhead-run-id"])]
        assert not run.cancelled.is_set()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("leaving", ["continue", "cancel"])
async def test_a_client_that_leaves_cancels_only_when_it_said_so(served, stream, leaving):
    before = len(served.log.runs)
    async with aiohttp.ClientSession(headers=served.headers(x_bulkhead_on_disconnect=leaving)) as http:
        body = {"model": "hang", "messages": HELLO, "stream": stream}
        request = asyncio.create_task(http.post(f"{served.url}/v1/chat/completions", json=body))
        await testing.eventually_async(lambda: len(served.log.runs) > before and served.replicas[0].open_streams, "followed")
        run = served.log.newest()
        if stream:
            (await request).close()
        else:
            request.cancel()
        if leaving == "cancel":
            await asyncio.wait_for(run.cancelled.wait(), 10)
        else:
            await testing.eventually_async(lambda: served.replicas[0].open_streams == 0, "the gateway lets go of the run")
            assert not run.cancelled.is_set()
