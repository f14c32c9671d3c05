"""The conversation of a thread before one of its runs, for clients that come without it."""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway.surfaces.ag_ui.images import part_of


class SnapshotCalls(Protocol):
    """The one call that is needed of the threads."""

    GetThreadSnapshot: Callable[..., Awaitable[pb.GetThreadSnapshotResponse]]


async def history(threads: SnapshotCalls, run: pb.Run) -> list[dict[str, Any]]:
    """What was said up to and with the question of a run, in messages of AG-UI: of at most the 100 newest runs, their questions and
    answers."""
    found = (await threads.GetThreadSnapshot(pb.GetThreadSnapshotRequest(thread_id=run.thread_id))).snapshot
    known = [one for one in found.runs if one.run.first_seq <= run.first_seq and not one.run.rolled_back_seq]
    said: list[dict[str, Any]] = []
    for one in sorted(known, key=lambda one: one.run.first_seq):
        run_id = one.run.run_id
        for at, message in enumerate(one.input):
            if message.role in ("user", "assistant"):
                said.append({"id": f"{run_id}/input/{at}", "role": message.role, "content": _content(message)})
            elif message.role == "tool":
                result = {"role": "tool", "content": message.text, "toolCallId": message.tool_call_id}
                said.append({"id": f"{run_id}/input/{at}", **result})
        if run_id != run.run_id and (one.run.output_text or one.run.client_tool_calls):
            said.append({"id": f"{run_id}/output", "role": "assistant", **_answer(one.run)})
    return said


def _content(message: pb.InputMessage) -> str | list[dict[str, Any]]:
    text: list[dict[str, Any]] = [{"type": "text", "text": message.text}] if message.text else []
    return [*(part_of(image.blob_id) for image in message.images), *text] if message.images else message.text


def _answer(run: pb.Run) -> dict[str, Any]:
    """What a run has said, and what it asked the application to call."""
    found: dict[str, Any] = {"content": run.output_text} if run.output_text else {}
    if run.client_tool_calls:
        found["toolCalls"] = [
            {
                "id": call.tool_call_id, "type": "function",
                "function": {"name": call.name, "arguments": call.arguments_json.decode("utf-8", "replace")},
            }
            for call in run.client_tool_calls
        ]  # fmt: skip
    return found
