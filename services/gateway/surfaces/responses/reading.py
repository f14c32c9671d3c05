"""Reading a response: as it is now, as it goes on, and what was asked and answered."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2_grpc

from services.gateway.following import Follower
from services.gateway.ports import Subject
from services.gateway.surfaces.responses import ids
from services.gateway.surfaces.responses.projection import Projection, frame

# A long log comes in large batches, and a client on a slow line must be seen to take what it is sent.
CHUNK_BYTES = 64 * 1024
RUNS_AT_ONCE = 100


async def brought_up(follower: Follower, projection: Projection) -> Projection:
    """The response as the log has it now."""
    await caught_up(follower, projection)
    return projection


async def caught_up(follower: Follower, projection: Projection, *types: str) -> int:
    """Gives the projection all that the log has now, or its events of these types; answers the number of the last, to go on behind it."""
    run = projection.run
    last_seq = max(0, run.first_seq - 1)
    async for event in follower.follow(Subject(run_id=run.run_id), last_seq, types=types, replay_only=True):
        projection.take(event)
        last_seq = event.seq
    return last_seq


async def settled(follower: Follower, projection: Projection, *, again: bool = False) -> Projection:
    """The response when it has ended, or when nothing goes on before somebody decides. `again` where something was decided before: what
    the log asks in one batch it may say to be answered in a later one, and it is read as a whole first."""
    run = projection.run
    after = await caught_up(follower, projection) if again else max(0, run.first_seq - 1)
    if projection.ended or projection.waits:
        return projection
    async with aclosing(follower.batches(Subject(run_id=run.run_id), after)) as batches:
        async for batch in batches:
            for event in batch:
                projection.take(event)
            if projection.waits:
                break
    return projection


class Stream:
    """The events of a response with numbers above `after`, as frames. `sent` is the last number that the client has."""

    def __init__(self, follower: Follower, projection: Projection, after: int) -> None:
        self._follower, self._projection = follower, projection
        self.sent = after

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """The frames, up to the end of the response. What became visible together is sent together."""
        projection, run, after = self._projection, self._projection.run, self.sent
        async with aclosing(self._follower.batches(Subject(run_id=run.run_id), max(0, run.first_seq - 1))) as batches:
            async for batch in batches:
                chunk = bytearray()
                for event in batch:
                    for told in projection.take(event):
                        if told["sequence_number"] > after:
                            chunk += frame(told)
                    if len(chunk) >= CHUNK_BYTES:
                        yield bytes(chunk)
                        self.sent = projection.number
                        chunk.clear()
                if chunk:
                    yield bytes(chunk)
                    self.sent = projection.number


async def of_thread(follower: Follower, run: pb.Run, thread_id: str) -> Projection:
    """A response as the log of this thread has it, which may be a fork of the one where it was made."""
    projection = Projection(run)
    source = follower.follow(Subject(thread_id=thread_id), max(0, run.first_seq - 1), replay_only=True)
    async with aclosing(source) as events:
        async for event in events:
            if event.run_id == run.run_id or event.type == "log_gap":
                projection.take(event)
            if projection.ended:
                break
    return projection


async def newest_first(runs: orchestrator_pb2_grpc.RunServiceStub, thread_id: str) -> AsyncGenerator[pb.Run, None]:
    """The runs of a thread."""
    token = ""
    while True:
        listed = await runs.ListRuns(pb.ListRunsRequest(thread_id=thread_id, page_size=RUNS_AT_ONCE, page_token=token))
        for run in listed.runs:
            yield run
        token = listed.next_page_token
        if not token:
            break


def input_items(projection: Projection) -> list[dict[str, Any]]:
    """What a response was asked, oldest first."""
    found: list[dict[str, Any]] = []
    run_id = projection.run.run_id
    for position, message in enumerate(projection.input):
        role, said = str(message.get("role", "user")), str(message.get("text", ""))
        calls = message.get("tool_calls") or ()
        if role == "tool":
            result = {"type": "function_call_output", "call_id": message.get("tool_call_id", ""), "output": said, "status": "completed"}
            found.append({"id": ids.input_id(run_id, position, ids.RESULT), **result})
            continue
        parts: list[dict[str, Any]] = [
            {"type": "input_image", "detail": image.get("detail") or "auto", "file_id": image.get("blob_id"), "image_url": None}
            for image in message.get("images") or ()
        ]
        if role == "assistant":
            parts = [{"type": "output_text", "text": said, "annotations": [], "logprobs": []}]
        elif said or not parts:
            parts.append({"type": "input_text", "text": said})
        if said or not calls:
            told = {"type": "message", "role": role, "status": "completed", "content": parts}
            found.append({"id": ids.input_id(run_id, position), **told})
        for at, call in enumerate(calls):
            made = {"call_id": call["tool_call_id"], "name": call["name"], "arguments": call["arguments"], "status": "completed"}
            found.append({"id": ids.input_id(run_id, position, ids.FUNCTION, f"-{at}"), "type": "function_call", **made})
    return found


def items_of(projection: Projection) -> list[dict[str, Any]]:
    """What was asked and what was answered, oldest first."""
    return input_items(projection) + projection.items
