"""The messages of a run as an AG-UI client builds them out of its events, so that a snapshot and the events before it agree."""

from collections.abc import Iterator, Mapping
from typing import Any

Message = dict[str, Any]


class Conversation:
    """Messages of one run, oldest first. Each change is one that the protocol's own client makes of one event."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        # Texts in pieces, as they came: one that grows is not copied for each of them.
        self._texts: dict[str, list[str]] = {}

    def wire(self) -> list[Message]:
        """The messages as MESSAGES_SNAPSHOT has them."""
        return [self._whole(message) for message in self._messages]

    def _whole(self, message: Message) -> Message:
        pieces = self._texts.get(message["id"])
        return dict(message) if pieces is None else {**message, "content": "".join(pieces)}

    def _find(self, message_id: str) -> Message | None:
        return next((message for message in reversed(self._messages) if message["id"] == message_id), None)

    def start(self, message_id: str, role: str) -> None:
        """TEXT_MESSAGE_START: a message that tool calls have made before keeps them."""
        if self._find(message_id) is None:
            self._messages.append({"id": message_id, "role": role})
        self._texts.setdefault(message_id, [])

    def text(self, message_id: str) -> str:
        """What a message says so far; '' where it says nothing."""
        return "".join(self._texts.get(message_id, ()))

    def says_something(self) -> bool:
        """Whether the agent has said anything."""
        return any(message["role"] == "assistant" and any(self._texts.get(message["id"], ())) for message in self._messages)

    def say(self, message_id: str, delta: str) -> int:
        """TEXT_MESSAGE_CONTENT. Answers how many pieces the text had before."""
        pieces = self._texts[message_id]
        pieces.append(delta)
        return len(pieces) - 1

    def cut(self, message_id: str, pieces: int) -> bool:
        """Leaves a message the first pieces of its text; one that has nothing then is gone. Answers whether it is still there."""
        message = self._find(message_id)
        if message is None:
            return False
        del self._texts[message_id][pieces:]
        if self._texts[message_id] or message.get("toolCalls"):
            return True
        self._messages.remove(message)
        del self._texts[message_id]
        return False

    def replace(self, message_id: str, text: str) -> None:
        """Another text for a message that is there."""
        self._texts[message_id] = [text]

    def call(self, call_id: str, name: str, arguments: str, parent_id: str) -> None:
        """TOOL_CALL_START and TOOL_CALL_ARGS. The calls of a step belong to its message, which they make where it says nothing."""
        message = self._find(parent_id)
        if message is None:
            message = {"id": parent_id, "role": "assistant"}
            self._messages.append(message)
        made = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
        message["toolCalls"] = [*message.get("toolCalls", ()), made]

    def result(self, message_id: str, call_id: str, content: str) -> None:
        """TOOL_CALL_RESULT: behind the message with the call and the results that are there of it."""
        made = {"id": message_id, "role": "tool", "content": content, "toolCallId": call_id}
        at = next((at for at, message in enumerate(self._messages) if _calls(message, call_id)), len(self._messages))
        at += 1
        while at < len(self._messages) and self._messages[at]["role"] == "tool":
            at += 1
        self._messages.insert(at, made)


def _calls(message: Message, call_id: str) -> bool:
    return any(call["id"] == call_id for call in message.get("toolCalls", ()))


def changes(before: Any, after: Any, path: str = "") -> Iterator[Mapping[str, Any]]:
    """Operations of RFC 6902 that make `after` out of `before`, which are JSON values."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in sorted(before.keys() - after.keys()):
            yield {"op": "remove", "path": f"{path}/{_pointer(key)}"}
        for key, value in after.items():
            if key in before:
                yield from changes(before[key], value, f"{path}/{_pointer(key)}")
            else:
                yield {"op": "add", "path": f"{path}/{_pointer(key)}", "value": value}
    elif isinstance(before, list) and isinstance(after, list):
        for at, (old, new) in enumerate(zip(before, after, strict=False)):
            yield from changes(old, new, f"{path}/{at}")
        for at in range(len(before) - 1, len(after) - 1, -1):
            yield {"op": "remove", "path": f"{path}/{at}"}
        for value in after[len(before) :]:
            yield {"op": "add", "path": f"{path}/-", "value": value}
    elif type(before) is not type(after) or before != after:
        yield {"op": "replace", "path": path, "value": after}


def _pointer(key: str) -> str:
    return key.replace("~", "~0").replace("/", "~1")
