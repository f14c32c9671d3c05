"""The two forms of an answer, whole and streamed, made from one another."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.llm_gateway.chat import Answer, Assembly, CallNumbers, Chunk, ChunkReader, arguments_text, text_of
from services.llm_gateway.messages_shape import BLOCKS, CALL_EXTRAS, OWN_FIELDS, arguments_of, message_of
from services.llm_gateway.results import Finished, Outcome

# Fields of a delta whose pieces are joined, and those whose lists are.
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_LISTS = ("thinking_blocks", "annotations")
# Parts of a tool call, with the field of theirs that comes in pieces.
_IN_PIECES = {"function": "arguments", "custom": "input"}
# Members of a call that some servers repeat with each piece, emptied or made anew.
_REPEATED = frozenset({"id", "type"})
_KNOWN = frozenset({"role", "tool_calls", "function_call", OWN_FIELDS, *_TEXTS, *_LISTS})
# What the end of a message of Anthropic's API says of itself; the prompt's usage stands in the usage at the end as well.
_OWN_ENDS = frozenset({"stop_reason", "stop_details", "container", "diagnostics", BLOCKS})
_OWN_BLOCKS = frozenset({"new_block", "citation", "content_block"})
_OWN_KNOWN = _OWN_ENDS | _OWN_BLOCKS | {"prompt_usage"}
# Padding that a provider puts into events against observers of their length.
_PADDING = "obfuscation"
_OF_CHOICE = frozenset({"index", "delta", "finish_reason", "logprobs"})
_HEADLESS = frozenset({"choices", "usage", "object", _PADDING})


def events_of(chunks: Sequence[Chunk]) -> bytes:
    """Chunks as the body of an event stream; `chunks_in` gives them back byte for byte."""
    return b"".join(b"data: " + chunk.raw.replace(b"\n", b"\ndata: ") + b"\n\n" for chunk in chunks)


def chunks_in(events: bytes) -> list[Chunk]:
    """The inverse of `events_of`."""
    return ChunkReader().feed(events)


def finished_of(chunks: Sequence[Chunk], outcome: Outcome) -> Finished:
    """The end of a stream of these chunks."""
    assembly = Assembly()
    for chunk in chunks:
        assembly.add(chunk)
    return Finished(assembly.text, assembly.tool_calls, outcome)


def chunks_of(data: Mapping[str, Any]) -> list[Chunk]:
    """A whole answer as a stream: for each choice one event with its message and one with its end, the usage last.

    Blocks that OpenAI's shape has no like for stay in the delta's `provider_specific_fields.content_blocks`, as in the message.
    """
    head = {key: value for key, value in data.items() if key not in ("choices", "usage", "object")}
    head["object"] = "chat.completion.chunk"
    events: list[dict[str, Any]] = []
    for index, choice in enumerate(data["choices"]):
        number = choice.get("index", index)
        delta = {"role": "assistant", **{key: value for key, value in choice["message"].items() if value is not None}}
        if isinstance(delta.get("tool_calls"), list):
            delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(delta["tool_calls"])]
        # Probabilities belong to the tokens; what else a choice holds (a stop sequence, say) is known at its end.
        said = {"logprobs": choice["logprobs"]} if "logprobs" in choice else {}
        rest = {key: value for key, value in choice.items() if key not in ("message", "index", "finish_reason", "logprobs")}
        events.append({**head, "choices": [{"index": number, "delta": delta, **said, "finish_reason": None}]})
        events.append({**head, "choices": [{"index": number, "delta": {}, **rest, "finish_reason": choice["finish_reason"]}]})
    if isinstance(data.get("usage"), Mapping):
        events.append({**head, "choices": [], "usage": data["usage"]})
    return chunks_in(b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events))


def answer_of(chunks: Sequence[Chunk]) -> Answer | None:
    """A stream as a whole answer; None where it holds what cannot be put together, or an answer without its end."""
    joined = Joined()
    for chunk in chunks:
        joined.add(chunk)
    return joined.answer()


def is_plain(chunk: Chunk) -> bool:
    """Whether an event is a piece of the first choice's text and nothing else, as most are."""
    if not chunk.text or chunk.opaque or chunk.tool_calls or chunk.finish_reason or chunk.usage is not None:
        return False
    choices = chunk.data["choices"]
    choice = choices[0]
    return len(choices) == 1 and len(choice["delta"]) == 1 and choice.get("logprobs") is None and choice.keys() <= _OF_CHOICE


class Joined:
    """Puts the chunks of a stream together as they come."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._usage: Mapping[str, Any] | None = None
        self._choices: dict[int, _Choice] = {}
        self._fits = True

    def add(self, chunk: Chunk) -> None:
        """Adds one chunk."""
        # What stands around a piece of text stands around the end as well.
        if self._head and 0 in self._choices and is_plain(chunk):
            if self._fits:
                self._choices[0].add_text(chunk.text)
            return
        self._usage = chunk.usage or self._usage
        data = chunk.data
        for key, value in data.items():
            if key not in _HEADLESS and (value is not None or key not in self._head):
                self._head[key] = value
        for piece in data.get("choices") or ():
            index = piece.get("index", 0)
            choice = self._choices.get(index)
            if choice is None:
                choice = self._choices[index] = _Choice()
            choice.finish_reason = text_of(piece.get("finish_reason")) or choice.finish_reason
            self._fits = self._fits and choice.add(piece)

    def frame(self) -> dict[str, Any]:
        """The answer but for what its choices say: what is left to tell of one whose chunks cannot be put together."""
        ends = [{"index": index, "message": {}, "finish_reason": self._choices[index].finish_reason} for index in sorted(self._choices)]
        return {**self._head, "choices": ends, "usage": self._usage}

    def answer(self) -> Answer | None:
        """The whole answer; None where the chunks hold what cannot be put together, or an answer without its end."""
        if not self._fits or not self._choices or not all(choice.finish_reason for choice in self._choices.values()):
            return None
        choices = [self._choices[index].whole(index) for index in sorted(self._choices)]
        data = {**self._head, "object": "chat.completion", "choices": choices}
        if self._usage is not None:
            data["usage"] = self._usage
        return Answer(orjson.dumps(data), data)


class _Text:
    """A text block of the Messages API so far."""

    __slots__ = ("citations", "pieces")

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self.citations: list[Any] = []


class _Choice:
    """One choice of a stream so far. Pieces are kept as they come: an answer may be long, and is put together once."""

    def __init__(self) -> None:
        self.finish_reason = ""
        self._texts: dict[str, list[str]] = {}
        self._lists: dict[str, list[Any]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._numbers = CallNumbers()
        self._function: dict[str, Any] = {}
        self._logprobs: dict[str, Any] | None = None
        self._rest: dict[str, Any] = {}
        self._own: dict[str, Any] = {}
        # Blocks of the Messages API in their order: a text, the number of a tool call, or a block as it came.
        self._blocks: list[Any] = []
        self._open_text: _Text | None = None
        self._native = False

    def add_text(self, text: str) -> None:
        """Adds a piece of text."""
        self._texts.setdefault("content", []).append(text)
        self._text().pieces.append(text)

    def add(self, piece: Mapping[str, Any]) -> bool:
        """Adds a piece; False for one that cannot be put together with the others."""
        for key, value in piece.items():
            if key == "delta":
                if value and not self._add_delta(value):
                    return False
            elif value is None or key in ("index", "finish_reason"):
                continue
            elif key == "logprobs" and isinstance(value, Mapping):
                if not self._add_logprobs(value):
                    return False
            elif self._rest.setdefault(key, value) != value:
                return False
        return True

    def _add_logprobs(self, value: Mapping[str, Any]) -> bool:
        kept = self._logprobs = {} if self._logprobs is None else self._logprobs
        for part, entries in value.items():
            if isinstance(entries, list):
                kept.setdefault(part, []).extend(entries)
            elif entries is not None:
                return False
        return True

    def _add_delta(self, delta: Mapping[str, Any]) -> bool:
        # Most deltas are a piece of text and nothing else.
        if delta.keys() - _KNOWN and any(value is not None and key not in _KNOWN for key, value in delta.items()):
            return False
        # In the order of what a delta may hold at once: thinking comes first, and what belongs to a text before the text.
        for key in _LISTS:
            if isinstance(delta.get(key), list):
                self._lists.setdefault(key, []).extend(delta[key])
                if key == "thinking_blocks":
                    self._native = True
                    self._block(*(block for block in delta[key] if isinstance(block, Mapping)))
        own = delta.get(OWN_FIELDS)
        if own is not None and not (isinstance(own, Mapping) and self._add_own(own)):
            return False
        for key in _TEXTS:
            text = delta.get(key)
            if isinstance(text, str):
                if key == "content" and text:
                    self.add_text(text)
                else:
                    self._texts.setdefault(key, []).append(text)
        for place, call in enumerate(delta.get("tool_calls") or ()):
            if not self._add_call(self._numbers.of(call, place), call):
                return False
        if isinstance(delta.get("function_call"), Mapping):
            _add_pieces(self._function, delta["function_call"], "arguments")
        return True

    def _add_own(self, own: Mapping[str, Any]) -> bool:
        if own.keys() - _OWN_KNOWN or not isinstance(own.get("content_block", own), Mapping):
            return False
        self._native = True
        if "new_block" in own:
            self._open_text = None
        if "citation" in own:
            self._text().citations.append(own["citation"])
        if "content_block" in own:
            self._block(own["content_block"])
        for key in _OWN_ENDS & own.keys():
            self._own[key] = own[key]
        return True

    def _text(self) -> _Text:
        """The text block that is being said; a new one after anything else."""
        if self._open_text is None:
            self._open_text = _Text()
            self._blocks.append(self._open_text)
        return self._open_text

    def _block(self, *blocks: Any) -> None:
        self._blocks.extend(blocks)
        self._open_text = None

    def _add_call(self, index: int, call: Mapping[str, Any]) -> bool:
        kept = self._calls.get(index)
        if kept is None:
            kept = self._calls[index] = {}
            self._blocks.append(index)
            self._open_text = None
        for key, value in call.items():
            if value is None or key == "index":
                continue
            if key in _IN_PIECES:
                if not isinstance(value, Mapping):
                    return False
                _add_pieces(kept.setdefault(key, {}), value, _IN_PIECES[key])
            elif kept.setdefault(key, value) != value and key not in _REPEATED:
                return False
        return True

    def whole(self, index: int) -> dict[str, Any]:
        """The choice as it stands in a whole answer."""
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message |= {key: "".join(pieces) for key, pieces in self._texts.items()}
        message |= self._lists
        calls = {number: _whole_call(call) for number, call in self._calls.items()}
        if calls:
            message["tool_calls"] = [calls[number] for number in sorted(calls)]
        if self._function:
            message["function_call"] = _whole_of(self._function, "arguments")
        own = {**(self._kept_blocks(calls) if self._native and BLOCKS not in self._own else {}), **self._own}
        if own:
            message[OWN_FIELDS] = own
        logprobs = {} if self._logprobs is None else {"logprobs": self._logprobs}
        return {"index": index, "message": message, **logprobs, **self._rest, "finish_reason": self.finish_reason}

    def _kept_blocks(self, calls: Mapping[int, Mapping[str, Any]]) -> Mapping[str, Any]:
        """The blocks themselves where the plain message does not say them all, as in an answer that came whole."""
        blocks: list[Any] = []
        for found in self._blocks:
            if isinstance(found, _Text):
                cited = {"citations": found.citations} if found.citations else {}
                blocks.append({"type": "text", "text": "".join(found.pieces), **cited})
            elif isinstance(found, int):
                function = calls[found].get("function") or {}
                # Other members are of another API, whose plain message says them.
                rest = {key: calls[found][key] for key in CALL_EXTRAS & calls[found].keys()}
                named = {"id": calls[found].get("id"), "name": function.get("name")}
                blocks.append({"type": "tool_use", **named, "input": arguments_of(function.get("arguments")), **rest})
            else:
                blocks.append(found)
        own: Mapping[str, Any] = message_of(blocks, answer=True).get(OWN_FIELDS, {})
        return own


def _add_pieces(kept: dict[str, Any], part: Mapping[str, Any], field: str) -> None:
    for key, value in part.items():
        if key == field:
            kept.setdefault(key, []).append(arguments_text(value))
        elif value is not None:
            kept.setdefault(key, value)


def _whole_of(part: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {key: "".join(value) if key == field else value for key, value in part.items()}


def _whole_call(call: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _whole_of(value, _IN_PIECES[key]) if key in _IN_PIECES else value for key, value in call.items()}
