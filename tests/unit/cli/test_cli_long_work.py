"""Commands that take a while, at gateways that fall silent, are killed, or answer in parts."""

import asyncio
import json
import signal

import pytest
from aiohttp import web

from services.common import testing
from tests.unit.cli.command_line import command
from tests.unit.cli.test_cli_client import serving

pytestmark = pytest.mark.asyncio
SOON = {"client.RETRY_EVERY_S": 0.0, "cancelling.PAUSE_S": 0.0, "erasures.LOOK_EVERY_S": 0.0}


@pytest.fixture
def at(monkeypatch):
    """Makes commands find the server at a URL."""

    def go(url):
        monkeypatch.setenv("BULKHEAD_URL", url)
        monkeypatch.setenv("BULKHEAD_API_KEY", "bh_x")

    return go


def part(matched, done):
    return web.json_response({"matched_count": matched, "requested_count": matched - 1, "done": done}, status=200 if done else 202)


async def test_cancelling_many_goes_on_under_one_key_until_all_were_looked_at_and_tells_how_far_it_is(at):
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append((request.headers["idempotency-key"], await request.json()))
        if len(asked) == 2:
            request.transport.abort()
        return part(10 * len(asked), len(asked) == 4)

    async with serving("/v1/runs/cancel", answer) as url:
        at(url)
        done = await command("runs", "cancel", "--all", "--agent", "a", "--yes", constants=SOON)
        assert len(asked) == 4
        assert len({key for key, _ in asked}) == 1
        assert asked[0][0].startswith("cli-")
        assert asked[0][1] == asked[3][1] == {"filter": {"agent": "a"}, "reason": "bulkhead runs cancel"}
        assert done.out == "39 runs asked to end; 1 had been asked before, or ended meanwhile\n"
        assert done.err.splitlines() == [f"it goes on under --key {asked[0][0]}", "10 runs so far", "30 runs so far"]


async def test_cancelling_that_is_interrupted_names_the_key_to_go_on_with(at):
    asked = []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["idempotency-key"])
        if len(asked) > 1:
            return web.json_response({"detail": "away", "retryable": True}, status=503)
        return part(5, done=False)

    async with serving("/v1/runs/cancel", answer) as url:
        at(url)
        done = await command("runs", "cancel", "--all", "--yes", "--json", status=5, constants=SOON)
        assert json.loads(done.out)["matched_count"] == 5
        assert f"the same command with --key {asked[0]} goes on" in done.err.splitlines()[-1]

    async def lost(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["idempotency-key"])
        return web.json_response({"detail": "at work", "reason": "IDEMPOTENCY_IN_FLIGHT", "retryable": True}, status=409)

    asked.clear()
    async with serving("/v1/runs/cancel", lost) as url:
        at(url)
        done = await command("runs", "cancel", "--all", "--yes", status=6, constants=SOON)
        assert done.err.endswith(f"the same command with --key {asked[0]} goes on\n")

        async def refusing(request: web.Request) -> web.StreamResponse:
            return web.json_response({"detail": "no", "status": 403}, status=403)

    async with serving("/v1/runs/cancel", refusing) as url:
        at(url)
        assert "--key" not in (await command("runs", "cancel", "--all", "--yes", status=4)).err


async def test_ctrl_c_in_cancelling_many_names_the_key(at):
    asked, over = [], asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers["idempotency-key"])
        await over.wait()
        return part(5, done=True)

    async with serving("/v1/runs/cancel", answer) as url:
        env = {"PATH": "", "BULKHEAD_URL": url, "BULKHEAD_API_KEY": "bh_x"}
        process = await asyncio.create_subprocess_exec(
            *testing.python("-m", "services.cli", "runs", "cancel", "--all", "--yes"), stderr=asyncio.subprocess.PIPE, env=env
        )
        await testing.eventually_async(lambda: asked, "it asks")
        process.send_signal(signal.SIGINT)
        _, told = await process.communicate()
        over.set()
    assert (process.returncode, told.decode()) == (130, f"the same command with --key {asked[0]} goes on\n")


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("runs", "cancel", "--all", "--yes"), "/v1/runs/cancel"),
        (("runs", "cancel-tool", "r", "c", "skip"), "/v1/runs/r/tool-calls/c/cancel"),
        (("runs", "plan", "r"), "/v1/runs/r"),
        (("feedback", "list"), "/v1/feedback"),
        (("schedules", "update", "s", "--name", "x"), "/v1/schedules/s"),
        (("erasures", "create", "zoe", "--confirm", "zoe"), "/v1/erasures"),
        (("erasures", "watch", "e"), "/v1/erasures/e"),
        (("blobs", "show", "b"), "/v1/blobs/b"),
        (("blobs", "upload", __file__), "/v1/blobs"),
        (("blobs", "download", "b"), "/v1/blobs/b"),
        (("blobs", "link", "b"), "/v1/blobs/b/links"),
        (("blobs", "delete", "b", "--yes"), "/v1/blobs/b"),
    ],
)
@pytest.mark.parametrize("manner", ["silent", "killed", "stranger"])
async def test_a_gateway_that_is_silent_killed_or_none_is_one_line_and_no_traceback(at, arguments, path, manner):
    over, asked = asyncio.Event(), []

    async def answer(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        if manner == "silent":
            await over.wait()
        elif manner == "killed":
            request.transport.abort()
        return web.Response(text="<html>")

    async with serving(path, answer) as url:
        at(url)
        constants = {**SOON, "client.REQUEST_TIMEOUT_S": 0.2}
        done = await command(*arguments, status={"silent": 3, "killed": 3, "stranger": 1}[manner], constants=constants)
        over.set()
    assert (done.out, done.err.startswith("bulkhead: "), done.err.count("\n")) == ("", True, 1), done
    # aiohttp asks once more by itself where that is harmless.
    assert len(asked) in {"silent": (1,), "killed": (6, 12), "stranger": (1,)}[manner]


async def test_a_watch_of_an_erasure_outlasts_a_gateway_that_is_away_for_a_while_and_says_how_to_go_on_after_a_long_one(at):
    pending = {"erasure_id": "e", "state": "pending", "done_at": None, "parts": []}
    answers = [pending, None, None, pending, None, {**pending, "state": "done"}]

    async def answer(request: web.Request) -> web.StreamResponse:
        told = answers.pop(0) if answers else None
        return web.json_response(told) if told else web.json_response({"detail": "away", "retryable": True}, status=503)

    async with serving("/v1/erasures/e", answer) as url:
        at(url)
        done = await command("erasures", "watch", "e", "--json", constants=SOON)
        assert [json.loads(line)["state"] for line in done.out.splitlines()] == ["pending", "done"]
        answers[:] = [pending]
        given_up = await command("erasures", "watch", "e", status=5, constants=SOON)
        assert "the erasure goes on: `bulkhead erasures watch e`" in given_up.err
