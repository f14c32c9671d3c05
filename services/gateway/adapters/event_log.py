"""The event log over RunService.StreamEvents."""

from collections.abc import AsyncGenerator, Sequence

from bulkhead.orchestrator.v1.orchestrator_pb2 import Event, StreamEventsRequest
from bulkhead.orchestrator.v1.orchestrator_pb2_grpc import RunServiceStub

from services.gateway.ports import Subject


class OrchestratorEvents:
    """An EventSource."""

    def __init__(self, runs: RunServiceStub) -> None:
        self._runs = runs

    async def open(
        self, subject: Subject, after: int, *, types: Sequence[str] = (), replay_only: bool = False
    ) -> AsyncGenerator[Sequence[Event], None]:
        """As EventSource.open, for the principal of the current call."""
        request = StreamEventsRequest(after_seq=after, types=types, replay_only=replay_only)
        if subject.run_id:
            request.run_id = subject.run_id
        else:
            request.thread_id = subject.thread_id
        stream = self._runs.StreamEvents(request)
        try:
            async for item in stream:
                yield item.batch.events
        finally:
            await stream.aclose()
