"""Completions as the domain sees them: the call, the chunks of a stream, the whole answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault, classify, error_in
from services.llm_gateway.sse import SseParser
from services.llm_gateway.terms import PLAIN, Terms

# What a delta may hold without being part of the answer.
_SILENT_KEYS = frozenset({"role", "content", "refusal", "tool_calls", "function_call", "audio"})
# One malformed event does not lose a stream; more of them are a provider that speaks another language.
MALFORMED_ALLOWED = 1
# No provider numbers a tool call as high; what is goes by its place.
_MOST_CALLS = 2**20


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class ChatCall:
    """One completion that a caller asked for. `body` is the OpenAI request; its `model` and `stream` are not looked at.

    `size` is the length of the request in bytes where a surface knows it, an upper bound of its tokens; 0 where it does not. `opened`
    hears of a stream that this call has opened itself, before its first chunk: its `results.Outcome` so far.
    """

    model: str
    body: Mapping[str, Any]
    run_id: str = ""
    thread_id: str = ""
    terms: Terms = PLAIN
    size: int = 0
    opened: Callable[[Any], None] | None = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class Chunk:
    """One event of a streamed completion. `raw` is its JSON as it came; `text` is the content delta of the first choice."""

    raw: bytes
    data: dict[str, Any]
    text: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: str = ""
    usage: Mapping[str, Any] | None = None
    # Whether it carries part of the answer, and whether that part is of a kind that cannot be compared after a restart.
    meaningful: bool = False
    opaque: bool = False
    # Whether an event that could not be read came before it.
    after_gap: bool = False
    # Headers of the provider as in Answer; on the first chunk of a stream.
    headers: Mapping[str, str] | None = None

    def with_text(self, text: str) -> "Chunk":
        """The same event with another content delta."""
        choice = dict(self.data["choices"][0])
        choice["delta"] = {**choice["delta"], "content": text}
        data = {**self.data, "choices": [choice]}
        return Chunk(orjson.dumps(data), data, text, self.tool_calls, self.finish_reason, self.usage, self.meaningful, self.opaque)


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Answer:
    """A whole completion in OpenAI's shape. `raw` is its JSON: the provider's body as it came where that is OpenAI's shape.

    `headers` are those of the provider that callers may want (rate limits, request id), names in lower case.
    """

    raw: bytes
    data: dict[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def usage(self) -> Mapping[str, Any] | None:
        """The provider's usage object."""
        found = self.data.get("usage")
        return found if isinstance(found, dict) else None


def request_json(value: Any, option: int | None = None) -> bytes:
    """A request or a part of it as JSON. Raises InvalidInput for what JSON from outside can hold and orjson cannot write."""
    try:
        return orjson.dumps(value, option=option)
    except TypeError:
        raise InvalidInput("the request is nested too deeply or holds a number beyond 64 bits") from None


def malformed(message: str) -> UpstreamFault:
    """A provider that answers what nobody can read."""
    return UpstreamFault(Failure(FailureClass.MALFORMED, message))


def unmarked(raw: bytes) -> bytes:
    """A JSON text without the byte order mark that some servers put before it (RFC 8259, section 8.1, lets parsers ignore it)."""
    return raw[3:] if raw.startswith(b"\xef\xbb\xbf") else raw


def parsed(raw: bytes, failure_in: Callable[[Mapping[str, Any]], Failure]) -> Any:
    """The JSON of a body of status 200. Raises UpstreamFault for what is none, and for an error inside it, as `failure_in` reads it."""
    try:
        data = orjson.loads(unmarked(raw))
    except orjson.JSONDecodeError:
        raise malformed("the body is not JSON") from None
    error = error_in(data)
    if error is not None:
        raise UpstreamFault(failure_in(error))
    return data


def plain_failure(error: Mapping[str, Any]) -> Failure:
    """The failure of an error object within a success, in OpenAI's words."""
    return classify(200, error)


def parse_answer(raw: bytes) -> Answer:
    """A body of status 200. Raises UpstreamFault for an error inside it and for what is no whole completion."""
    data = parsed(raw, plain_failure)
    choices = data.get("choices") if isinstance(data, dict) else None
    if not isinstance(choices, list) or not choices:
        raise malformed("the body has no choices")
    for choice in choices:
        if not isinstance(choice, dict) or not isinstance(choice.get("message"), dict):
            raise malformed("a choice has no message")
        if not isinstance(choice.get("finish_reason"), str):
            raise malformed("a choice has no finish_reason")
        content, calls = choice["message"].get("content"), choice["message"].get("tool_calls")
        if not isinstance(content, str | list | None) or not isinstance(calls, list | None) or not _calls_ok(calls or []):
            raise malformed("a message is of the wrong shape")
    return Answer(unmarked(raw), data)


def _calls_ok(calls: list[Any]) -> bool:
    return all(isinstance(call, dict) and isinstance(call.get("function", {}), dict | None) for call in calls)


class ChunkReader:
    """Turns the bytes of a stream into chunks and knows whether the answer is whole. Pure: no input or output."""

    def __init__(self) -> None:
        self._parser = SseParser()
        self._open: set[int] = set()
        self._finished: set[int] = set()
        self.done = False
        self.malformed_events = 0
        self._gap = False
        self._called = False

    @property
    def finished(self) -> bool:
        """Whether every choice that began has its finish_reason."""
        return bool(self._finished) and self._open <= self._finished

    def feed(self, read: bytes) -> list[Chunk]:
        """The chunks that end within `read`. Raises UpstreamFault for an error event and for a stream that is none."""
        return self._chunks(self._parser.feed(read))

    def end(self) -> list[Chunk]:
        """What the end of the stream completes."""
        return self._chunks(self._parser.end())

    def _chunks(self, events: list[bytes]) -> list[Chunk]:
        found = []
        for event in events:
            if self.done:
                break
            if event.strip() == b"[DONE]":
                self.done = True
                break
            try:
                chunk = self._chunk(event)
            except UpstreamFault as fault:
                fault.sent = found
                raise
            if chunk is not None:
                chunk.after_gap, self._gap = self._gap, False
                found.append(chunk)
        return found

    def _chunk(self, event: bytes) -> Chunk | None:
        try:
            data = orjson.loads(event)
        except orjson.JSONDecodeError:
            self._spoilt("an event is not JSON")
            return None
        error = error_in(data)
        if error is not None:
            raise UpstreamFault(classify(200, error))
        if not isinstance(data, dict):
            self._spoilt("an event is no object")
            return None
        chunk = Chunk(event, data)
        usage = data.get("usage")
        if isinstance(usage, dict):
            chunk.usage = usage
        choices = data.get("choices")
        if choices is None:
            choices = []
        if isinstance(choices, list):
            for choice in choices:
                if not self._choice(chunk, choice):
                    break
            else:
                return chunk
        self._spoilt("an event is of the wrong shape")
        return None

    def _choice(self, chunk: Chunk, choice: Any) -> bool:
        if not isinstance(choice, dict):
            return False
        index, delta, finish = choice.get("index", 0), choice.get("delta") or {}, choice.get("finish_reason")
        if not isinstance(index, int) or not isinstance(delta, dict):
            return False
        text, calls = delta.get("content") or "", delta.get("tool_calls") or []
        if not isinstance(text, str) or not isinstance(calls, list) or (calls and not _calls_ok(calls)):
            return False
        if calls or finish == "tool_calls":
            self._called = True
        if self._called and self.malformed_events:
            # The event that was lost may have held a call, or a piece of one: what is left would be another call.
            raise malformed("a tool call is not whole")
        self._open.add(index)
        if index == 0:
            chunk.text = text
            chunk.tool_calls = calls
        else:
            chunk.opaque = True
        if isinstance(finish, str) and finish:
            self._finished.add(index)
            if index == 0:
                chunk.finish_reason = finish
        # Most deltas are a piece of text and nothing else.
        other = not (text and len(delta) == 1) and (
            any(value for key, value in delta.items() if key not in _SILENT_KEYS)
            or bool(delta.get("refusal") or delta.get("function_call") or delta.get("audio"))
        )
        chunk.opaque = chunk.opaque or other
        chunk.meaningful = chunk.meaningful or bool(text or calls or finish or other)
        return True

    def _spoilt(self, message: str) -> None:
        self.malformed_events += 1
        self._gap = True
        if self.malformed_events > MALFORMED_ALLOWED or self._called:
            raise malformed(message)


class Meter:
    """What one attempt has sent so far, delivered or not: all of it is paid."""

    def __init__(self) -> None:
        self.usage: Mapping[str, Any] | None = None
        self.output_bytes = 0
        # Where the usage was told, and whether nothing was to follow it.
        self.counted_bytes = 0
        self.finished = False

    def add(self, chunk: Chunk) -> None:
        """Adds one chunk."""
        if chunk.meaningful:
            self.output_bytes += len(chunk.raw) if chunk.opaque else _bytes_of(chunk)
            if chunk.finish_reason:
                self.finished = True
        if chunk.usage is not None:
            self.usage = chunk.usage
            self.counted_bytes = self.output_bytes


class CallNumbers:
    """The places of the tool calls of one choice. Servers that send whole calls leave the index out, and some number every call 0 and
    tell them apart by their ids alone: taken at its word, the second of them would be a piece of the first.
    """

    __slots__ = ("_ids", "_numbers", "_taken")

    def __init__(self) -> None:
        # The place of the call that came last under an index, and all places so far.
        self._numbers: dict[int, int] = {}
        self._taken: set[int] = set()
        self._ids: dict[int, str] = {}

    def of(self, call: Mapping[str, Any], place: int) -> int:
        """The place of the call that this is a piece of; `place` is that of the piece in its event."""
        given = call.get("index")
        index = given if isinstance(given, int) and 0 <= given < _MOST_CALLS else place
        named = text_of(call.get("id"))
        number = self._numbers.get(index)
        if number is None or (named and self._ids.get(number, named) != named and _begins(call)):
            number = index if index not in self._taken else max(self._taken) + 1
            self._numbers[index] = number
            self._taken.add(number)
        if named:
            self._ids.setdefault(number, named)
        return number


def _begins(call: Mapping[str, Any]) -> bool:
    """Whether a piece of a tool call is the first, which alone has its name."""
    named = call.get("function") or call.get("custom")
    return isinstance(named, Mapping) and bool(named.get("name"))


class Assembly:
    """Adds the chunks of a stream up to the whole message of its first choice."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._calls: dict[int, dict[str, str]] = {}
        self._numbers = CallNumbers()
        self.finish_reason = ""
        self.response_id = ""
        self.model = ""

    def add(self, chunk: Chunk) -> None:
        """Adds one chunk."""
        if chunk.text:
            self._text.append(chunk.text)
        for place, call in enumerate(chunk.tool_calls):
            function = call.get("function") or {}
            kept = self._calls.setdefault(self._numbers.of(call, place), {"id": "", "name": "", "arguments": ""})
            kept["id"] = kept["id"] or text_of(call.get("id"))
            kept["name"] = kept["name"] or text_of(function.get("name"))
            kept["arguments"] += arguments_text(function.get("arguments"))
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.response_id = text_of(chunk.data.get("id")) or self.response_id
        self.model = text_of(chunk.data.get("model")) or self.model

    @property
    def text(self) -> str:
        """The content so far."""
        return "".join(self._text)

    @property
    def tool_calls(self) -> list[dict[str, str]]:
        """Tool calls so far, in order, as {id, name, arguments}."""
        return [self._calls[index] for index in sorted(self._calls)]


def _bytes_of(chunk: Chunk) -> int:
    size = len(chunk.text.encode())
    for call in chunk.tool_calls:
        function = call.get("function") or {}
        size += len(text_of(function.get("name")).encode()) + len(arguments_text(function.get("arguments")).encode())
    return size


def arguments_text(value: Any) -> str:
    """Arguments of a call, or a piece of them, as text: some servers send the object itself."""
    return value if isinstance(value, str) else "" if value is None else orjson.dumps(value).decode()


def text_of(value: Any) -> str:
    """`value` where it is text, else the empty string."""
    return value if isinstance(value, str) else ""
