"""What the commands make of the gateway's answers."""

import asyncio
import json
import signal
from contextlib import aclosing, asynccontextmanager

import pytest
from aiohttp import web

from services.cli import client, following
from services.cli.client import Api
from services.cli.connection import Connection
from services.cli.failure import CommandFailure, Interrupted
from services.common import testing
from tests.unit.cli.command_line import command

pytestmark = pytest.mark.asyncio

BROKEN = b'id: 1\nevent: run_started\ndata: {"type":"run_started","seq":1}\n\nevent: stream_error\ndata: {"detail":"no orchestrator"}\n\n'


@asynccontextmanager
async def answering(path, answer):
    """An API at a server that answers requests for a path so."""
    async with serving(path, answer) as url, Api(Connection(url, "bh_x")) as api:
        yield api


@asynccontextmanager
async def serving(path, answer):
    """The URL of the server."""
    app = web.Application()
    app.router.add_route("*", path, answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_stream_that_ends_with_an_error_is_no_whole_one():
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=BROKEN, content_type="text/event-stream")

    seen = []
    async with answering("/replay/t", answer) as api:
        with pytest.raises(Interrupted, match="no orchestrator"):
            async for event in api.events("GET", "/replay/t"):
                seen.append(event["type"])
    assert seen == ["run_started"]


async def test_a_stream_that_begins_anew_behind_a_proxy_that_drops_the_header_tells_nothing_twice(monkeypatch):
    monkeypatch.setattr(following, "RECONNECT_EVERY_S", 0.0)
    asked = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.headers.get("last-event-id"))
        body = b"".join(b'id: %d\nevent: x\ndata: {"type":"x","seq":%d}\n\n' % (seq, seq) for seq in range(1, len(asked) + 2))
        return web.Response(body=body, content_type="text/event-stream")

    seen = []
    async with answering("/v1/runs/r/events", answer) as api, aclosing(following.follow(api, "/v1/runs/r/events")) as events:
        async for event in events:
            seen.append(event["seq"])
            if event["seq"] == 5:
                break
    assert (seen, asked) == ([1, 2, 3, 4, 5], [None, "2", "3", "4"])


@pytest.mark.parametrize("body", [b"<html>", b"\xff"])
async def test_an_answer_that_is_no_json_is_said_to_be_none(body):
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body)

    async with answering("/v1/runs", answer) as api:
        with pytest.raises(CommandFailure, match="is no JSON"):
            await api.get("/v1/runs")


async def test_a_request_that_is_at_work_already_is_asked_for_again(monkeypatch):
    monkeypatch.setattr(client, "RETRY_EVERY_S", 0.0)
    answers = [
        web.json_response({"reason": "IDEMPOTENCY_IN_FLIGHT", "detail": "d"}, status=409),
        web.json_response({"done": True}),
    ]

    async def answer(request: web.Request) -> web.Response:
        return answers.pop(0)

    async with answering("/v1/runs", answer) as api:
        assert await api.get("/v1/runs") == {"done": True}


async def test_a_connection_that_falls_silent_is_taken_up_again(monkeypatch):
    monkeypatch.setattr(client, "STREAM_SILENCE_S", 0.2)
    monkeypatch.setattr(following, "RECONNECT_EVERY_S", 0.0)
    asked, over = [], asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("last-event-id"))
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(b'id: %d\ndata: {"type":"x","seq":%d}\n\n' % (len(asked), len(asked)))
        await over.wait()
        return stream

    async with answering("/v1/runs/r/events", answer) as api, aclosing(following.follow(api, "/v1/runs/r/events")) as events:
        assert [(await anext(events))["seq"] for _ in range(3)] == [1, 2, 3]
        over.set()
    assert asked == [None, "1", "2"]


async def test_a_proxy_that_ends_quiet_streams_does_not_end_a_watch(monkeypatch):
    monkeypatch.setattr(following, "RECONNECT_EVERY_S", 0.0)
    monkeypatch.setattr(following, "RECONNECTS", 2)
    monkeypatch.setattr(following, "HELD_S", 0.05)
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(b": heartbeat\n\n")
        await asyncio.sleep(0.1)
        if len(asked) > 5:
            await stream.write(b'id: 1\ndata: {"type":"x","seq":1}\n\n')
        elif len(asked) % 2:
            request.transport.abort()
        return stream

    async with answering("/v1/threads/t/events", answer) as api, aclosing(following.follow(api, "/v1/threads/t/events")) as events:
        assert ((await anext(events))["seq"], len(asked)) == (1, 6)


async def test_a_list_that_never_ends_is_given_up():
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"data": [], "next_after": "there"})

    async with answering("/v1/runs", answer) as api:
        with pytest.raises(CommandFailure, match="again and again"):
            await api.listed("/v1/runs", 5)


@pytest.mark.parametrize("told", [{"data": None}, [], {"data": [1]}, {"data": [{}]}])
async def test_whatever_answers_at_the_url_writes_nothing_into_the_line_that_a_shell_completes(told):
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(told)

    async with serving("/v1/runs", answer) as url:
        asked = {"_BULKHEAD_COMPLETE": "complete_bash", "COMP_WORDS": "bulkhead runs show r", "COMP_CWORD": "3"}
        env = {"PATH": "/usr/bin", "BULKHEAD_URL": url, "BULKHEAD_API_KEY": "bh_x", **asked}
        completing = testing.python("-m", "services.cli")
        process = await asyncio.create_subprocess_exec(*completing, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=env)
        out, err = await process.communicate()
        assert (out.strip(), err) == (b"", b"")


async def test_a_text_that_no_encoding_has_breaks_no_command():
    half = b'{"data":[{"run_id":"r","thread_id":"t","output_text":"\\ud800"}],"next_after":null}'

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=half, content_type="application/json")

    async with serving("/v1/runs", answer) as url:
        env = {"PATH": "", "BULKHEAD_URL": url, "BULKHEAD_API_KEY": "bh_x", "PYTHONIOENCODING": "utf-8"}
        listing = testing.python("-m", "services.cli", "runs", "list", "--json")
        process = await asyncio.create_subprocess_exec(*listing, stdout=asyncio.subprocess.PIPE, env=env)
        out, _ = await process.communicate()
    assert (process.returncode, json.loads(out)["output_text"]) == (0, "\ud800")


async def test_what_a_search_had_to_do_without_is_told_on_stderr(monkeypatch):
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"data": [], "warnings": [{"code": "X", "user_message": "By words\x1b[2J alone."}]})

    async with serving("/v1/memories/search", answer) as url:
        monkeypatch.setenv("BULKHEAD_URL", url)
        monkeypatch.setenv("BULKHEAD_API_KEY", "bh_x")
        done = await command("memories", "search", "boat", "--json")
        assert (done.out, done.err) == ("", "! By words[2J alone.\n")


async def test_a_chat_whose_first_answers_are_lost_has_one_run_and_tells_all_of_it():
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append((request.method, request.headers.get("idempotency-key"), await request.text()))
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        if len(asked) < 3:
            request.transport.abort()
            return stream
        await stream.prepare(request)
        if len(asked) < 5:
            # Only the head of the answer comes.
            request.transport.abort()
            return stream
        await stream.write(b'id: 1\ndata: {"type":"run_finished","seq":1,"data":{"output_text":"all of it"}}\n\n')
        return stream

    async with serving("/v1/{any:.*}", answer) as url:
        env = {"PATH": "", "BULKHEAD_URL": url, "BULKHEAD_API_KEY": "bh_x"}
        process = await asyncio.create_subprocess_exec(
            *testing.python("-m", "services.cli", "chat", "hi"), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=env
        )
        assert (await process.communicate(), process.returncode) == ((b"all of it\n", b""), 0)
    assert [method for method, *_ in asked] == ["POST", "POST", "POST", "GET", "GET"]
    assert (len(set(asked[:3])), asked[0][1][:4]) == (1, "cli-")


async def test_a_second_ctrl_c_leaves_a_chat_at_once_whatever_became_of_the_first():
    asked, over = [], asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        stream = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await stream.prepare(request)
        await stream.write(b'id: 1\ndata: {"type":"run_started","seq":1}\n\n')
        await over.wait()
        return stream

    async with serving("/v1/{any:.*}", answer) as url:
        env = {"PATH": "", "BULKHEAD_URL": url, "BULKHEAD_API_KEY": "bh_x"}
        chat = testing.python("-m", "services.cli", "chat", "hi", "--json")
        process = await asyncio.create_subprocess_exec(*chat, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env=env)
        await process.stdout.readline()
        process.send_signal(signal.SIGINT)
        await testing.eventually_async(lambda: _is(asked[-1].endswith("/cancel")), "it asks for the end of the run")
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
        over.set()
    assert (process.returncode, told) == (130, b"")


async def _is(value):
    return value


async def test_an_answer_of_another_kind_of_server_is_one_line(monkeypatch):
    async def answer(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "sim-1"}]})

    async with serving("/v1/runs", answer) as url:
        monkeypatch.setenv("BULKHEAD_URL", url)
        monkeypatch.setenv("BULKHEAD_API_KEY", "bh_x")
        done = await command("runs", "list", status=1)
        assert (done.out, done.err.count("\n"), "BULKHEAD_TRACEBACK=1" in done.err) == ("", 1, True)
        monkeypatch.setenv("BULKHEAD_TRACEBACK", "1")
        with pytest.raises(AssertionError, match="Traceback of KeyError"):
            await command("runs", "list")
