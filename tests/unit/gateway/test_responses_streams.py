"""Where a stream of a response goes on: behind the last event that was sent, whatever befell the gateway or the log since."""

import asyncio
from types import SimpleNamespace

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from opentelemetry import trace
from starlette.requests import Request

from services.common.errors import InvalidInput
from services.gateway.edge.exchange import SCOPE_KEY, Exchange
from services.gateway.following import TERMINAL, Follower
from services.gateway.streaming import OpenStreams, StreamRules
from services.gateway.surfaces.responses.responses import Responses

FIRST_SEQ = 41
TEXT = "x" * 40_000


def log_of(*entries, first=FIRST_SEQ):
    return [
        pb.Event(seq=seq, run_id="run_1", thread_id="t", type=kind, data_json=orjson.dumps(data))
        for seq, (kind, data) in enumerate(entries, first)
    ]


BEGUN = [("run_queued", {}), ("run_started", {})]
END = ("run_cancelled", {"output_text": "", "usage": {}})


class Orchestrator:
    """The services behind the gateway, as far as a response is read: these events of its run, and nothing more for now."""

    def __init__(self, log, gone_on=()):
        """`gone_on` is what a log that has lost its end tells when it is read, as after a promotion of the store."""
        self.log, self.gone_on = list(log), gone_on

    async def open(self, subject, after, *, types=(), replay_only=False):
        if after > self.log[-1].seq:
            if not self.gone_on:
                raise InvalidInput("after_seq lies beyond the last event", reason="CURSOR_FROM_THE_FUTURE")
            self.log += self.gone_on
        yield [one for one in self.log if one.seq > after]
        while not replay_only:
            await asyncio.sleep(3600)

    async def GetRun(self, request):
        ended = self.log[-1].seq if self.log[-1].type in TERMINAL else 0
        return pb.GetRunResponse(run=pb.Run(run_id="run_1", thread_id="t", agent="assistant", first_seq=FIRST_SEQ, terminal_seq=ended))

    async def GetThread(self, request):
        return pb.GetThreadResponse(thread=pb.Thread(thread_id="t", last_seq=self.log[-1].seq))


class Client:
    """Somebody who reads `takes` pieces of the answer, and then no more; None for all."""

    def __init__(self, orchestrator, takes=None):
        self.takes, self.sent, self.stopped = takes, b"", asyncio.Event()
        self.streams = OpenStreams(StreamRules(heartbeat_s=60, max_age_s=60, slow_reader_s=60, proof_wait_s=60))
        backends = SimpleNamespace(threads=orchestrator, runs=orchestrator, approvals=None, blobs=None)
        settings = SimpleNamespace(wait_limit_s=60)
        self.responses = Responses(
            SimpleNamespace(backends=backends, follower=Follower(orchestrator), streams=self.streams, settings=settings)
        )

    async def get(self, **query):
        about = Exchange("request-1", "trace-1", trace.INVALID_SPAN, {})
        scope = {"type": "http", "method": "GET", "path": "/v1/responses/resp_run_1", "query_string": b"", "headers": [], SCOPE_KEY: about}
        answer = await self.responses.get(Request(scope), "resp_run_1", stream=True, **query)
        await answer(scope, asyncio.Event().wait, self._send)
        return [orjson.loads(block.split("\ndata: ")[1]) for block in self.sent.decode().split("\n\n") if block]

    async def _send(self, message):
        # The server holds back what the connection does not take, all but the gateway's last word.
        if message.get("body") and self.takes == 0 and b"event: error" not in message["body"]:
            self.stopped.set()
            await asyncio.Event().wait()
        if self.takes:
            self.takes -= bool(message.get("body"))
        self.sent += message.get("body", b"")


@pytest.mark.parametrize("takes", [0, 1, 2])
async def test_a_drain_names_the_last_event_that_was_sent_to_a_client_that_does_not_read(takes):
    client = Client(Orchestrator(log_of(*BEGUN, *[("message_delta", {"message_id": "m", "text": TEXT})] * 6)), takes)
    reading = asyncio.create_task(client.get())
    await client.stopped.wait()
    await client.streams.drain(0)
    *seen, error = await reading
    assert (error["type"], error["code"]) == ("error", "draining")
    assert error["sequence_number"] == max([0, *(one["sequence_number"] for one in seen)])


async def test_it_goes_on_behind_each_event_also_where_the_last_one_of_the_log_is_very_many():
    calls = [("tool_call_started", {"call_id": f"c{number}", "tool": "t", "arguments": {}}) for number in range(20)]
    orchestrator = Orchestrator(log_of(*BEGUN, *calls, END))
    whole = await Client(orchestrator).get()
    assert len([one for one in whole if one["type"] == "response.output_item.done"]) == 20
    for position, seen in enumerate(whole, 1):
        assert await Client(orchestrator).get(starting_after=seen["sequence_number"]) == whole[position:]
    with pytest.raises(InvalidInput):
        await Client(orchestrator).get(starting_after=whole[-1]["sequence_number"] + 1)


async def test_it_goes_on_behind_an_event_that_a_promotion_of_the_store_has_lost():
    text = [("message_delta", {"message_id": "m", "text": word}) for word in ("one ", "two ", "lost")]
    shown = await Client(Orchestrator(log_of(*BEGUN, *text, END))).get()
    lost = next(one["sequence_number"] for one in shown if one.get("delta") == "lost")
    kept = log_of(*BEGUN, *text[:2])
    gap = ("log_gap", {"from_seq": kept[-1].seq + 1})
    tail = await Client(Orchestrator(kept, log_of(gap, END, first=1000))).get(starting_after=lost)
    assert tail[-1]["type"] == "response.incomplete"
    assert tail[-1]["response"]["output"][0]["content"][0]["text"] == "one two "
    with pytest.raises(InvalidInput):
        await Client(Orchestrator(kept)).get(starting_after=lost)
