"""Files and batches through the official SDK, and what a batch is billed."""

import io

import openai
import orjson
import pytest

from services.common import testing


@pytest.fixture
async def client(sim):
    async with openai.AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="any", max_retries=0) as made:
        yield made


def line(custom_id, text="Write 10 words.", model="sim-1", url="/v1/chat/completions", **more):
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": body, **more}


async def start(client, lines, endpoint="/v1/chat/completions", **more):
    content = b"\n".join(item if isinstance(item, bytes) else orjson.dumps(item) for item in lines)
    file = await client.files.create(file=("lines.jsonl", io.BytesIO(content)), purpose="batch")
    assert (await client.files.content(file.id)).content == content
    return await client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more)


async def ended(client, batch_id):
    async def over():
        found = await client.batches.retrieve(batch_id)
        return found if found.status in ("completed", "failed", "expired", "cancelled") else None

    return await testing.eventually_async(over, "the batch has ended")


async def results(client, file_id):
    content = (await client.files.content(file_id)).content
    return {item["custom_id"]: item for item in map(orjson.loads, content.splitlines())}


async def test_each_line_is_answered_once_at_half_price(sim, client):
    batch = await start(client, [line("a"), line("b", "Write 20 words.", "sim-2"), line("c", model="sim-1+500")], metadata={"who": "me"})
    assert batch.status in ("validating", "in_progress")
    done = await ended(client, batch.id)
    assert done.status == "completed"
    assert (done.request_counts.total, done.request_counts.completed, done.request_counts.failed) == (3, 2, 1)
    assert done.metadata == {"who": "me"}
    told = await results(client, done.output_file_id)
    assert set(told) == {"a", "b"}
    assert told["b"]["response"]["status_code"] == 200
    assert told["b"]["response"]["body"]["usage"]["completion_tokens"] == 20
    failed = await results(client, done.error_file_id)
    assert failed["c"]["response"]["status_code"] == 500
    lines = await sim.log()
    assert [one["endpoint"] for one in lines] == ["batch"] * 3
    assert {one["batch_id"] for one in lines} == {batch.id}
    first, second, third = lines
    assert first["billed_nanousd"] == (first["prompt_tokens"] * 150 + 10 * 600) / 2
    assert second["billed_nanousd"] == (second["prompt_tokens"] * 500 + 20 * 1500) / 2
    assert (third["status"], third["billed_nanousd"]) == (500, 0)


async def test_embeddings_in_a_batch(sim, client):
    body = {"model": "sim-embed", "input": ["one", "two"]}
    batch = await start(client, [line("a", url="/v1/embeddings", body=body)], "/v1/embeddings")
    done = await ended(client, batch.id)
    told = await results(client, done.output_file_id)
    assert len(told["a"]["response"]["body"]["data"]) == 2
    assert (await sim.last_line())["billed_nanousd"] == told["a"]["response"]["body"]["usage"]["prompt_tokens"] * 10


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([b"{"], "invalid_json_line"),
        ([line("a"), line("a")], "duplicate_custom_id"),
        ([line("a", url="/v1/embeddings")], "mismatched_url"),
        ([line("a", method="GET")], "invalid_method"),
        ([line("")], "missing_required_parameter"),
        ([b" "], "empty_file"),
    ],
)
async def test_a_file_that_is_wrong_fails_the_batch(sim, client, lines, code):
    done = await ended(client, (await start(client, lines)).id)
    assert done.status == "failed"
    assert done.errors.data[0].code == code
    assert await sim.log() == []


async def test_a_batch_waits_is_cancelled_and_expires(sim, client):
    waits = await start(client, [line("a")], metadata={"sim_fault": "batch_delay=60000"})
    assert (await client.batches.retrieve(waits.id)).status == "validating"
    assert (await client.batches.cancel(waits.id)).status == "cancelling"
    done = await ended(client, waits.id)
    assert (done.status, done.output_file_id, done.request_counts.completed) == ("cancelled", None, 0)
    expires = await start(client, [line("a"), line("b")], extra_headers={"x-sim-fault": "batch_expires_after=1"})
    done = await ended(client, expires.id)
    assert (done.status, done.request_counts.completed) == ("expired", 1)
    assert set(await results(client, done.output_file_id)) == {"a"}
    with pytest.raises(openai.ConflictError):
        await client.batches.cancel(done.id)
    assert [found.id async for found in client.batches.list(limit=1)][:2] == [expires.id, waits.id]


async def test_files_are_listed_and_deleted(sim, client):
    file = await client.files.create(file=("x.jsonl", b"{}"), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (2, "x.jsonl", "batch")
    assert file.id in [found.id async for found in client.files.list()]
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)


async def test_what_is_wrong_is_refused(sim, client):
    with pytest.raises(openai.NotFoundError):
        await client.batches.create(input_file_id="file-none", endpoint="/v1/chat/completions", completion_window="24h")
    for body in ({}, {"endpoint": "/v1/x"}, {"endpoint": "/v1/embeddings", "completion_window": "1h"}, {"endpoint": ["a"]}):
        status, answer = await sim.call("POST", "/v1/batches", body)
        assert status == 400
        assert answer["error"]["param"]
    async with sim.http.post(f"{sim.url}/v1/files", data=b"no form") as answer:
        assert answer.status == 400
    assert (await sim.call("GET", "/v1/batches?limit=x"))[0] == 400
    with pytest.raises(openai.InternalServerError):
        await client.batches.create(
            input_file_id="x", endpoint="/v1/embeddings", completion_window="24h", extra_headers={"x-sim-fault": "503"}
        )
