"""What a caller says to a run, out of the form that a request and a run's specification have it in.

A message is a mapping of `role` and `text`; with images it has `images` ({blob_id, detail}), as one that asked the client for calls it has
`tool_calls` ({tool_call_id, name, arguments}), and of the role tool `tool_call_id`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from services.orchestrator.ports import Message, ToolRequest

Said = Mapping[str, Any]


def message_of(said: Said) -> Message:
    """One message as the conversation has it."""
    calls = tuple(
        ToolRequest(call["tool_call_id"], call["name"], call["arguments"].encode()) for call in said.get("tool_calls", ())
    )  # fmt: skip
    images = tuple((image["blob_id"], image["detail"]) for image in said.get("images", ()))
    return Message(said["role"], said["text"], calls, said.get("tool_call_id", ""), images=images)


def question_of(said: Sequence[Said]) -> str:
    """What the user said last: the last message or, where that is a result of a call, the last one of the user's before; else ''."""
    if not said or said[-1]["role"] == "user":
        return str(said[-1]["text"]) if said else ""
    return next((str(message["text"]) for message in reversed(said) if message["role"] == "user"), "")


def in_words(said: Sequence[Said], text: str) -> str:
    """`text`, what the user said last, for who sees no images: with how many there were."""
    count = len(_last(said).get("images", ()))
    if not count:
        return text
    told = f"[The user sent {count} images here.]" if count > 1 else "[The user sent an image here.]"
    return f"{text}\n{told}" if text else told


def _last(said: Sequence[Said]) -> Said:
    return next((message for message in reversed(said) if message["role"] == "user"), {})
