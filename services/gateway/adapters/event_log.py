"""The event log over RunService.StreamEvents."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from bulkhead.orchestrator.v1.orchestrator_pb2 import Event, StreamEventsRequest
from bulkhead.orchestrator.v1.orchestrator_pb2_grpc import RunServiceStub

from services.common.errors import Overloaded
from services.gateway.ports import Subject


class OrchestratorEvents:
    """An EventSource."""

    def __init__(self, runs: RunServiceStub) -> None:
        self._runs = runs

    async def open(
        self, subject: Subject, after: int, *, types: Sequence[str] = (), replay_only: bool = False
    ) -> AsyncGenerator[Sequence[Event], None]:
        """As EventSource.open, for the principal of the current call. Raises Overloaded where the channel is closed below the stream."""
        request = StreamEventsRequest(after_seq=after, types=types, replay_only=replay_only)
        if subject.run_id:
            request.run_id = subject.run_id
        else:
            request.thread_id = subject.thread_id
        stream = self._runs.StreamEvents(request)
        try:
            async for item in stream:
                yield item.batch.events
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody has cancelled whoever reads: a channel whose addresses have changed ends its last calls in this way.
            raise Overloaded("the connection to the orchestrator was replaced", reason="UNREACHABLE", retry_after_s=1.0) from None
        finally:
            await stream.aclose()
