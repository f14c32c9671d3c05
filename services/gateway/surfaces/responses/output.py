"""The output of a response: messages, calls of the platform's tools and questions to people, as the log tells of them.

Each method answers the events of OpenAI's API that its step is, as (type, fields), without their numbers.
"""

from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.gateway.answer import AppendOnlyText
from services.gateway.client_tools import CLIENT_TOOLS, Call
from services.gateway.surfaces.responses import ids

Told = tuple[str, dict[str, Any]]
# Tools run on the server. `mcp_call` is the item of OpenAI's API that says so: no client takes it for a call that it has to make.
SERVER_LABEL = "bulkhead"


@dataclass
class _Message:
    """The message that is being written. `shown` is what clients were sent, `pieces` what holds by now, with its event numbers."""

    index: int
    message_id: str
    shown: AppendOnlyText = field(default_factory=AppendOnlyText)
    pieces: list[tuple[int, str]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    whole: bool = False

    @property
    def text(self) -> str:
        return "".join(piece for _, piece in self.pieces)

    def part(self, *, empty: bool = False) -> dict[str, Any]:
        text, annotations = ("", []) if empty else (self.text, list(self.annotations))
        return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": []}


class Output:
    """Items in their order, `items` as a response shows them now. `asked` are the approvals that wait for a decision."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._items: list[dict[str, Any]] = []
        self._message: _Message | None = None
        self._calls: dict[str, int] = {}
        self._questions: dict[str, str] = {}
        self.asked: dict[str, None] = {}

    @property
    def items(self) -> list[dict[str, Any]]:
        """As they stand."""
        found = list(self._items)
        if self._message is not None:
            found[self._message.index] = {**found[self._message.index], "content": [self._message.part()]}
        return found

    @property
    def waits(self) -> bool:
        """Whether nothing goes on before somebody decides."""
        return bool(self.asked) and not self._calls

    def delta(self, seq: int, message_id: str, text: str) -> Iterator[Told]:
        """A piece of a message. What clients were sent already, by the owner before, is passed over."""
        if not text:
            return
        message = yield from self._writing(message_id)
        message.pieces.append((seq, text))
        yield from self._show(message, message.shown.delta(seq, "", text))

    def completed(self, seq: int, message_id: str, text: str) -> Iterator[Told]:
        """The whole text of a message. It stays open for citations until something else comes."""
        if not text:
            return
        message = yield from self._writing(message_id)
        fresh = message.shown.completed(seq, "", text)
        message.pieces, message.whole = [(seq, text)], True
        yield from self._show(message, fresh)

    def superseded(self, from_seq: int) -> None:
        """Text of events from this number on no longer holds."""
        if self._message is not None:
            self._message.shown.superseded(from_seq)
            self._message.pieces = [piece for piece in self._message.pieces if piece[0] < from_seq]
            self._message.whole = self._message.whole and bool(self._message.pieces)

    def cited(self, data: Mapping[str, Any]) -> Iterator[Told]:
        """A source of the message before."""
        message = self._message
        if message is None:
            return
        number = len(message.annotations)
        annotation = {
            "type": "file_citation", "file_id": str(data.get("document_id", "")), "filename": str(data.get("title", "")), "index": number,
        }  # fmt: skip
        message.annotations.append(annotation)
        where = self._of(message.index) | {"content_index": 0, "annotation_index": number, "annotation": annotation}
        yield "response.output_text.annotation.added", where

    def call_started(self, data: Mapping[str, Any]) -> Iterator[Told]:
        """A call of a tool, with all of its arguments."""
        call_id = str(data.get("call_id", ""))
        if call_id in self._calls:
            return
        yield from self.close()
        index = len(self._items)
        arguments = _json(data.get("arguments"))
        item: dict[str, Any] = {
            "id": ids.output_id(ids.CALL, self._run_id, index), "type": "mcp_call", "status": "in_progress", "server_label": SERVER_LABEL,
            "name": str(data.get("tool", "")), "arguments": "", "output": None, "error": None,
            "approval_request_id": self._questions.get(call_id),
        }  # fmt: skip
        self._items.append(item)
        self._calls[call_id] = index
        where = self._of(index)
        yield "response.output_item.added", {"output_index": index, "item": dict(item)}
        yield "response.mcp_call.in_progress", where
        item["arguments"] = arguments
        yield "response.mcp_call_arguments.delta", where | {"delta": arguments}
        yield "response.mcp_call_arguments.done", where | {"arguments": arguments}

    def call_ended(self, data: Mapping[str, Any], *, failed: bool) -> Iterator[Told]:
        """What became of a call."""
        index = self._calls.pop(str(data.get("call_id", "")), None)
        if index is None:
            return
        item = self._items[index]
        item["status"] = "failed" if failed else "completed"
        if failed:
            error = data.get("error") or {}
            content = [{"type": "text", "text": str(error.get("message") or error.get("reason") or "the call failed")}]
            item["error"] = {"type": "mcp_tool_execution_error", "content": content}
        else:
            # Of a result that is lost its beginning is kept.
            item["output"] = _json(data["output"] if "output" in data else data.get("preview"))
        yield f"response.mcp_call.{item['status']}", self._of(index)
        yield "response.output_item.done", {"output_index": index, "item": dict(item)}

    def raised(self, data: Mapping[str, Any]) -> Iterator[Told]:
        """A question to people. One about an outcome that is unknown is no item: OpenAI's API has no answers to it. What the client is
        asked to call is told with the end of the run, which comes with it."""
        if data.get("kind") == CLIENT_TOOLS:
            return
        approval_id = str(data.get("interrupt_id", ""))
        self.asked[approval_id] = None
        question_id = ids.question_id(approval_id)
        if data.get("kind") != "tool_call" or question_id in self._questions.values():
            return
        yield from self.close()
        index = len(self._items)
        item = {
            "id": question_id, "type": "mcp_approval_request", "server_label": SERVER_LABEL,
            "name": str(data.get("tool", "")), "arguments": _json(data.get("arguments")),
        }  # fmt: skip
        self._items.append(item)
        self._questions[str(data.get("call_id", ""))] = item["id"]
        yield "response.output_item.added", {"output_index": index, "item": dict(item)}
        yield "response.output_item.done", {"output_index": index, "item": dict(item)}

    def resolved(self, data: Mapping[str, Any]) -> None:
        """The end of a question."""
        self.asked.pop(str(data.get("interrupt_id", "")), None)

    def answered(self, seq: int, text: str) -> Iterator[Told]:
        """The answer of the run, which is the last message, whatever was said before."""
        known = self._message
        if known is not None and not known.whole:
            yield from self.completed(seq, known.message_id, text or known.text)
        elif text and text != (known.text if known is not None else self._last_text()):
            yield from self.completed(seq, "answer", text)

    def refused(self, text: str) -> Iterator[Told]:
        """A text in place of an answer that would have the form that was asked for."""
        yield from self.close()
        index = len(self._items)
        item = {
            "id": ids.output_id(ids.MESSAGE, self._run_id, index), "type": "message", "status": "in_progress", "role": "assistant",
            "content": [],
        }  # fmt: skip
        self._items.append(item)
        where = self._of(index) | {"content_index": 0}
        yield "response.output_item.added", {"output_index": index, "item": dict(item)}
        yield "response.content_part.added", where | {"part": {"type": "refusal", "refusal": ""}}
        yield "response.refusal.delta", where | {"delta": text}
        yield "response.refusal.done", where | {"refusal": text}
        item |= {"status": "completed", "content": [{"type": "refusal", "refusal": text}]}
        yield "response.content_part.done", where | {"part": {"type": "refusal", "refusal": text}}
        yield "response.output_item.done", {"output_index": index, "item": dict(item)}

    def called(self, calls: Iterable[Call]) -> Iterator[Told]:
        """Calls that the client is to make."""
        yield from self.close()
        for call in calls:
            index = len(self._items)
            item = {
                "id": ids.output_id(ids.FUNCTION, self._run_id, index), "type": "function_call", "status": "in_progress",
                "call_id": call.tool_call_id, "name": call.name, "arguments": "",
            }  # fmt: skip
            self._items.append(item)
            where = self._of(index)
            yield "response.output_item.added", {"output_index": index, "item": dict(item)}
            yield "response.function_call_arguments.delta", where | {"delta": call.arguments}
            yield "response.function_call_arguments.done", where | {"arguments": call.arguments}
            item |= {"status": "completed", "arguments": call.arguments}
            yield "response.output_item.done", {"output_index": index, "item": dict(item)}

    def ended(self, *, whole: bool) -> Iterator[Told]:
        """The end of the run: of what is not finished nothing more comes."""
        yield from self.close(whole=whole)
        for index in self._calls.values():
            self._items[index]["status"] = "incomplete"
            yield "response.output_item.done", {"output_index": index, "item": dict(self._items[index])}
        self._calls.clear()
        self.asked.clear()

    def close(self, *, whole: bool = True) -> Iterator[Told]:
        """Finishes the message that is being written. One of which nothing holds any more stays, empty and incomplete."""
        message, self._message = self._message, None
        if message is None:
            return
        item, part, where = self._items[message.index], message.part(), self._of(message.index) | {"content_index": 0}
        item["status"] = "completed" if message.pieces and (whole or message.whole) else "incomplete"
        item["content"] = [part]
        yield "response.output_text.done", where | {"text": part["text"], "logprobs": []}
        yield "response.content_part.done", where | {"part": part}
        yield "response.output_item.done", {"output_index": message.index, "item": dict(item)}

    def _writing(self, message_id: str) -> Generator[Told, None, _Message]:
        """The message of this id in the making: the one that is open if it may be that, else a new one."""
        message = self._message
        if message is not None and not message.whole and (message.message_id == message_id or not message.pieces):
            message.message_id = message_id
            return message
        yield from self.close()
        index = len(self._items)
        message = self._message = _Message(index, message_id)
        item = {
            "id": ids.output_id(ids.MESSAGE, self._run_id, index), "type": "message", "status": "in_progress", "role": "assistant",
            "content": [],
        }  # fmt: skip
        self._items.append(item)
        yield "response.output_item.added", {"output_index": index, "item": dict(item)}
        where = self._of(index) | {"content_index": 0}
        yield "response.content_part.added", where | {"part": message.part(empty=True)}
        return message

    def _show(self, message: _Message, fresh: str) -> Iterator[Told]:
        if fresh:
            yield "response.output_text.delta", self._of(message.index) | {"content_index": 0, "delta": fresh, "logprobs": []}

    def _of(self, index: int) -> dict[str, Any]:
        return {"item_id": self._items[index]["id"], "output_index": index}

    def _last_text(self) -> str:
        messages = [item for item in self._items if item["type"] == "message"]
        return str(messages[-1]["content"][0]["text"]) if messages else ""


def _json(value: Any) -> str:
    # Arguments that were no JSON stand in the log as the text that they were.
    return value if isinstance(value, str) else orjson.dumps(value).decode()
