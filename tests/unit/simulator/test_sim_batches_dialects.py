"""Batches of Anthropic, Gemini and Azure through the official SDKs, unmodified, and what they are billed."""

import io

import anthropic
import openai
import orjson
import pytest
from google import genai
from google.genai import errors, types

from services.common import testing


@pytest.fixture
async def claude(sim):
    async with anthropic.AsyncAnthropic(base_url=sim.url, api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture
async def gemini(sim):
    retry = types.HttpRetryOptions(attempts=1)
    # Under /v1 the simulator's files and batches are OpenAI's.
    options = types.HttpOptions(base_url=sim.url, api_version="v1beta", retry_options=retry)
    made = genai.Client(api_key="any", http_options=options)
    yield made.aio
    await made.aio.aclose()


@pytest.fixture
async def azure(sim):
    async with openai.AsyncAzureOpenAI(azure_endpoint=sim.url, api_key="any", api_version="2024-10-21", max_retries=0) as made:
        yield made


def messages(*words, model="sim-1"):
    return [
        {
            "custom_id": f"c-{number}",
            "params": {"model": model, "max_tokens": 50, "messages": [{"role": "user", "content": f"Write {count} words."}]},
        }
        for number, count in enumerate(words)
    ]


async def ended(client, batch_id):
    async def over():
        found = await client.messages.batches.retrieve(batch_id)
        return found if found.processing_status == "ended" else None

    return await testing.eventually_async(over, "the message batch has ended")


async def results_of(client, batch_id):
    return {found.custom_id: found.result async for found in await client.messages.batches.results(batch_id)}


async def test_message_batches_are_answered_at_half_price(sim, claude):
    asked = [*messages(10, 20), *[{**one, "custom_id": "bad"} for one in messages(1, model="sim-1+context_length")]]
    batch = await claude.messages.batches.create(requests=asked)
    assert (batch.type, batch.processing_status, batch.results_url) == ("message_batch", "in_progress", None)
    assert batch.request_counts.processing == 3
    done = await ended(claude, batch.id)
    counts = done.request_counts
    assert (counts.succeeded, counts.errored, counts.canceled, counts.expired, counts.processing) == (2, 1, 0, 0, 0)
    found = await results_of(claude, batch.id)
    assert len(found["c-1"].message.content[0].text.split()) == 20
    assert found["c-1"].message.usage.output_tokens == 20
    assert found["c-1"].message.usage.service_tier == "batch"
    assert found["bad"].error.error.type == "invalid_request_error"
    first, second, third = await sim.log()
    assert {line["batch_id"] for line in (first, second, third)} == {batch.id}
    assert first["billed_nanousd"] == (first["prompt_tokens"] * 150 + 10 * 600) / 2
    assert (third["status"], third["billed_nanousd"]) == (400, 0)
    assert batch.id in [one.id async for one in claude.messages.batches.list(limit=1)]
    assert (await claude.messages.batches.delete(batch.id)).type == "message_batch_deleted"
    with pytest.raises(anthropic.NotFoundError):
        await claude.messages.batches.retrieve(batch.id)


async def test_message_batches_are_cancelled_and_expire(sim, claude):
    waits = await claude.messages.batches.create(requests=messages(1, 1), extra_headers={"x-sim-fault": "batch_delay=60000"})
    assert (await sim.call("GET", f"/v1/messages/batches/{waits.id}/results"))[0] == 404
    with pytest.raises(anthropic.BadRequestError):
        await claude.messages.batches.delete(waits.id)
    assert (await claude.messages.batches.cancel(waits.id)).processing_status in ("canceling", "ended")
    await ended(claude, waits.id)
    assert {kind.type for kind in (await results_of(claude, waits.id)).values()} == {"canceled"}
    expires = await claude.messages.batches.create(requests=messages(1, 1), extra_headers={"x-sim-fault": "batch_expires_after=1"})
    await ended(claude, expires.id)
    assert [result.type for result in (await results_of(claude, expires.id)).values()] == ["succeeded", "expired"]
    for wrong in ([], [{"custom_id": "no blanks", "params": {}}], [*messages(1), *messages(1)], [{"custom_id": "a"}]):
        with pytest.raises(anthropic.BadRequestError):
            await claude.messages.batches.create(requests=wrong)


async def gemini_ended(client, name):
    async def over():
        found = await client.batches.get(name=name)
        return found if found.state.name not in ("JOB_STATE_PENDING", "JOB_STATE_RUNNING") else None

    return await testing.eventually_async(over, "the batch has ended")


async def test_inline_requests_and_files_of_gemini_are_answered_at_half_price(sim, gemini):
    inline = [{"contents": [{"role": "user", "parts": [{"text": "Write 10 words."}]}], "metadata": {"key": "a"}}]
    made = await gemini.batches.create(model="sim-1", src=inline, config={"display_name": "inline"})
    done = await gemini_ended(gemini, made.name)
    (only,) = done.dest.inlined_responses
    assert len(only.response.text.split()) == 10
    assert only.metadata == {"key": "a"}
    (line,) = await sim.log()
    assert line["billed_nanousd"] == (line["prompt_tokens"] * 150 + 10 * 600) / 2
    assert line["batch_id"] == made.name

    lines = [
        {"key": str(count), "request": {"contents": [{"parts": [{"text": f"Write {count} words."}]}], **more}}
        for count, more in ((5, {}), (6, {"noSuchField": 1}))
    ]
    content = io.BytesIO(b"\n".join(map(orjson.dumps, lines)))
    file = await gemini.files.upload(file=content, config={"display_name": "lines", "mime_type": "application/jsonl"})
    made = await gemini.batches.create(model="sim-1", src=file.name, config={"display_name": "over a file"})
    done = await gemini_ended(gemini, made.name)
    assert (done.state.name, done.display_name) == ("JOB_STATE_SUCCEEDED", "over a file")
    told = [orjson.loads(line) for line in (await gemini.files.download(file=done.dest.file_name)).splitlines()]
    assert len(told[0]["response"]["candidates"][0]["content"]["parts"][0]["text"].split()) == 5
    assert (told[1]["key"], told[1]["error"]["code"]) == ("6", 3)
    assert made.name in [found.name async for found in await gemini.batches.list(config={"page_size": 1})]
    await gemini.batches.delete(name=made.name)
    await gemini.files.delete(name=file.name)
    with pytest.raises(errors.ClientError):
        await gemini.batches.get(name=made.name)


async def test_batches_of_gemini_are_cancelled_and_expire(sim, gemini):
    inline = [{"contents": [{"role": "user", "parts": [{"text": "Write 1 word."}]}]}]
    await sim.call("POST", "/sim/faults", {"fault": "batch_delay=60000", "match": {"endpoint": "batch", "run": "waits"}})
    await sim.call("POST", "/sim/faults", {"fault": "batch_expires_after", "match": {"endpoint": "batch", "run": "expires"}})
    waits = await gemini.batches.create(model="sim-1", src=inline, config={"display_name": "waits"})
    await gemini.batches.cancel(name=waits.name)
    assert (await gemini_ended(gemini, waits.name)).state.name == "JOB_STATE_CANCELLED"
    expires = await gemini.batches.create(model="sim-1", src=inline, config={"display_name": "expires"})
    done = await gemini_ended(gemini, expires.name)
    assert (done.state.name, done.dest) == ("JOB_STATE_EXPIRED", None)
    assert await sim.log() == []
    with pytest.raises(errors.ClientError):
        await gemini.batches.create(model="sim-1", src="files/none", config={"display_name": "x"})


async def test_azure_has_files_and_batches_at_addresses_of_its_own(sim, azure):
    body = {"model": "sim-1", "messages": [{"role": "user", "content": "Write 3 words."}]}
    line = {"custom_id": "a", "method": "POST", "url": "/chat/completions", "body": body}
    file = await azure.files.create(file=("lines.jsonl", orjson.dumps(line)), purpose="batch")
    batch = await azure.batches.create(input_file_id=file.id, endpoint="/chat/completions", completion_window="24h")

    async def over():
        found = await azure.batches.retrieve(batch.id)
        return found if found.status == "completed" else None

    done = await testing.eventually_async(over, "the batch has ended")
    told = orjson.loads((await azure.files.content(done.output_file_id)).content)
    assert told["response"]["body"]["choices"][0]["message"]["content"].count(" ") == 2
    status, _ = await sim.call("GET", "/openai/batches")
    assert status == 404  # without a version
