"""What came back from tools, whatever its form: a value to quote, passages with citations, or an error to tell."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.simulator.chat_request import Message, PastCall

_VALUE_KEYS_TEXT = "result value answer output text content iso iso8601 datetime time stdout body message data"
_VALUE_KEYS = tuple(_VALUE_KEYS_TEXT.split())
_PASSAGE_LISTS = ("passages", "documents", "results", "hits", "matches", "items", "memories")
_PASSAGE_TEXTS = ("text", "content", "passage", "snippet", "body")
_CITATION_KEYS = ("citation", "citation_id", "cite", "id")
_MAX_DEPTH = 6
_TAG = re.compile(r"<[^<>]{1,1000}>")
_ERROR_MARKS = ("error:", "error ", "tool failed", "failed:", "exception:", "traceback (most recent call last)")


@dataclass(frozen=True, slots=True)
class Passage:
    """One passage of a document; `citation` is the id to cite it by, empty where it has none."""

    text: str
    citation: str = ""
    title: str = ""
    heading: str = ""


@dataclass(frozen=True, slots=True)
class ToolResult:
    """The outcome of one tool call of this turn; `error` is empty on success."""

    name: str
    arguments: Mapping[str, Any] | None
    value: str = ""
    error: str = ""
    passages: Sequence[Passage] = field(default_factory=tuple)


def results_of_turn(messages: Sequence[Message], start: int) -> list[ToolResult]:
    """The tool results after message `start`, in the order of their calls."""
    results: list[ToolResult] = []
    calls: dict[str, PastCall] = {}
    for message in messages[start:]:
        # Ids need to be unique within one assistant message only: some providers number them from 0 in each.
        if message.tool_calls:
            calls = {call.id: call for call in message.tool_calls}
        elif message.role == "tool" and message.tool_call_id in calls:
            call = calls[message.tool_call_id]
            results.append(_read(call.name, call.arguments, message.text))
    return results


def _read(name: str, arguments: Mapping[str, Any] | None, content: str) -> ToolResult:
    text = content.strip()
    parsed: Any = None
    if text[:1] in '{["' or text[:1].isdigit() or text[:1] == "-" or text in ("true", "false", "null"):
        try:
            parsed = orjson.loads(text)
        except orjson.JSONDecodeError:
            parsed = None
    if not isinstance(parsed, (dict, list, str)):
        if text.lower().startswith(_ERROR_MARKS):
            return ToolResult(name, arguments, error=_after_mark(text))
        return ToolResult(name, arguments, value=_without_tags(text))
    error = _error_in(parsed, 0)
    if error:
        return ToolResult(name, arguments, error=error)
    return ToolResult(name, arguments, value=_value_in(parsed, 0), passages=tuple(_passages_in(parsed, 0)))


def _after_mark(text: str) -> str:
    head, colon, tail = text.partition(":")
    return tail.strip() if colon and head.lower() == "error" and tail.strip() else text


def _error_in(parsed: Any, depth: int) -> str:
    if not isinstance(parsed, dict) or depth > _MAX_DEPTH:
        return ""
    error = parsed.get("error")
    failed = bool(error) or parsed.get("isError") is True or parsed.get("is_error") is True or parsed.get("status") in ("error", "failed")
    if not failed:
        inner = parsed.get("output", parsed.get("result"))
        return _error_in(inner, depth + 1)
    if isinstance(error, dict):
        message = error.get("message") or error.get("detail") or error.get("code") or error.get("type")
        return str(message) if message else "no reason given"
    if isinstance(error, str):
        return error
    told = (
        parsed.get("message")
        or parsed.get("detail")
        or _value_in({key: value for key, value in parsed.items() if key != "status"}, depth + 1)
    )
    return str(told) or "no reason given"


def _without_tags(text: str) -> str:
    if "</" not in text:
        return text
    for tag in ("script", "style"):
        text = _without_element(text, tag)
    return _TAG.sub(" ", text).strip()


def _without_element(text: str, tag: str) -> str:
    """The text without the elements of that name and what is in them, in one pass."""
    kept, position = [], 0
    start = text.find(f"<{tag}")
    while start >= 0:
        end = text.find(f"</{tag}", start)
        if end < 0:
            break
        kept.append(text[position:start])
        position = end
        start = text.find(f"<{tag}", end)
    kept.append(text[position:])
    return " ".join(kept)


def _value_in(parsed: Any, depth: int) -> str:
    """The scalar that answers: under a well-known key, or the only one there is, or the compact JSON of it all."""
    if isinstance(parsed, str):
        return _without_tags(parsed)
    if isinstance(parsed, bool) or parsed is None:
        return str(parsed).lower() if parsed is not None else "nothing"
    if isinstance(parsed, (int, float)):
        return orjson.dumps(parsed).decode()
    if depth <= _MAX_DEPTH and isinstance(parsed, dict):
        for key in _VALUE_KEYS:
            if key in parsed and parsed[key] not in (None, "", {}, []):
                return _value_in(parsed[key], depth + 1)
        if len(parsed) == 1:
            return _value_in(next(iter(parsed.values())), depth + 1)
    if depth <= _MAX_DEPTH and isinstance(parsed, list):
        if all(isinstance(item, dict) and item.get("type") == "text" and isinstance(item.get("text"), str) for item in parsed):
            return "\n".join(item["text"] for item in parsed)
        if len(parsed) == 1:
            return _value_in(parsed[0], depth + 1)
    try:
        return orjson.dumps(parsed).decode()
    except orjson.JSONEncodeError:
        # Deeper than orjson writes.
        return "a result that is nested too deeply to quote"


def _passages_in(parsed: Any, depth: int) -> Iterator[Passage]:
    if depth > _MAX_DEPTH:
        return
    if isinstance(parsed, dict):
        for key in _PASSAGE_LISTS:
            if isinstance(parsed.get(key), list):
                yield from _passages_in(parsed[key], depth + 1)
                return
        for key in ("output", "result", "data"):
            if isinstance(parsed.get(key), (dict, list)):
                yield from _passages_in(parsed[key], depth + 1)
                return
        return
    if not isinstance(parsed, list):
        return
    for item in parsed:
        if isinstance(item, dict):
            text = next((item[key] for key in _PASSAGE_TEXTS if isinstance(item.get(key), str)), "")
            if text and item.get("type") != "text":
                yield Passage(
                    text, _text_at(item, *_CITATION_KEYS), _text_at(item, "title", "name", "source"), _text_at(item, "heading", "section")
                )


def _text_at(item: Mapping[str, Any], *keys: str) -> str:
    return next((item[key] for key in keys if isinstance(item.get(key), str)), "")
