"""A stream of a response that the gateway has to end says behind which event to go on: behind the last one that was sent."""

import asyncio
from types import SimpleNamespace

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from opentelemetry import trace
from starlette.requests import Request

from services.gateway.edge.exchange import SCOPE_KEY, Exchange
from services.gateway.following import Follower
from services.gateway.streaming import OpenStreams, StreamRules
from services.gateway.surfaces.responses.responses import Responses

RUN = pb.Run(run_id="run_1", thread_id="t", agent="assistant", first_seq=41)
TEXT = "x" * 40_000


def event(seq, kind, /, **data):
    return pb.Event(seq=seq, run_id=RUN.run_id, thread_id=RUN.thread_id, type=kind, data_json=orjson.dumps(data))


LOG = [event(41, "run_queued"), event(42, "run_started")]
LOG += [event(seq, "message_delta", message_id="m", text=TEXT) for seq in range(43, 49)]


class Source:
    """A log at work: these events, and nothing more for now."""

    async def open(self, subject, after, *, types=(), replay_only=False):
        yield [one for one in LOG if one.seq > after]
        while not replay_only:
            await asyncio.sleep(3600)


class Calls:
    """The services behind the gateway, as far as a response is read."""

    async def GetRun(self, request):
        return pb.GetRunResponse(run=RUN)

    async def GetThread(self, request):
        return pb.GetThreadResponse(thread=pb.Thread(thread_id=RUN.thread_id, last_seq=LOG[-1].seq))


class Client:
    """Somebody who reads `takes` pieces of the answer, and then no more."""

    def __init__(self, takes):
        self.takes, self.sent, self.stopped = takes, b"", asyncio.Event()
        self.streams = OpenStreams(StreamRules(heartbeat_s=60, max_age_s=60, slow_reader_s=60, proof_wait_s=60))
        backends = SimpleNamespace(threads=Calls(), runs=Calls(), approvals=None)
        wiring = SimpleNamespace(
            backends=backends, follower=Follower(Source()), streams=self.streams, settings=SimpleNamespace(wait_limit_s=60)
        )
        self.responses = Responses(wiring)

    async def get(self, **query):
        about = Exchange("request-1", "trace-1", trace.INVALID_SPAN, {})
        scope = {"type": "http", "method": "GET", "path": "/v1/responses/resp_run_1", "query_string": b"", "headers": [], SCOPE_KEY: about}
        answer = await self.responses.get(Request(scope), "resp_run_1", stream=True, **query)
        await answer(scope, asyncio.Event().wait, self._send)
        return [orjson.loads(block.split("\ndata: ")[1]) for block in self.sent.decode().split("\n\n") if block]

    async def _send(self, message):
        # The server holds back what the connection does not take, all but the gateway's last word.
        if message.get("body") and not self.takes and b"event: error" not in message["body"]:
            self.stopped.set()
            await asyncio.Event().wait()
        self.takes -= bool(message.get("body"))
        self.sent += message.get("body", b"")


@pytest.mark.parametrize("takes", [0, 1, 2])
async def test_a_drain_names_the_last_event_that_was_sent_to_a_client_that_does_not_read(takes):
    client = Client(takes)
    reading = asyncio.create_task(client.get())
    await client.stopped.wait()
    await client.streams.drain(0)
    *seen, error = await reading
    assert (error["type"], error["code"]) == ("error", "draining")
    assert error["sequence_number"] == max([0, *(one["sequence_number"] for one in seen)])
