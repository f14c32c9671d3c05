"""Answers in OpenAI's shape as messages and event streams of the Messages API."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.common.errors import UpstreamFailed
from services.llm_gateway.chat import Answer, CallNumbers, Chunk, arguments_text, text_of
from services.llm_gateway.messages_shape import BLOCKS, OWN_FIELDS, anthropic_usage, arguments_of, stop_of
from services.llm_gateway.money import Usage

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


def message_body(answer: Answer, sequences: Sequence[str], charged: Usage) -> bytes:
    """The body of a whole message. `charged` stands in where the provider sent no usage."""
    data = answer.data
    choice = data["choices"][0]
    message = choice["message"]
    own = _own(message)
    stop, sequence = _ending(stop_of(choice, own, sequences), called=bool(message.get("tool_calls")), refused=bool(message.get("refusal")))
    body = {
        "id": text_of(data.get("id")),
        "type": "message",
        "role": "assistant",
        "model": text_of(data.get("model")),
        "content": _content(message),
        "stop_reason": stop,
        "stop_sequence": sequence,
        "usage": anthropic_usage(answer.usage or _told(charged)),
        **{key: own[key] for key in ("stop_details", "container", "diagnostics") if key in own},
    }
    return orjson.dumps(body)


def _ending(told: tuple[str, str | None], *, called: bool, refused: bool) -> tuple[str, str | None]:
    """The stop_reason and stop_sequence. OpenAI and vLLM end a call that tool_choice forced with "stop"."""
    if refused:
        return "refusal", None
    return ("tool_use", None) if called and told[0] == "end_turn" else told


def _own(holder: Mapping[str, Any]) -> Mapping[str, Any]:
    own = holder.get(OWN_FIELDS)
    return own if isinstance(own, Mapping) else {}


def _content(message: Mapping[str, Any]) -> list[Any]:
    kept = _own(message).get(BLOCKS)
    if isinstance(kept, list):
        return kept
    blocks: list[Any] = []
    thinking = message.get("thinking_blocks")
    if isinstance(thinking, list):
        blocks += thinking
    elif reasoning := _reasoning(message):
        blocks.append({"type": "thinking", "thinking": reasoning, "signature": ""})
    content = message.get("content") or message.get("refusal")
    if isinstance(content, str) and (content or not message.get("tool_calls")):
        blocks.append({"type": "text", "text": content})
    elif isinstance(content, list):
        blocks += [{"type": "text", "text": text_of(part.get("text"))} for part in content if isinstance(part, Mapping)]
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call.get("function") or {}
        rest = {key: value for key, value in call.items() if key in ("caller", "toolset_name")}
        named = {"id": text_of(call.get("id")) or f"toolu_{number}", "name": text_of(function.get("name"))}
        blocks.append({"type": "tool_use", **named, "input": arguments_of(function.get("arguments")), **rest})
    return blocks


def _reasoning(holder: Mapping[str, Any]) -> str:
    """Thinking of models that sign none: `reasoning_content`, or `reasoning` as newer vLLM and OpenRouter call it."""
    return text_of(holder.get("reasoning_content")) or text_of(holder.get("reasoning"))


def _told(charged: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": charged.input,
        "completion_tokens": charged.output,
        "prompt_tokens_details": {"cached_tokens": charged.cached_input, "cache_creation_tokens": charged.cache_write},
        "completion_tokens_details": {"reasoning_tokens": charged.reasoning},
    }


class MessageEvents:
    """Turns the chunks of one stream into events: each block starts, grows and stops before the next one starts."""

    def __init__(self, sequences: Sequence[str]) -> None:
        """`sequences` are the stop sequences that the caller asked for."""
        self._sequences = sequences
        self._started = False
        self._count = 0
        self._kind = ""  # of the open block: text, thinking, tool, or none
        self._call = -1  # number of the open tool call
        self._calls: set[int] = set()
        self._numbers = CallNumbers()
        self._thought = 0  # length of what the open thinking block has said
        self._id = ""
        self._choice: dict[str, Any] = {}
        self._own: dict[str, Any] = {}
        self._usage: Mapping[str, Any] | None = None
        self._refused = False

    def feed(self, chunks: Sequence[Chunk]) -> bytes:
        """The events of one network read. Raises UpstreamFailed for pieces of a tool call that had ended."""
        out: list[bytes] = []
        for chunk in chunks:
            if chunk.usage is not None:
                self._usage = chunk.usage
            choices = chunk.data.get("choices")
            if not choices or choices[0].get("index", 0) != 0:
                continue
            choice = choices[0]
            delta = choice.get("delta") or {}
            if not self._started:
                self._start(out, chunk, _own(delta), chunks)
            self._add(out, delta)
            if choice.get("finish_reason"):
                self._choice = choice
        return b"".join(out)

    def end(self, charged: Usage) -> bytes:
        """What ends a whole answer."""
        out: list[bytes] = []
        self._close(out)
        stop, sequence = _ending(stop_of(self._choice, self._own, self._sequences), called=bool(self._calls), refused=self._refused)
        delta = {"stop_reason": stop, "stop_sequence": sequence}
        delta |= {key: self._own[key] for key in ("stop_details", "container") if key in self._own}
        out.append(_event({"type": "message_delta", "delta": delta, "usage": anthropic_usage(self._usage or _told(charged))}))
        out.append(_STOP)
        return b"".join(out)

    def _start(self, out: list[bytes], chunk: Chunk, own: Mapping[str, Any], read: Sequence[Chunk]) -> None:
        self._started = True
        self._id = text_of(chunk.data.get("id"))
        # An answer that is given again comes with its usage, some of which only this event has a place for.
        known = own.get("prompt_usage") or next((later.usage for later in read if later.usage is not None), None)
        message = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": text_of(chunk.data.get("model")),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # What the prompt takes is mostly told at the end; the counts of message_delta replace these.
            "usage": anthropic_usage(known if isinstance(known, Mapping) else None),
            **({"diagnostics": own["diagnostics"]} if own.get("diagnostics") else {}),
        }
        out.append(_event({"type": "message_start", "message": message}))

    def _add(self, out: list[bytes], delta: Mapping[str, Any]) -> None:
        own = _own(delta)
        if isinstance(own.get(BLOCKS), list):
            # A whole answer, given again: its plain members say less of the same.
            self._foreign(out, own)
            for block in own[BLOCKS]:
                if isinstance(block, Mapping):
                    self._given(out, block)
            return
        blocks = delta.get("thinking_blocks")
        thought = [block for block in blocks if isinstance(block, Mapping)] if isinstance(blocks, list) else []
        # Blocks that come whole say what was thought themselves.
        if (reasoning := _reasoning(delta)) and not any(text_of(block.get("thinking")) for block in thought):
            self._open(out, "thinking", {"type": "thinking", "thinking": "", "signature": ""})
            self._thought += len(reasoning)
            self._grow(out, {"type": "thinking_delta", "thinking": reasoning})
        for block in thought:
            self._think(out, block)
        self._foreign(out, own)
        for key in ("content", "refusal"):
            if text := text_of(delta.get(key)):
                self._refused = self._refused or key == "refusal"
                self._open(out, "text", {"type": "text", "text": ""})
                self._grow(out, {"type": "text_delta", "text": text})
        for place, call in enumerate(delta.get("tool_calls") or ()):
            self._tool(out, self._numbers.of(call, place), call)

    def _think(self, out: list[bytes], block: Mapping[str, Any]) -> None:
        if block.get("type") != "thinking":
            self._whole(out, dict(block))
            return
        self._open(out, "thinking", {"type": "thinking", "thinking": "", "signature": ""})
        if not self._thought and (thinking := text_of(block.get("thinking"))):
            self._grow(out, {"type": "thinking_delta", "thinking": thinking})
        if signature := text_of(block.get("signature")):
            self._grow(out, {"type": "signature_delta", "signature": signature})
        self._close(out)

    def _foreign(self, out: list[bytes], own: Mapping[str, Any]) -> None:
        if "new_block" in own:
            self._close(out)
        if "citation" in own:
            self._open(out, "text", {"type": "text", "text": ""})
            self._grow(out, {"type": "citations_delta", "citation": own["citation"]})
        if isinstance(own.get("content_block"), Mapping):
            self._whole(out, dict(own["content_block"]))
        if isinstance(own.get("delta"), Mapping) and self._kind:
            self._grow(out, own["delta"])
        self._own |= {key: own[key] for key in ("stop_reason", "stop_details", "container") if key in own}

    def _given(self, out: list[bytes], block: Mapping[str, Any]) -> None:
        """A block of an answer that came whole, in the pieces that a stream has."""
        kind = block.get("type")
        if kind == "thinking":
            self._think(out, block)
        elif kind == "text":
            self._close(out)
            cited = block.get("citations")
            self._open(out, "text", {**block, "text": "", **({"citations": []} if cited else {})})
            if text := text_of(block.get("text")):
                self._grow(out, {"type": "text_delta", "text": text})
            for citation in cited or ():
                self._grow(out, {"type": "citations_delta", "citation": citation})
            self._close(out)
        else:
            if kind == "tool_use":
                self._calls.add(len(self._calls))
            self._whole(out, dict(block))

    def _whole(self, out: list[bytes], block: dict[str, Any]) -> None:
        """A block that comes at once; the input of a tool follows its start, as clients expect it."""
        self._close(out)
        given = block.get("input")
        if isinstance(given, Mapping):
            block["input"] = {}
        self._open(out, text_of(block.get("type")), block)
        if given:
            self._grow(out, {"type": "input_json_delta", "partial_json": orjson.dumps(given).decode()})
        self._close(out)

    def _tool(self, out: list[bytes], number: int, call: Mapping[str, Any]) -> None:
        function = call.get("function") or {}
        if number not in self._calls:
            self._close(out)
            self._calls.add(number)
            rest = {key: call[key] for key in ("caller", "toolset_name") if key in call}
            identity = text_of(call.get("id")) or f"toolu_{self._id}_{self._count}"
            block = {"type": "tool_use", "id": identity, "name": text_of(function.get("name")), "input": {}, **rest}
            self._open(out, "tool", block)
            self._call = number
        elif self._kind != "tool" or number != self._call:
            if not function.get("arguments"):
                return
            raise UpstreamFailed("the model's tool calls came in pieces that do not fit together", metadata={"failure_class": "malformed"})
        if arguments := arguments_text(function.get("arguments")):
            self._grow(out, {"type": "input_json_delta", "partial_json": arguments})

    def _open(self, out: list[bytes], kind: str, block: Mapping[str, Any]) -> None:
        if self._kind == kind:
            return
        self._close(out)
        self._kind, self._thought = kind, 0
        out.append(_event({"type": "content_block_start", "index": self._count, "content_block": block}))

    def _grow(self, out: list[bytes], delta: Mapping[str, Any]) -> None:
        out.append(_event({"type": "content_block_delta", "index": self._count, "delta": delta}))

    def _close(self, out: list[bytes]) -> None:
        if self._kind:
            out.append(_event({"type": "content_block_stop", "index": self._count}))
            self._kind = ""
            self._count += 1


def _event(event: Mapping[str, Any]) -> bytes:
    return b"event: " + event["type"].encode() + b"\ndata: " + orjson.dumps(event) + b"\n\n"
