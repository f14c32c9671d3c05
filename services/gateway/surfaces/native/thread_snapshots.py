"""A thread without its log: what a client goes on with whose place in the log is no longer kept."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from pydantic import Field

from services.common.errors import Gone
from services.gateway.refusals import ResumeGap
from services.gateway.surfaces.native import approvals_shapes, shapes
from services.gateway.surfaces.native.approvals_shapes import ApprovalOut
from services.gateway.surfaces.native.outputs import ClientToolCallOut, Out, Problem, RunOut, ThreadOut

Item = TypeVar("Item")


class ImageOut(Out):
    """An image of an input."""

    blob_id: str
    detail: str


class SaidOut(Out):
    """One message of what a run was asked."""

    role: str
    content: str
    images: list[ImageOut] | None = Field(None, description="Of a message that has some.")
    tool_calls: list[ClientToolCallOut] | None = Field(None, description="Of role assistant: calls of the client's tools.")
    tool_call_id: str | None = Field(None, description="Of role tool: the call that gave the content.")


class SnapshotRunOut(RunOut):
    """A run, with what it was asked."""

    input: list[SaidOut]


class SnapshotOut(Out):
    """A thread as it stands. Going on with `after` = `resume_after` on `/v1/threads/{thread_id}/events` misses nothing; events of a run
    that stands here as ended are in already, up to its `terminal_seq`. Runs: the one at work, then the others, newest first, at most 100.
    `runs_after` is `after` of `/v1/threads/{thread_id}/runs` for the older ones."""

    thread: ThreadOut
    resume_after: int
    runs: list[SnapshotRunOut]
    approvals: list[ApprovalOut]
    runs_after: str | None


class ResumeGapProblem(Problem):
    """What is asked for of a log is no longer kept: where it begins now, and the thread as it stands, to go on from."""

    oldest_seq: int
    snapshot: SnapshotOut


class SnapshotCalls(Protocol):
    """The one call that is needed of the threads."""

    GetThreadSnapshot: Callable[..., Awaitable[pb.GetThreadSnapshotResponse]]


async def snapshot(threads: SnapshotCalls, thread_id: str) -> dict[str, Any]:
    """As SnapshotOut. Raises NotFound."""
    found = (await threads.GetThreadSnapshot(pb.GetThreadSnapshotRequest(thread_id=thread_id))).snapshot
    return {
        "thread": shapes.thread(found.thread),
        "resume_after": found.resume_after_seq,
        "runs": [{**shapes.listed_run(one.run), "input": list(map(_said, one.input))} for one in found.runs],
        "approvals": [approvals_shapes.approval(one) for one in found.approvals],
        "runs_after": found.runs_page_token or None,
    }  # fmt: skip


def _said(message: pb.InputMessage) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "content": message.text}
    if message.images:
        found["images"] = [{"blob_id": image.blob_id, "detail": image.detail or "auto"} for image in message.images]
    if message.tool_calls:
        found["tool_calls"] = list(map(shapes.client_tool_call, message.tool_calls))
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    return found


async def resume_gap(threads: SnapshotCalls, thread_id: str) -> ResumeGap:
    """The error for a cursor of a thread that lies before what is kept of it."""
    found = await snapshot(threads, thread_id)
    return ResumeGap(found["thread"]["oldest_seq"], found)


async def or_resume_gap(threads: SnapshotCalls, thread_id: str, source: AsyncGenerator[Item, None]) -> AsyncGenerator[Item, None]:
    """What the log of a thread gives. Raises ResumeGap, with the snapshot, where it is told of one."""
    async with aclosing(source) as items:
        try:
            async for item in items:
                yield item
        except Gone as error:
            if error.reason != "RESUME_GAP":
                raise
            raise await resume_gap(threads, thread_id) from error
