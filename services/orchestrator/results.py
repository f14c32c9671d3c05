"""Large results of tools, which are kept beside the state store: what stands in their place, and what is left of one that is lost.

What is put aside is the data of the event `tool_call_completed` as a whole, so that whoever reads gets it back byte for byte. The event in
the log, and the message to the model in the checkpoint, point to it; both begin with the pointer, as nothing else does that is written.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import orjson

from services.common.errors import Internal
from services.orchestrator.ports import Message
from services.orchestrator.records import Draft
from services.orchestrator.turn.results import output_of, told

COMPLETED = "tool_call_completed"
INLINE_BYTES = 64 * 1024
# Of runs with such a message in their checkpoint: the version before would take the preview for the result.
RESULTS_SCHEMA = 3
PREVIEW_CHARS = 2_000
LOST = "RESULT_DAMAGED"
_MARK = b'{"stored":'


class Stored(NamedTuple):
    """What points to a result: the thread that it was put aside for, the digest and the size of what is stored."""

    thread_id: str
    digest: str
    size: int

    @classmethod
    def of(cls, thread_id: str, content: bytes) -> "Stored":
        """The pointer to a content as it is stored."""
        return cls(thread_id, hashlib.sha256(content).hexdigest(), len(content))

    def is_of(self, content: bytes) -> bool:
        """Whether this is the content that was stored."""
        return hashlib.sha256(content).hexdigest() == self.digest

    def name(self, run_id: str) -> str:
        """Its name among the results of the thread."""
        return f"{prefix_of(run_id)}{self.digest[:32]}"

    def _told(self) -> dict[str, Any]:
        return {"thread_id": self.thread_id, "digest": f"sha256:{self.digest}", "bytes": self.size, "media_type": "application/json"}

    def event(self, raw: bytes) -> bytes:
        """What stands in the log for the data `raw` of an event; a reader who does not know of pointers sees a preview."""
        data = orjson.loads(raw)
        return orjson.dumps({"stored": self._told(), **data, "output": output_of(raw, data)[:PREVIEW_CHARS]})

    def message(self, call_id: str) -> bytes:
        """What stands in the checkpoint for what the model was told of it."""
        return orjson.dumps({"stored": self._told(), "role": "tool", "text": "", "tool_call_id": call_id})


def prefix_of(run_id: str) -> str:
    """What the names of a run's results begin with, and those of no other run's."""
    return hashlib.sha256(run_id.encode()).hexdigest()[:24] + "-"


def stored_in(raw: bytes) -> Stored | None:
    """The pointer in the data of a `tool_call_completed` or in a message; None where there is none."""
    if not raw.startswith(_MARK):
        return None
    told_of = orjson.loads(raw)["stored"]
    return Stored(told_of["thread_id"], told_of["digest"].removeprefix("sha256:"), told_of["bytes"])


def parted(
    messages: Sequence[bytes], events: Sequence[Draft], datas: Sequence[bytes], is_large: Callable[[bytes], bool]
) -> tuple[Sequence[bytes], int]:
    """The messages of a write, of whose `events` the log gets `datas`: a large one that says what an event says points to what that points
    to. And the schema that it takes to read them, 0: that of the run."""
    aside = {
        orjson.loads(event.data)["call_id"]: (event.data, data) for event, data in zip(events, datas, strict=True) if data != event.data
    }
    if not aside:
        return messages, 0
    found = [_parted(raw, aside) if is_large(raw) else raw for raw in messages]
    return found, RESULTS_SCHEMA if found != list(messages) else 0


def _parted(raw: bytes, aside: Mapping[str, tuple[bytes, bytes]]) -> bytes:
    message = Message.decode(raw)
    data, pointer = aside.get(message.tool_call_id, (b"", b""))
    stored = stored_in(pointer)
    # Where it says more than the event it stays whole.
    same = stored is not None and message == Message("tool", told(data), tool_call_id=message.tool_call_id)
    return stored.message(message.tool_call_id) if stored is not None and same else raw


def whole_message(raw: bytes, data: bytes) -> bytes:
    """The inverse of `parted`."""
    return Message("tool", told(data), tool_call_id=orjson.loads(raw)["tool_call_id"]).encode()


def lost_event(raw: bytes) -> bytes:
    """The data of an event whose result is lost, as readers get it: the error in the place of the output, and what is left of that."""
    data = orjson.loads(raw)
    del data["stored"]
    error = {"code": LOST, "message": "The result of this call is missing or damaged."}
    return orjson.dumps({**data, "output": None, "error": error, "preview": data["output"]})


def is_lost(data: Mapping[str, Any]) -> bool:
    """Whether the data of an event is that of `lost_event`."""
    return "preview" in data and data.get("error", {}).get("code") == LOST


def lost() -> Internal:
    """The error for whoever cannot go on without a result that is lost."""
    return Internal("the result of a tool call is missing or damaged", reason=LOST)
