"""`bulkhead runs watch`, `threads watch` and `chat` over connections that are cut, and on a terminal."""

import asyncio
import signal
from contextlib import suppress

import pytest
import pytest_asyncio

from services.common import testing
from tests.unit.cli.command_line import command as any_command
from tests.unit.cli.command_line import on_a_terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")
EVENT = b"\nid: "
AT_ONCE = {"following.RECONNECT_EVERY_S": 0.01, "client.RETRY_EVERY_S": 0.01}


async def command(*arguments, constants=None, **more):
    """A command that tries again soon."""
    return await any_command(*arguments, constants={**AT_ONCE, **(constants or {})}, **more)


class Cutter:
    """A proxy before the gateway. Each connection that carries events is reset behind `cut_after` of them; every `lost`th answer to
    another request is lost."""

    def __init__(self, port: int) -> None:
        self.cut_after: int | None = None
        self.lost = 0
        self.streams: list[bytes] = []
        self.url = ""
        self._port = port
        self._server: asyncio.Server | None = None
        self._own = testing.free_port()

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._own)
        self.url = f"http://127.0.0.1:{self._own}"

    async def down(self) -> None:
        """New connections are refused from now on."""
        assert self._server is not None
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._port)
        with suppress(ConnectionError):
            await asyncio.gather(self._asks(reader, back), self._answers(there, writer))
        for side in (writer, back):
            side.transport.abort()

    async def _asks(self, reader: asyncio.StreamReader, back: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if b"text/event-stream" in data:
                self.streams.append(data)
            back.write(data)
        raise ConnectionError

    async def _answers(self, there: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = b""
        while data := await there.read(65536):
            seen += data
            if self.lost and b"text/event-stream" not in seen:
                self.lost -= 1
                raise ConnectionError
            if self.cut_after is not None and seen.count(EVENT) > self.cut_after:
                # In the middle of the event that follows.
                kept = EVENT.join(seen.split(EVENT)[: self.cut_after + 1]) + EVENT
                writer.write(kept[len(seen) - len(data) :])
                await writer.drain()
                raise ConnectionError
            writer.write(data)
        raise ConnectionError


@pytest_asyncio.fixture(loop_scope="module")
async def cutter(front, monkeypatch):
    made = Cutter(front.settings.http_port)
    await made.up()
    monkeypatch.setenv("BULKHEAD_URL", made.url)
    monkeypatch.setenv("BULKHEAD_API_KEY", front.key)
    yield made
    await made.down()


async def chat(said):
    """What a chat writes to a pipe. It hears Ctrl-C, so it is a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *testing.python("-m", "services.cli", "chat", "--agent", "assistant", said), stdout=asyncio.subprocess.PIPE
    )
    told, _ = await process.communicate()
    return told


async def start(ana, thread, agent, wait=True):
    headers = {"prefer": "wait=30"} if wait else {}
    async with ana.post(f"/v1/threads/{thread}/runs", json={"input": "hi", "agent": agent}, headers=headers) as answer:
        return (await answer.json())["run_id"]


async def test_a_watch_that_is_cut_behind_any_event_tells_what_an_uncut_one_tells(ana, cutter):
    # Each event that came begins the patience anew.
    patience = {"following.RECONNECTS": 3}
    run_id = await start(ana, "t-cut", "tools")
    whole = await command("runs", "watch", run_id, "--json")
    assert [event["type"] for event in whole.json()][-1] == "run_finished"
    assert len(whole.json()) > 8
    for cut_after in range(1, len(whole.json())):
        cutter.cut_after, cutter.streams = cut_after, []
        assert (await command("runs", "watch", run_id, "--json", constants=patience)).out == whole.out, cut_after
        assert len(cutter.streams) > 1
        assert f"last-event-id: {whole.json()[cut_after - 1]['seq']}\r".encode() in cutter.streams[1].lower()


async def test_a_chat_that_is_cut_tells_all_of_it_once(cutter):
    cutter.cut_after = 5
    assert await chat("one two three") == b"You said: one two three\n"


async def test_a_paced_replay_that_is_cut_goes_on_and_ends_with_the_log(ana, cutter):
    await start(ana, "t-paced", "tools")
    whole = await command("replay", "t-paced", "--json")
    cutter.cut_after = 3
    assert (await command("replay", "t-paced", "--speed", "1000", "--json")).out == whole.out
    assert b"speed=1000" in cutter.streams[-1]
    assert len(cutter.streams) > 1


async def test_a_watch_goes_on_when_the_gateway_is_back(ana, front, cutter):
    run_id = await start(ana, "t-back", "hang", wait=False)
    cutter.cut_after = 2

    async def watch():
        return await command("runs", "watch", run_id, "--json", status=1)

    watching = asyncio.create_task(watch())
    await testing.eventually_async(lambda: _is(len(cutter.streams) >= 1), "it watches")
    await cutter.down()
    async with ana.post(f"/v1/runs/{run_id}/cancel"):
        pass
    cutter.cut_after = None
    await cutter.up()
    assert [event["type"] for event in (await watching).json()] == ["run_queued", "run_started", "message_delta", "run_cancelled"]


async def _is(value):
    return value


async def test_a_watch_that_is_cut_again_and_again_tells_where_to_go_on(ana, cutter):
    run_id = await start(ana, "t-lost", "hang", wait=False)
    cutter.cut_after = 0
    lost = await command("runs", "watch", run_id, "--after", "1", "--json", status=5, constants={"following.RECONNECTS": 2})
    assert (lost.out, f"`bulkhead runs watch {run_id} --after 1` goes on" in lost.err, lost.err.count("\n")) == ("", True, 1)
    async with ana.post(f"/v1/runs/{run_id}/cancel"):
        pass


async def test_an_answer_that_is_lost_is_asked_for_again_and_nothing_is_done_twice(front, cutter):
    before, asked = len(front.log.records.webhooks), len(front.log.records.asked)
    cutter.lost = 2
    (made,) = (await command("webhooks", "create", "https://example.com/hook", "--json")).json()
    assert made["secret"]
    assert (len(front.log.records.webhooks), len(front.log.records.asked)) == (before + 1, asked + 3)
    cutter.lost = 99
    assert "does not answer" in (await command("webhooks", "list", status=3)).err


async def test_a_run_that_has_ended_is_watched_from_anywhere(ana, cutter):
    run_id = await start(ana, "t-over", "assistant")
    events = (await command("runs", "watch", run_id, "--json")).json()
    later = await command("runs", "watch", run_id, "--json", "--after", str(events[2]["seq"]))
    assert later.json() == events[3:]
    assert (await command("runs", "watch", run_id, "--json", "--after", str(events[-1]["seq"]))).out == ""
    failed = await start(ana, "t-failed", "fail")
    assert "the run failed: It failed." in (await command("runs", "watch", failed, status=1)).err


async def test_a_thread_is_watched_from_now_on_until_it_is_deleted(ana, front, cutter):
    await start(ana, "t-thread", "assistant")
    watching = asyncio.create_task(command("threads", "watch", "t-thread", "--json"))
    await testing.eventually_async(lambda: _is(front.replicas[0].open_streams), "it watches")
    await start(ana, "t-thread", "assistant")
    front.log.append("acme", "t-thread", "", "thread_deleted", {})
    told = (await watching).json()
    assert [event["type"] for event in told][:2] == ["run_queued", "run_started"]
    assert told[-1]["type"] == "thread_deleted"
    whole = (await command("threads", "watch", "t-thread", "--json", "--after", "0")).json()
    assert len(whole) == 2 * (len(told) - 1) + 1


@pytest.mark.system
async def test_a_live_view_shows_a_run_at_work_and_ctrl_c_leaves_it_there(ana, cutter):
    run_id = await start(ana, "t-live", "hang", wait=False)
    async with on_a_terminal("runs", "watch", run_id) as (written, process, _):
        await testing.eventually_async(lambda: _is(b"Working" in written and run_id.encode() in written), "the view")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert b"Traceback" not in written
    (run,) = (await command("runs", "show", run_id, "--json")).json()
    assert (run["status"], run["cancel_requested"]) == ("running", False)
    async with ana.post(f"/v1/runs/{run_id}/cancel"):
        pass


@pytest.mark.system
async def test_a_live_view_ends_with_the_whole_run_and_obeys_nothing_that_was_said(ana, cutter, front):
    run_id = await start(ana, "t-shown", "tools")
    async with on_a_terminal("runs", "watch", run_id) as (written, process, _):
        assert await process.wait() == 0
        await testing.eventually_async(lambda: _is(b"It is 42 [c1]." in written), "the answer")
    for told in ("calculator", "I cannot remember.", "README.md", "finished", "12 tokens"):
        assert told in written.decode(), told
    said = {"input": "\x1b]0;owned\x07\x1b[2J", "agent": "assistant"}
    async with ana.post("/v1/threads/t-hostile/runs", json=said, headers={"prefer": "wait=30"}) as answer:
        hostile = (await answer.json())["run_id"]
    async with on_a_terminal("runs", "watch", hostile) as (written, process, _):
        assert await process.wait() == 0
        await testing.eventually_async(lambda: _is(b"owned" in written), "the answer")
    assert b"\x1b]0;" not in written
    assert b"\x07" not in written
    assert b"\x1b]0;owned\x07" in await chat(said["input"])


@pytest.mark.system
async def test_all_runs_are_watched_as_they_change_also_while_the_gateway_is_away(ana, cutter):
    run_id = await start(ana, "t-all", "hang", wait=False)
    async with on_a_terminal("runs", "watch", "--thread", "t-all") as (written, process, _):
        await testing.eventually_async(lambda: _is(run_id.encode() in written and b"running" in written), "the run")
        async with ana.post(f"/v1/runs/{run_id}/cancel"):
            pass
        await testing.eventually_async(lambda: _is(b"cancelled" in written), "its end")
        cutter.lost = 99
        await testing.eventually_async(lambda: _is(b"does not answer" in written), "that the gateway is away")
        cutter.lost = 0
        later = await start(ana, "t-all", "assistant")
        await testing.eventually_async(lambda: _is(later.encode() in written), "the next run")
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    assert b"Traceback" not in written
