"""The two forms of an answer, whole and streamed, made from one another."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from services.llm_gateway.chat import Answer, Assembly, Chunk, ChunkReader, text_of
from services.llm_gateway.messages_shape import OWN_FIELDS
from services.llm_gateway.results import Finished, Outcome

# Fields of a delta whose pieces are joined, and those whose lists are.
_TEXTS = ("content", "reasoning_content", "reasoning", "refusal")
_LISTS = ("thinking_blocks", "annotations")
_KNOWN = frozenset({"role", "tool_calls", "function_call", *_TEXTS, *_LISTS})
# Padding that a provider puts into events against observers of their length.
_PADDING = "obfuscation"


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
    """A whole answer as a stream: for each choice one event with its message and one with its finish_reason, the usage last."""
    head = {key: value for key, value in data.items() if key not in ("choices", "usage", "object")}
    head["object"] = "chat.completion.chunk"
    events: list[dict[str, Any]] = []
    for index, choice in enumerate(data["choices"]):
        number = choice.get("index", index)
        delta = {"role": "assistant", **{key: value for key, value in choice["message"].items() if value is not None}}
        if isinstance(delta.get("tool_calls"), list):
            delta["tool_calls"] = [{"index": place, **call} for place, call in enumerate(delta["tool_calls"])]
        rest = {key: value for key, value in choice.items() if key not in ("message", "index", "finish_reason")}
        events.append({**head, "choices": [{"index": number, "delta": delta, **rest, "finish_reason": None}]})
        events.append({**head, "choices": [{"index": number, "delta": {}, "finish_reason": choice["finish_reason"]}]})
    if isinstance(data.get("usage"), Mapping):
        events.append({**head, "choices": [], "usage": data["usage"]})
    return chunks_in(b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events))


def answer_of(chunks: Sequence[Chunk]) -> Answer | None:
    """A stream as a whole answer; None where it holds what cannot be put together, or an answer without its end."""
    head: dict[str, Any] = {}
    usage: Mapping[str, Any] | None = None
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        usage = chunk.usage or usage
        for key, value in chunk.data.items():
            if key not in ("choices", "usage", "object", _PADDING) and (value is not None or key not in head):
                head[key] = value
        for piece in chunk.data.get("choices") or ():
            index = piece.get("index", 0)
            choice = choices.setdefault(index, {"index": index, "message": {"role": "assistant", "content": None}, "finish_reason": None})
            if not _add_choice(choice, piece):
                return None
    if not choices or not all(isinstance(choice["finish_reason"], str) for choice in choices.values()):
        return None
    data = {**head, "object": "chat.completion", "choices": [choices[index] for index in sorted(choices)]}
    for choice in data["choices"]:
        calls = choice["message"].get("tool_calls")
        if calls is not None:
            choice["message"]["tool_calls"] = [calls[place] for place in sorted(calls)]
    if usage is not None:
        data["usage"] = usage
    return Answer(orjson.dumps(data), data)


def _add_choice(choice: dict[str, Any], piece: Mapping[str, Any]) -> bool:
    for key, value in piece.items():
        if key in ("index", "delta") or value is None:
            continue
        if key == "finish_reason":
            choice[key] = value
        elif key == "logprobs" and isinstance(value, Mapping):
            kept = choice.setdefault(key, {})
            for part, entries in value.items():
                if isinstance(entries, list):
                    kept[part] = [*(kept.get(part) or ()), *entries]
                elif entries is not None:
                    return False
        elif choice.setdefault(key, value) != value:
            return False
    return _add_delta(choice["message"], piece.get("delta") or {})


def _add_delta(message: dict[str, Any], delta: Mapping[str, Any]) -> bool:
    for key, value in delta.items():
        # What the prompt took stands in the usage at the end as well.
        early = key == OWN_FIELDS and isinstance(value, Mapping) and value.keys() <= {"prompt_usage"}
        if value is not None and key not in _KNOWN and not early:
            return False
    for key in _TEXTS:
        if isinstance(delta.get(key), str):
            message[key] = (message.get(key) or "") + delta[key]
    for key in _LISTS:
        if isinstance(delta.get(key), list):
            message[key] = [*message.get(key, ()), *delta[key]]
    for place, call in enumerate(delta.get("tool_calls") or ()):
        index = call.get("index")
        _add_call(message.setdefault("tool_calls", {}), index if isinstance(index, int) else place, call)
    if isinstance(delta.get("function_call"), Mapping):
        _add_function(message.setdefault("function_call", {}), delta["function_call"])
    return True


def _add_call(calls: dict[int, dict[str, Any]], index: int, call: Mapping[str, Any]) -> None:
    kept = calls.setdefault(index, {})
    for key, value in call.items():
        if key == "function" and isinstance(value, Mapping):
            _add_function(kept.setdefault("function", {}), value)
        elif key != "index" and value is not None:
            kept.setdefault(key, value)


def _add_function(kept: dict[str, Any], function: Mapping[str, Any]) -> None:
    for key, value in function.items():
        if key == "arguments":
            kept[key] = kept.get(key, "") + text_of(value)
        elif value is not None:
            kept.setdefault(key, value)
