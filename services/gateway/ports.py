"""What the gateway's own logic needs from outside."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bulkhead.orchestrator.v1.orchestrator_pb2 import Event


@dataclass(frozen=True, slots=True)
class Subject:
    """What to follow: one run, or all runs of a thread."""

    thread_id: str = ""
    run_id: str = ""


class EventSource(Protocol):
    """The event log of the orchestrator."""

    def open(
        self, subject: Subject, after: int, *, types: Sequence[str] = (), replay_only: bool = False
    ) -> AsyncGenerator[Sequence[Event], None]:
        """Events after number `after`, then live, as they come together; an empty batch is a sign of life.

        Raises domain errors; closing it ends the call.
        """
        ...
