"""Images of an input: put before the model as content parts of one call, read from the blob store each time and kept nowhere else."""

import base64
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson

from services.common.errors import BulkheadError, Overloaded
from services.orchestrator.blobs.ports import BlobRecord
from services.orchestrator.ports import Message, ModelCall, ToolDefinition
from services.orchestrator.turn import degradation
from services.orchestrator.turn.patience import patiently
from services.orchestrator.turn.state import RunStopped, Turn

# Name of what is kept among the parts of a turn's state: the images of which it was `told` that they are missing.
PART = "images"
GONE, LEFT_OUT = "image_gone", "image_left_out"
# A message to the model gateway holds 4 MiB, of which this much is for what stands around texts and images.
MOST_REQUEST_BYTES, MARGIN_BYTES = 4 * 1024 * 1024, 192 * 1024
_AWAY = "The images of this conversation cannot be read at the moment. Please try again later."
_WORDS = {
    GONE: "[An image that the user sent here is no longer there.]",
    LEFT_OUT: "[An image that the user sent here is left out, since there are too many for one request.]",
}


async def shown(turn: Turn, messages: Sequence[Message], call: ModelCall) -> list[Message]:
    """The conversation with its images in place, the newest where there is no room for all. Raises RunStopped, Fenced."""
    if not any(message.images for message in messages):
        return list(messages)
    room = MOST_REQUEST_BYTES - MARGIN_BYTES - len(call.response_format) - sum(map(_size, messages)) - sum(map(_tool_size, call.tools))
    made: list[Message] = []
    for message in reversed(messages):
        if message.images:
            message, room = await _with_images(turn, message, room)
        made.append(message)
    return made[::-1]


async def _with_images(turn: Turn, message: Message, room: int) -> tuple[Message, int]:
    parts: list[dict[str, Any]] = []
    for blob_id, detail in reversed(message.images):
        # Behind the first that there was no room for, the older ones are not even read.
        url, why = await _read(turn, blob_id) if room > 0 else ("", "")
        if why:
            parts.append(_instead(turn, blob_id, GONE, why))
            continue
        if len(url) > room or not url:
            room = 0
            parts.append(_instead(turn, blob_id, LEFT_OUT, "too_many"))
            continue
        room -= len(url)
        image = {"url": url, "detail": detail} if detail not in ("", "auto") else {"url": url}
        parts.append({"type": "image_url", "image_url": image})
    parts.reverse()
    if message.text:
        parts.append({"type": "text", "text": message.text})
    return replace(message, content=orjson.dumps(parts)), room


async def _read(turn: Turn, blob_id: str) -> tuple[str, str]:
    """An image as a data: URL, or why there is none. A store that is away is waited for. Raises RunStopped."""
    keeper = turn.services.blobs
    if keeper is None:
        return "", "not_kept"

    async def read() -> tuple[BlobRecord, bytes]:
        turn.enter_call()
        return await keeper.read(turn.principal.tenant, turn.principal.user, blob_id)

    try:
        record, content = await patiently(turn, read)
    except Overloaded as error:
        raise RunStopped(error.reason, _AWAY, retryable=True) from error
    except BulkheadError as error:
        # Deleted, or damaged: it will not come back.
        return "", error.reason.lower()
    return f"data:{record.mime_type};base64,{base64.b64encode(content).decode()}", ""


def _instead(turn: Turn, blob_id: str, code: str, reason: str) -> dict[str, Any]:
    """What the model is told in the place of an image; the user is told once."""
    told: list[str] = turn.state.parts.setdefault(PART, {}).setdefault("told", [])
    if blob_id not in told:
        told.append(blob_id)
        degradation.warn(turn, code, reason=reason, blob_id=blob_id)
    return {"type": "text", "text": _WORDS[code]}


def _size(message: Message) -> int:
    return len(message.encode()) + 64


def _tool_size(tool: ToolDefinition) -> int:
    return len(tool.name) + len(tool.description) + 2 * len(tool.parameters) + 64
