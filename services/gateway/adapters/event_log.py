"""The event log over RunService.StreamEvents."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from bulkhead.orchestrator.v1.orchestrator_pb2 import Event, StreamEventsRequest
from bulkhead.orchestrator.v1.orchestrator_pb2_grpc import RunServiceStub

from services.common.identity import Minter
from services.common.rpc import context as call_context
from services.gateway.ports import Subject


class OrchestratorEvents:
    """An EventSource. Each opening carries a fresh token: a stream may live longer than the one it began with."""

    def __init__(self, runs: RunServiceStub, minter: Minter) -> None:
        self._runs = runs
        self._minter = minter

    async def open(
        self, subject: Subject, after: int, *, types: Sequence[str] = (), replay_only: bool = False
    ) -> AsyncGenerator[Sequence[Event], None]:
        """As EventSource.open, for the principal of the current call."""
        request = StreamEventsRequest(after_seq=after, types=types, replay_only=replay_only)
        if subject.run_id:
            request.run_id = subject.run_id
        else:
            request.thread_id = subject.thread_id
        context = call_context.current()
        if context is not None and context.principal is not None:
            call_context.enter(replace(context, token=self._minter.mint(context.principal)))
        stream = self._runs.StreamEvents(request)
        try:
            async for item in stream:
                yield item.batch.events
        finally:
            await stream.aclose()
