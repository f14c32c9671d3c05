"""The retention of a thread passes a watcher that is slow: whatever it reads from, it is told where the log begins and how to go on."""

import asyncio
from types import SimpleNamespace

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from opentelemetry import trace
from starlette.requests import Request

from services.common.errors import Gone
from services.gateway.edge.exchange import SCOPE_KEY, Exchange
from services.gateway.edge.problems import refusal
from services.gateway.following import Follower
from services.gateway.refusals import ResumeGap
from services.gateway.streaming import OpenStreams, StreamRules
from services.gateway.surfaces.native.events import Events
from services.gateway.surfaces.native.thread_snapshots import snapshot

OLDEST, LAST = 40, 50
SEEN = pb.Event(seq=1, run_id="r", type="message_delta", data_json=b'{"text":"hi"}')


class Threads:
    """A thread that was whole when the watcher came."""

    def __init__(self):
        self.thread = pb.Thread(thread_id="t", last_seq=LAST, oldest_seq=1)

    async def GetThread(self, request):
        return pb.GetThreadResponse(thread=self.thread)

    async def GetThreadSnapshot(self, request):
        run = pb.SnapshotRun(run=pb.Run(run_id="r2", thread_id="t"), input=[pb.InputMessage(role="user", text="hello")])
        return pb.GetThreadSnapshotResponse(snapshot=pb.ThreadSnapshot(thread=self.thread, resume_after_seq=LAST, runs=[run]))


class Source:
    """An event source whose log goes away between its first event and its second."""

    def __init__(self, threads, reason):
        self.threads, self.reason = threads, reason

    async def open(self, subject, after, *, types=(), replay_only=False):
        assert (subject.thread_id, after) == ("t", 0)
        yield [SEEN]
        self.threads.thread.oldest_seq = OLDEST
        raise Gone("no longer kept", reason=self.reason)


class Watcher:
    """One client at the routes of the log, and what it is sent."""

    def __init__(self, reason="RESUME_GAP"):
        self.threads = Threads()
        self.backends = SimpleNamespace(threads=self.threads, runs=None)
        self.follower = Follower(Source(self.threads, reason))
        self.streams = OpenStreams(StreamRules(heartbeat_s=60, max_age_s=60, slow_reader_s=60, proof_wait_s=60))
        self.sent = b""

    async def get(self, route, accept="text/event-stream"):
        about = Exchange("request-1", "trace-1", trace.INVALID_SPAN, {"accept": accept})
        scope = {"type": "http", "method": "GET", "path": "/the/path", "query_string": b"", "headers": [], SCOPE_KEY: about}
        self.request = Request(scope)
        answer = await getattr(Events(self), route)(self.request, "t")
        await answer(scope, asyncio.Event().wait, self._send)
        return self.frames()

    async def _send(self, message):
        self.sent += message.get("body", b"")

    def frames(self):
        """(event, data) of what was sent."""
        found = []
        for block in self.sent.decode().split("\n\n"):
            fields = dict(line.split(": ", 1) for line in block.split("\n") if line and not line.startswith(":"))
            if "data" in fields:
                found.append((fields["event"], orjson.loads(fields["data"])))
        return found


async def test_a_live_stream_ends_with_the_snapshot():
    watcher = Watcher()
    (seen, _), (kind, told) = await watcher.get("of_thread")
    assert (seen, kind) == ("message_delta", "stream_error")
    assert told == {
        "reason": "RESUME_GAP", "detail": "events this old are no longer kept; go on from the snapshot", "retryable": False,
        "oldest_seq": OLDEST, "snapshot": await snapshot(watcher.threads, "t"),
    }  # fmt: skip
    assert (told["snapshot"]["resume_after"], told["snapshot"]["runs"][0]["input"][0]["content"]) == (LAST, "hello")


async def test_a_replay_ends_with_the_snapshot_in_a_whole_problem():
    watcher = Watcher()
    (seen, _), (kind, told) = await watcher.get("replay")
    assert (seen, kind) == ("message_delta", "stream_error")
    assert (told["type"], told["status"], told["reason"]) == ("urn:bulkhead:problem:resume-gap", 410, "RESUME_GAP")
    assert (told["instance"], told["request_id"], told["retryable"]) == ("/the/path", "request-1", False)
    assert (told["oldest_seq"], told["snapshot"]) == (OLDEST, await snapshot(watcher.threads, "t"))


async def test_a_replay_as_json_of_which_nothing_was_sent_is_refused_with_the_snapshot():
    watcher = Watcher()
    with pytest.raises(ResumeGap) as refused:
        await watcher.get("replay", accept="application/json")
    assert watcher.sent == b""
    answer = refusal(watcher.request, refused.value)
    told = orjson.loads(answer.body)
    assert (answer.status_code, told["oldest_seq"]) == (410, OLDEST)
    assert told["snapshot"] == await snapshot(watcher.threads, "t")


@pytest.mark.parametrize("route", ["of_thread", "replay"])
async def test_what_is_gone_for_another_reason_has_no_snapshot(route):
    _, (kind, told) = await Watcher("GONE").get(route)
    assert (kind, told["reason"]) == ("stream_error", "GONE")
    assert not {"oldest_seq", "snapshot"} & set(told)
