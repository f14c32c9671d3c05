"""Bodies and answers of what can be done with a thread as a whole."""

from typing import Annotated

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from pydantic import Field, model_validator

from services.gateway.surfaces.native.models import INT32_MAX, INT64_MAX, Body, Id, Labels, TtlMs
from services.gateway.surfaces.native.outputs import Out, RunOut, ThreadOut


class Checkpoint(Body):
    """A point of a thread: the event `seq`, the end of a run or of one of its steps, or the beginning. Empty: the last one."""

    seq: Annotated[int, Field(ge=1, le=INT64_MAX)] | None = None
    run_id: Id | None = None
    step: Annotated[int, Field(ge=1, le=INT32_MAX, description="Of run_id; absent: the end of the run.")] | None = None
    beginning: bool = Field(False, description="Before the first event.")

    @model_validator(mode="after")
    def _one_name(self) -> "Checkpoint":
        if (self.seq is not None) + (self.run_id is not None) + self.beginning > 1:
            raise ValueError("name it by seq, by run_id or as the beginning")
        if self.step is not None and self.run_id is None:
            raise ValueError("a step needs its run_id")
        return self


class ThreadFork(Body):
    """A thread that begins as another one was."""

    at: Checkpoint = Field(default_factory=Checkpoint, description="Absent: the whole of it.")
    thread_id: Id | None = Field(None, description="Of the new thread. Absent: made by the service.")
    metadata: Labels = Field(default_factory=dict)
    ttl_ms: TtlMs | None = Field(None, description="Absent: as the tier says.")
    continue_run: bool = Field(False, description="Also starts a run that goes on from a checkpoint within a run. Needs runs:write.")


class ThreadRollback(Body):
    """Where a thread is to go back to."""

    to: Checkpoint


class ForkOut(Out):
    """The new thread, and the run that goes on in it where that was asked for."""

    thread: ThreadOut
    run: RunOut | None


class RollbackOut(Out):
    """The thread, and the number of the event that tells of the rollback."""

    thread: ThreadOut
    seq: int


class DeletionOut(Out):
    """A thread that nobody sees any more. Something is left of it, which follows by itself."""

    thread_id: str
    completed: bool


def checkpoint(body: Checkpoint) -> pb.Checkpoint:
    """A checkpoint as it travels."""
    return pb.Checkpoint(seq=body.seq or 0, run_id=body.run_id or "", step=body.step or 0, beginning=body.beginning)
