"""Batches as callers see them, through the openai SDK, executed by the gateway itself."""

import asyncio
from dataclasses import replace

import openai
import orjson
import pytest
from openai.types import Batch

from services.common import testing
from services.common.accounts import LimitSet

LOCAL = {"provider": False}


async def test_a_batch_is_answered_line_by_line_in_the_order_of_its_input(gateway, line, sim):
    async with gateway() as g:
        lines = [line(f"line-{n}", f"say exactly: answer number {n}") for n in range(30)]
        batch = await g.begun(lines, metadata={"purpose": "test"})
        assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/chat/completions")
        done = await g.ended(batch)
        assert done.status == "completed", done
        assert done.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
        assert done.metadata == {"purpose": "test"}
        assert done.error_file_id is None
        assert done.model == "main"
        assert done.expires_at - done.created_at == 24 * 3600
        assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
        answers, errors = await g.outputs(done)
        assert errors == []
        assert [answer["custom_id"] for answer in answers] == [f"line-{n}" for n in range(30)]
        for number, answer in enumerate(answers):
            assert answer["error"] is None
            assert answer["response"]["status_code"] == 200
            assert answer["response"]["body"]["choices"][0]["message"]["content"] == f"answer number {number}"
        billed = sum(entry["billed_nanousd"] for entry in await sim.log())
        assert sum(entry["cost_nanousd"] for entry in await g.lines()) == billed
        assert done.usage.total_tokens == sum(answer["response"]["body"]["usage"]["total_tokens"] for answer in answers)
        assert done.usage.model_extra["cost_microusd"] == -(-billed // 1000)
        Batch.model_validate(done.model_dump())
        # Nothing is left of the work beside its files.
        await testing.eventually_async(lambda: not list(g.folder.glob("files/*/running/*")), "the work is tidied up")


async def test_every_endpoint_is_asked_by_its_own_route(gateway):
    bodies = {
        "/v1/completions": {"model": "main", "prompt": "say exactly: hello", "max_tokens": 20},
        "/v1/embeddings": {"model": "vectors", "input": "a text"},
        "/v1/responses": {"model": "main", "input": "say exactly: hello", "max_output_tokens": 20},
    }
    async with gateway(LOCAL) as g:
        batches = {}
        for url, body in bodies.items():
            batches[url] = await g.begun([{"custom_id": "a", "method": "POST", "url": url, "body": body}], endpoint=url)
        found = {}
        for url, batch in batches.items():
            (answer,), _ = await g.outputs(await g.ended(batch))
            found[url] = answer["response"]["body"]
        assert found["/v1/completions"]["choices"][0]["text"] == "hello"
        assert len(found["/v1/embeddings"]["data"][0]["embedding"]) == 256
        assert found["/v1/responses"]["output"][0]["content"][0]["text"] == "hello"


DEEP = b'{"custom_id":"deep","method":"POST","url":"/v1/chat/completions","body":{"model":"main","x":' + b"[" * 300 + b"]" * 300 + b"}}\n"


async def test_lines_that_cannot_be_answered_stand_in_the_error_file_with_what_http_would_say(gateway, line):
    wrong = {
        "role": line("role", "x", messages=[{"role": "nobody", "content": "x"}]),
        "tokens": line("tokens", "x", max_tokens=-1),
        "model": line("model", "x", model="nothing-like-it"),
        "stream": line("stream", "x", stream=True),
        "empty": line("empty", "x", messages=[]),
        "deep": {},
    }
    async with gateway(LOCAL) as g:
        content = jsonl([line("good", "hello there"), *(wrong[name] for name in wrong if name != "deep")])
        done = await g.ended(await g.begun(content + DEEP))
        assert (done.status, done.model) == ("completed", None)
        assert done.request_counts.model_dump() == {"total": 7, "completed": 1, "failed": 6}
        answers, errors = await g.outputs(done)
        assert [answer["custom_id"] for answer in answers] == ["good"]
        assert [error["custom_id"] for error in errors] == list(wrong)
        for error in errors:
            assert error["response"]["status_code"] in (400, 404)
            assert error["response"]["body"]["error"]["type"] == "invalid_request_error"
        by_id = {error["custom_id"]: error["response"] for error in errors}
        assert by_id["model"]["status_code"] == 404
        assert by_id["model"]["body"]["error"]["code"] == "model_not_found"
        assert by_id["tokens"]["body"]["error"]["param"] == "max_tokens"
        assert by_id["stream"]["body"]["error"]["param"] == "stream"


BAD_FILES = [
    (b"", [("empty_file", None, "input_file_id")]),
    (b"\n  \n\r\n", [("empty_file", None, "input_file_id")]),
    (b"{not json}\n", [("invalid_json_line", 1, None)]),
    (b"[1]\n\n7\n", [("invalid_json_line", 1, None), ("invalid_json_line", 3, None)]),
    (b'\xff\xfe{"custom_id":"a"}\n', [("invalid_json_line", 1, None)]),
    (b'{"method":"POST"}\n', [("missing_required_parameter", 1, "custom_id")]),
    (b'{"custom_id":7,"method":"POST"}\n', [("missing_required_parameter", 1, "custom_id")]),
    (b'{"custom_id":"' + b"x" * 600 + b'"}\n', [("invalid_custom_id", 1, "custom_id")]),
    (b'{"custom_id":"a","method":"GET"}\n', [("invalid_method", 1, "method")]),
    (b'{"custom_id":"a","method":"POST","url":"/v1/embeddings"}\n', [("invalid_url", 1, "url")]),
    (b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions"}\n', [("missing_required_parameter", 1, "body")]),
    (b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":[]}', [("missing_required_parameter", 1, "body")]),
    (b'{"custom_id":"a","method":"POST","url":"/v1/chat/completions","body":{}}', [("missing_required_parameter", 1, "body.model")]),
]


async def test_an_input_that_is_wrong_fails_the_batch_before_any_line_is_asked(gateway, line, sim):
    async with gateway(LOCAL) as g:
        twice = [line("a", "x"), line("b", "x"), line("a", "y")]
        batches = [(await g.begun(content), expected) for content, expected in BAD_FILES]
        batches.append((await g.begun(twice), [("duplicate_custom_id", 3, "custom_id")]))
        batches.append((await g.begun(b"{\n" * 500), [("invalid_json_line", n, None) for n in range(1, 101)]))
        for batch, expected in batches:
            done = await g.ended(batch)
            assert (done.status, done.output_file_id, done.error_file_id) == ("failed", None, None)
            assert done.errors.object == "list"
            assert [(entry.code, entry.line, entry.param) for entry in done.errors.data] == expected
            assert all(entry.message for entry in done.errors.data)
            assert done.failed_at
            assert done.request_counts.total == 0
        assert await sim.log() == []
        assert await g.lines() == []


BAD_REQUESTS = [
    ({"endpoint": "/v1/images"}, 400, "endpoint"),
    ({"endpoint": None}, 400, "endpoint"),
    ({"input_file_id": None}, 400, "input_file_id"),
    ({"input_file_id": "file-unknown"}, 404, "id"),
    ({"input_file_id": "../../etc/passwd"}, 404, "id"),
    ({"completion_window": "30 hours"}, 400, "completion_window"),
    ({"completion_window": "8d"}, 400, "completion_window"),
    ({"completion_window": "0h"}, 400, "completion_window"),
    ({"completion_window": None}, 400, "completion_window"),
    ({"metadata": ["a"]}, 400, "metadata"),
    ({"metadata": {"a": 7}}, 400, "metadata"),
    ({"metadata": {str(n): "x" for n in range(17)}}, 400, "metadata"),
    ({"metadata": {"a": "x" * 600}}, 400, "metadata"),
    ({"output_expires_after": {"anchor": "now", "seconds": 5000}}, 400, "output_expires_after"),
    ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, 400, "output_expires_after.seconds"),
]


async def test_requests_for_batches_that_cannot_be_are_refused_by_field(gateway, line):
    async with gateway(LOCAL) as g:
        file = await g.client.files.create(file=("x.jsonl", b"{}\n"), purpose="batch")
        good = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        for change, status, param in BAD_REQUESTS:
            with pytest.raises(openai.APIStatusError) as raised:
                await g.client.post("/batches", cast_to=Batch, body={**good, **change})
            assert (raised.value.status_code, raised.value.body["param"]) == (status, param), change
        with pytest.raises(openai.NotFoundError):
            await g.client.batches.retrieve("batch_unknown")
        with pytest.raises(openai.NotFoundError):
            await g.client.batches.cancel("batch_unknown")
        assert (await g.client.batches.list()).data == []


async def test_a_cancelled_batch_keeps_what_was_answered(gateway, line, sim):
    await sim.order("first_token_delay=150")
    async with gateway({**LOCAL, "concurrency": 2}) as g:
        batch = await g.begun([line(str(n), f"say exactly: {n}") for n in range(200)])

        async def some_done():
            return (await g.client.batches.retrieve(batch.id)).request_counts.completed >= 2

        await testing.eventually_async(some_done, "two lines are answered")
        cancelling = await g.client.batches.cancel(batch.id)
        assert cancelling.status == "cancelling"
        assert cancelling.cancelling_at
        assert (await g.client.batches.cancel(batch.id)).status in ("cancelling", "cancelled")
        done = await g.ended(batch)
        assert done.status == "cancelled"
        assert done.cancelled_at
        answers, errors = await g.outputs(done)
        assert errors == []
        assert [answer["custom_id"] for answer in answers] == [str(n) for n in range(len(answers))]
        assert 2 <= len(answers) == done.request_counts.completed < 60
        # Lines in flight were finished and not thrown away: what was paid for is in the output.
        assert len(answers) == len(await sim.log()) == len(await g.lines())


async def test_an_ended_batch_cannot_be_cancelled(gateway, line):
    async with gateway(LOCAL) as g:
        done = await g.ended(await g.begun([line("a", "hello")]))
        with pytest.raises(openai.ConflictError):
            await g.client.batches.cancel(done.id)


async def test_what_is_left_when_the_window_closes_is_told_line_by_line(gateway, line, sim):
    await sim.order("first_token_delay=300")
    async with gateway({**LOCAL, "concurrency": 2}) as g:
        done = await g.ended(await g.begun([line(str(n), f"say exactly: {n}") for n in range(100)], window="2s"))
        assert done.status == "expired"
        assert done.expired_at >= done.expires_at
        answers, errors = await g.outputs(done)
        assert len(answers) >= 1
        assert [entry["custom_id"] for entry in answers + errors] == [str(n) for n in range(100)]
        assert all(entry["response"] is None and entry["error"]["code"] == "batch_expired" for entry in errors)
        assert (done.request_counts.completed, done.request_counts.failed) == (len(answers), len(errors))
        assert len(await sim.log()) == len(answers)


async def test_a_budget_that_ends_in_the_middle_fails_the_lines_behind_it(gateway, line, sim):
    async with gateway({**LOCAL, "concurrency": 1}) as g:
        await g.accounts.keys.update(g.key_id, "acme", lambda record: _limited(record, max_budget_microusd=100))
        done = await g.ended(await g.begun([line(str(n), f"say exactly: {n}") for n in range(60)]))
        answers, errors = await g.outputs(done)
        assert done.status == "completed"
        assert answers
        assert errors
        assert len(answers) + len(errors) == 60
        for error in errors:
            assert error["response"]["status_code"] == 429
            assert error["response"]["body"]["error"]["type"] == "insufficient_quota"
            assert error["response"]["body"]["error"]["code"] == "budget_exceeded"
        spent = sum(entry["cost_nanousd"] for entry in await g.lines())
        assert spent == sum(entry["billed_nanousd"] for entry in await sim.log()) <= 100_000


async def test_limits_that_pass_with_time_are_waited_for(gateway, line, sim):
    async with gateway({**LOCAL, "concurrency": 8}) as g:
        await g.accounts.keys.update(g.key_id, "acme", lambda record: _limited(record, max_parallel=1))
        await sim.order("rate_limit=ms:100", times=3)
        done = await g.ended(await g.begun([line(str(n), f"say exactly: {n}") for n in range(6)]))
        assert done.request_counts.model_dump() == {"total": 6, "completed": 6, "failed": 0}
        answered = [entry for entry in await sim.log() if entry["status"] == 200]
        assert len(answered) == 6


async def test_a_failing_provider_is_asked_a_few_times_more_before_a_line_fails(gateway, line, sim):
    async with gateway(LOCAL) as g:
        await sim.order("status=500", times=1, contains="heals")
        await sim.order("status=500", contains="stays")
        done = await g.ended(await g.begun([line("heals", "say exactly: heals"), line("stays", "say exactly: stays")]))
        (answer,), (error,) = await g.outputs(done)
        assert (answer["custom_id"], error["custom_id"]) == ("heals", "stays")
        assert error["response"]["status_code"] == 502


async def test_a_key_that_ends_stops_the_lines_that_have_not_begun(gateway, line, sim):
    await sim.order("first_token_delay=100")
    async with gateway({**LOCAL, "concurrency": 1}) as g:
        batch = await g.begun([line(str(n), f"say exactly: {n}") for n in range(40)])
        await sim.logged(2)
        await g.accounts.revoke("acme", g.key_id)
        other = await g.accounts.create_key(tenant="acme", user="bob", tier="enterprise", scopes=["*"])
        g.client.api_key = other.secret
        done = await g.ended(batch)
        answers, errors = await g.outputs(done)
        assert len(answers) < 40
        assert {error["response"]["status_code"] for error in errors} == {401}
        assert errors[0]["response"]["body"]["error"]["code"] == "invalid_api_key"
        assert len(await sim.log()) == len(answers)


async def test_the_ledger_and_the_limits_are_those_of_who_began_it(gateway, line):
    async with gateway(LOCAL) as g:
        await g.ended(await g.begun([line("a", "hello")]))
        (entry,) = await g.lines()
        assert (entry["user"], entry["key"], entry["tenant"]) == ("ana", g.key_id, "acme")


async def test_batches_are_listed_in_pages_and_only_to_their_tenant(gateway, line):
    async with gateway(LOCAL) as g:
        ids = [(await g.begun([line("a", f"hello {n}")])).id for n in range(5)]
        listed = [batch.id async for batch in g.client.batches.list(limit=2)]
        assert listed == ids[::-1]
        first = await g.client.batches.list(limit=3)
        assert first.has_more
        assert [batch.id for batch in first.data] == ids[:1:-1]
        with pytest.raises(openai.BadRequestError):
            await g.client.batches.list(after="batch_unknown")
        with pytest.raises(openai.BadRequestError):
            await g.client.batches.list(limit=101)
        other = await g.accounts.create_key(tenant="globex", user="eve", tier="enterprise", scopes=["*"])
        file_id = (await g.client.batches.retrieve(ids[0])).input_file_id
        async with openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=other.secret, max_retries=0) as stranger:
            assert (await stranger.batches.list()).data == []
            for call in (stranger.batches.retrieve, stranger.batches.cancel):
                with pytest.raises(openai.NotFoundError):
                    await call(ids[0])
            with pytest.raises(openai.NotFoundError):
                await stranger.batches.create(input_file_id=file_id, endpoint="/v1/chat/completions", completion_window="24h")


async def test_an_idempotency_key_begins_one_batch(gateway, line, sim):
    async with gateway(LOCAL) as g:
        file = await g.client.files.create(file=("x.jsonl", jsonl([line("a", "hello")])), purpose="batch")
        body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
        headers = {"Idempotency-Key": "once"}
        made = await asyncio.gather(*(g.client.batches.create(**body, extra_headers=headers) for _ in range(5)))
        assert len({batch.id for batch in made}) == 1
        for other in ({"completion_window": "25h"}, {"output_expires_after": {"anchor": "created_at", "seconds": 3600}}):
            with pytest.raises(openai.UnprocessableEntityError):
                await g.client.batches.create(**{**body, **other}, extra_headers=headers)
        await g.ended(made[0])
        assert (await g.client.batches.create(**body, extra_headers=headers)).status == "completed"
        assert len(await sim.log()) == 1


async def test_a_deleted_input_does_not_stop_a_batch_that_has_begun(gateway, line, sim):
    await sim.order("first_token_delay=100")
    async with gateway({**LOCAL, "concurrency": 1}) as g:
        batch = await g.begun([line(str(n), f"say exactly: {n}") for n in range(5)])
        await sim.logged(1)
        await g.client.files.delete(batch.input_file_id)
        assert (await g.ended(batch)).request_counts.completed == 5


async def test_erasing_a_user_leaves_nothing_of_theirs_and_all_of_the_others(gateway, line, sim):
    async with gateway({**LOCAL, "concurrency": 1}) as g:
        other = await g.accounts.create_key(tenant="acme", user="bob", tier="enterprise", scopes=["*"])
        finished = await g.ended(await g.begun([line("a", "hello")]))
        async with openai.AsyncOpenAI(base_url=f"{g.url}/v1", api_key=other.secret, max_retries=0) as bob:
            kept = await bob.files.create(file=("x.jsonl", b"{}\n"), purpose="batch")
            await sim.order("first_token_delay=60000")
            running = await g.begun([line(str(n), f"hello {n}") for n in range(5)])
            await testing.eventually_async(lambda: sim.in_flight(), "a line is in flight")
            kind, count = await g.parts.batches.erase("acme", "ana")
            # Two inputs and an output.
            assert (kind, count) == ("batch_files", 3)
            assert [file.id for file in (await bob.files.list()).data] == [kept.id]
            assert (await bob.batches.list()).data == []
            for batch in (finished, running):
                with pytest.raises(openai.NotFoundError):
                    await bob.batches.retrieve(batch.id)
            assert [path.name for path in g.folder.glob("files/*/*") if path.is_file()] == [kept.id]
            assert not list(g.folder.glob("files/*/running/*/*"))
            assert await g.parts.batches.erase("acme", "ana") == ("batch_files", 0)
            assert not [key async for key in g.store.scan_iter("*batch_*")]


def _limited(record, **limits):
    return replace(record, limits=LimitSet(**limits))


def jsonl(lines):
    """Lines as a file."""
    return b"".join(orjson.dumps(entry) + b"\n" for entry in lines)
