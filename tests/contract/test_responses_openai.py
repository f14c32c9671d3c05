"""The openai SDK, unmodified, against /v1/responses: create, stream, background, cancel, delete and input items."""

import asyncio

import aiohttp
import openai
import orjson
import pytest
from openai.types import responses as types

from services.common import testing
from services.gateway import fakes
from services.gateway.surfaces.responses import reading
from tests.contract.responses_sdk import all_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
TERMINAL = {"response.completed", "response.failed", "response.incomplete"}


async def test_a_response_has_text_usage_and_its_conversation(sdk, served):
    answer = await sdk.responses.create(model="assistant", input="hello", temperature=0.5, max_output_tokens=50, metadata={"team": "x"})
    assert (answer.status, answer.output_text, answer.model) == ("completed", "You said: hello", "assistant")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (7, 5, 12)
    assert (answer.temperature, answer.max_output_tokens, answer.metadata) == (0.5, 50, {"team": "x"})
    types.Response.model_validate(answer.to_dict())
    run = served.log.newest()
    assert answer.id == f"resp_{run.run.run_id}"
    assert answer.conversation.id == f"conv_{run.run.thread_id}"
    request = run.request
    assert (request.temperature, request.max_tokens, request.append_only_output) == (0.5, 50, True)
    # What the log does not tell of a request is kept beside the caller's labels.
    assert dict(request.metadata) == {"team": "x", "bulkhead.response": '{"max_output_tokens":50,"temperature":0.5}'}


async def test_a_stream_brings_the_same_response_piece_by_piece(sdk):
    events = await all_of(await sdk.responses.create(model="assistant", input="hello", stream=True))
    kinds = [event["type"] for event in events]
    assert kinds[:4] == ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
    assert kinds[-4:] == ["response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"]
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == "You said: hello"
    numbers = [event["sequence_number"] for event in events]
    assert numbers == sorted(set(numbers))
    final = events[-1]["response"]
    known = await sdk.responses.retrieve(final["id"])
    assert final == known.to_dict()
    assert final["output"][0]["content"][0]["text"] == "You said: hello"


async def test_the_stream_helper_of_the_sdk_reads_it_to_the_end(sdk):
    for model in ("assistant", "tools", "takeover"):
        async with sdk.responses.stream(model=model, input="hello") as stream:
            final = await stream.get_final_response()
        assert final.output_text in ("You said: hello", "It is 42 [c1].", "The answer is forty-two.")


async def test_frames_have_their_type_as_event_and_no_id(served):
    async with aiohttp.ClientSession(headers=served.headers()) as http:
        body = {"model": "assistant", "input": "hello", "stream": True}
        async with http.post(f"{served.url}/v1/responses", json=body) as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            assert response.headers["x-bulkhead-run-id"]
            frames = [frame.split("\n") for frame in (await response.text()).split("\n\n") if frame and not frame.startswith(":")]
    for name, data in frames:
        assert name == f"event: {orjson.loads(data[6:])['type']}"


async def test_the_platforms_tools_are_calls_that_no_client_has_to_make(sdk):
    answer = await sdk.responses.create(model="tools", input="hello")
    call, message = answer.output
    assert (call.type, call.name, call.server_label, call.status) == ("mcp_call", "calculator", "bulkhead", "completed")
    assert (orjson.loads(call.arguments), orjson.loads(call.output)) == ({"expression": "6*7"}, {"value": 42})
    cited = message.content[0].annotations[0]
    assert (cited.type, cited.file_id, cited.filename) == ("file_citation", "d", "README.md")
    assert [w["code"] for w in answer.model_extra["bulkhead"]["warnings"]] == ["memory_unavailable"]


async def test_a_takeover_in_mid_text_shows_no_text_twice(sdk):
    events = await all_of(await sdk.responses.create(model="takeover", input="x", stream=True))
    assert "".join(event["delta"] for event in events if event["type"].endswith("text.delta")) == "The answer is forty-two."
    assert [item["content"][0]["text"] for item in events[-1]["response"]["output"]] == ["The answer is forty-two."]


@pytest.mark.parametrize("model", ["assistant", "tools", "takeover", "fail", "fail_late"])
async def test_a_stream_that_is_cut_anywhere_goes_on_where_it_was(sdk, model):
    whole = await all_of(await sdk.responses.create(model=model, input="one two three", stream=True))
    response_id = whole[0]["response"]["id"]
    assert whole[-1]["type"] in TERMINAL
    assert await all_of(await sdk.responses.retrieve(response_id, stream=True)) == whole
    for position, event in enumerate(whole, 1):
        tail = await all_of(await sdk.responses.retrieve(response_id, stream=True, starting_after=event["sequence_number"]))
        assert whole[:position] + tail == whole


async def test_a_live_stream_that_is_cut_goes_on_live(sdk):
    stream = await sdk.responses.create(model="slow", input="x", stream=True, background=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if len(seen) == 10:
            break
    await stream.close()
    tail = await sdk.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
    seen += [event async for event in tail]
    assert seen[-1].type == "response.completed"
    assert "".join(event.delta for event in seen if event.type == "response.output_text.delta") == seen[-1].response.output_text
    assert seen[-1].response.output_text.split() == [f"w{number}" for number in range(40)]


async def test_replicas_that_go_away_leave_no_gap_and_repeat_nothing(identities, _state_server):
    async with fakes.gateway(identities, _state_server, replicas=2, cut_after=3) as gateway:
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.key, max_retries=0) as sdk:
            whole = await all_of(await sdk.responses.create(model="slow", input="x", stream=True))
    shown = "".join(event["delta"] for event in whole if event["type"] == "response.output_text.delta")
    assert shown == whole[-1]["response"]["output"][0]["content"][0]["text"] == "".join(f"w{number} " for number in range(40))


async def test_the_helper_resumes_by_id(sdk):
    answer = await sdk.responses.create(model="assistant", input="hello")
    async with sdk.responses.stream(response_id=answer.id, starting_after=0) as stream:
        kinds = [event.type async for event in stream]
    assert kinds[0] == "response.in_progress"


async def test_in_the_background_it_answers_at_once_and_is_polled(sdk, served):
    answer = await sdk.responses.create(model="slow", input="x", background=True)
    assert answer.status in ("queued", "in_progress")
    assert answer.background is True
    polled = []

    async def ended():
        polled.append(await sdk.responses.retrieve(answer.id))
        return polled[-1].status == "completed"

    await testing.eventually_async(ended, "it is completed")
    assert polled[-1].output_text.startswith("w0 w1 ")
    partial = [one.output[0] for one in polled if one.status == "in_progress" and one.output]
    assert partial, "it was polled while it spoke"
    assert all((item.status, polled[-1].output_text.startswith(item.content[0].text)) == ("in_progress", True) for item in partial)


async def test_a_cancel_ends_it_with_what_was_said_so_far(sdk):
    answer = await sdk.responses.create(model="hang", input="x", background=True)
    ended = await sdk.responses.cancel(answer.id)
    assert (ended.status, ended.output[0].status, ended.output_text) == ("cancelled", "incomplete", "Working")
    assert ended.completed_at is None
    assert (await sdk.responses.cancel(answer.id)).status == "cancelled"
    events = await all_of(await sdk.responses.retrieve(answer.id, stream=True))
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.incomplete", "cancelled")
    done = await sdk.responses.create(model="assistant", input="x")
    assert (await sdk.responses.cancel(done.id)).status == "completed"


async def test_what_fails_is_an_error_of_the_request_and_a_state_of_the_response(sdk):
    for reason, error, code in [
        ("CONTEXT_LENGTH_EXCEEDED", openai.BadRequestError, "invalid_prompt"),
        ("BUDGET_EXCEEDED", openai.RateLimitError, "rate_limit_exceeded"),
        ("OVERLOADED", openai.InternalServerError, "server_error"),
    ]:
        with pytest.raises(error) as caught:
            await sdk.responses.create(model="fail", input=reason)
        assert caught.value.response.headers["x-should-retry"] == "false"
        known = await sdk.responses.retrieve(f"resp_{caught.value.response.headers['x-bulkhead-run-id']}")
        assert (known.status, known.error.code, known.error.message) == ("failed", code, "It failed.")
        assert known.model_extra["bulkhead"]["reason"] == reason
    events = await all_of(await sdk.responses.create(model="fail_late", input="x", stream=True))
    assert (events[-1]["type"], events[-1]["response"]["output"][0]["status"]) == ("response.failed", "incomplete")


async def test_the_time_to_wait_bounds_the_answer_and_not_the_run(sdk, served):
    with pytest.raises(openai.InternalServerError) as caught:
        await sdk.responses.create(model="silent", input="x", extra_headers={"x-request-timeout-ms": "300"})
    assert caught.value.status_code == 504
    run = served.log.runs[("acme", caught.value.response.headers["x-bulkhead-run-id"])]
    assert not run.cancelled.is_set()
    stream = await sdk.responses.create(model="silent", input="x", stream=True, extra_headers={"x-request-timeout-ms": "300"})
    with pytest.raises(openai.APIError) as ended:
        await all_of(stream)
    assert ended.value.code == "deadline_exceeded"


@pytest.mark.parametrize("leaving", ["continue", "cancel"])
async def test_a_client_that_leaves_cancels_only_when_it_said_so(sdk, served, leaving):
    stream = await sdk.responses.create(model="hang", input="x", stream=True, extra_headers={"x-bulkhead-on-disconnect": leaving})
    assert (await anext(aiter(stream))).type == "response.created"
    run = served.log.newest()
    await stream.close()
    if leaving == "cancel":
        await asyncio.wait_for(run.cancelled.wait(), 10)
    else:
        await testing.eventually_async(lambda: served.replicas[0].open_streams == 0, "the gateway lets go of the run")
        assert not run.cancelled.is_set()


async def test_input_items_are_what_was_asked_in_pages(sdk):
    said = [{"role": "developer", "content": "Be brief."}, {"role": "assistant", "content": [{"type": "output_text", "text": "Yes?"}]}]
    said.append(
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "he"}, {"type": "input_text", "text": "llo"}]}
    )
    answer = await sdk.responses.create(model="assistant", instructions="Sing.", input=said)
    assert (answer.output_text, answer.instructions) == ("You said: hello", "Sing.")
    listed = [item async for item in sdk.responses.input_items.list(answer.id, order="asc")]
    assert [(item.role, item.content[0].text) for item in listed] == [
        ("system", "Sing."), ("system", "Be brief."), ("assistant", "Yes?"), ("user", "hello"),
    ]  # fmt: skip
    paged = [item.id async for item in sdk.responses.input_items.list(answer.id, limit=1)]
    assert paged == [item.id for item in reversed(listed)]
    page = await sdk.responses.input_items.list(answer.id, limit=3)
    assert (len(page.data), page.has_more, page.first_id) == (3, True, paged[0])


async def test_a_page_of_a_long_conversation_reads_no_more_of_it_than_it_has_to(sdk, served, monkeypatch):
    monkeypatch.setattr(reading, "RUNS_AT_ONCE", 2)
    made = await sdk.conversations.create()
    answers = [await sdk.responses.create(model="assistant", input=f"{number}", conversation=made.id) for number in range(5)]
    listed = [item.id async for item in sdk.conversations.items.list(made.id, order="asc", limit=1)]
    assert listed == [item.id async for item in sdk.conversations.items.list(made.id, limit=100)][::-1]
    assert listed[1::2] == [answer.output[0].id for answer in answers]
    for at, pages, logs in ((8, 1, 1), (7, 1, 2), (1, 3, 5)):
        served.log.seen.clear()
        tail = await sdk.conversations.items.list(made.id, order="asc", after=listed[at])
        assert [item.id for item in tail.data] == listed[at + 1 :]
        assert (len(served.calls("ListRuns")), len(served.calls("StreamEvents"))) == (pages, logs)
    served.log.seen.clear()
    with pytest.raises(openai.NotFoundError):
        await sdk.conversations.items.retrieve("anything", conversation_id=made.id)
    assert served.calls("ListRuns") == []


async def test_service_tiers_are_priorities(sdk, served):
    for tier, priority in [("flex", -5), ("auto", 0), ("default", 0), ("priority", 5), ("fast", 5)]:
        await sdk.responses.create(model="assistant", input="x", service_tier=tier, max_tool_calls=3)
        request = served.log.newest().request
        assert (request.priority, request.limits.max_tool_calls) == (priority, 3)


async def test_the_same_key_is_the_same_response(sdk):
    first, second = [await sdk.responses.create(model="assistant", input="x", extra_headers={"Idempotency-Key": "twice"}) for _ in range(2)]
    assert first.id == second.id
    assert first.conversation.id == second.conversation.id


async def test_the_synchronous_sdk_does_the_same(served):
    def work():
        with openai.OpenAI(base_url=f"{served.url}/v1", api_key=served.key, max_retries=0) as sdk:
            with sdk.responses.stream(model="assistant", input="hello") as stream:
                assert stream.get_final_response().output_text == "You said: hello"
            answer = sdk.responses.create(model="hang", input="x", background=True)
            assert sdk.responses.cancel(answer.id).status == "cancelled"
            events = list(sdk.responses.retrieve(answer.id, stream=True))
            tail = list(sdk.responses.retrieve(answer.id, stream=True, starting_after=events[1].sequence_number))
            assert events[2:] == tail
            assert [item.content[0].text for item in sdk.responses.input_items.list(answer.id)] == ["x"]
            sdk.responses.delete(answer.id)
            with pytest.raises(openai.NotFoundError):
                sdk.conversations.retrieve(answer.conversation.id)

    await asyncio.to_thread(work)
