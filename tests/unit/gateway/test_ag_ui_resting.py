"""An AG-UI stream whose run asks people something ends when the run rests, whatever befalls the orchestrator meanwhile."""

import asyncio

import orjson
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import Cancelled, DeadlineExceeded, Overloaded
from services.gateway.following import Follower
from services.gateway.surfaces.ag_ui.projection import Projection
from services.gateway.surfaces.ag_ui.run_stream import RunStream
from tests.contract.ag_ui_client import Client, checked, parsed

ASKED = {"interrupt_id": "r/1/0", "kind": "tool_call", "call_id": "c", "tool": "wipe", "arguments": {}}
LOG = [("run_queued", {}), ("run_started", {}), ("interrupt_raised", ASKED)]


class Orchestrator:
    """One that goes away in this way when it is asked how the run is; the next one says that it waits."""

    def __init__(self, failure):
        self.failures = [failure, failure]

    async def open(self, subject, after, *, types=(), replay_only=False):
        events = [pb.Event(seq=seq, run_id="r", type=kind, data_json=orjson.dumps(data)) for seq, (kind, data) in enumerate(LOG, 1)]
        yield [event for event in events if event.seq > after]
        while not replay_only:
            await asyncio.sleep(3600)

    async def GetRun(self, request):
        if self.failures:
            raise self.failures.pop()
        return pb.GetRunResponse(run=pb.Run(run_id="r", status=pb.RUN_STATUS_WAITING))


@pytest.mark.parametrize("failure", [Overloaded("away"), Cancelled("going away"), DeadlineExceeded("silent")], ids=lambda one: one.reason)
async def test_an_orchestrator_that_goes_away_while_the_run_asks_is_not_seen(failure):
    orchestrator = Orchestrator(failure)
    run, projection = pb.Run(run_id="r", thread_id="t", first_seq=1), Projection("r", "t", "r", [])
    stream = RunStream(Follower(orchestrator), orchestrator, run, projection, fresh=True, parent="", warnings=())
    client = Client().take(checked(parsed(b"".join([frame async for frame in stream.frames()]))))
    assert (client.outcome, orchestrator.failures) == ("interrupt", [])
