"""From Gemini's answers, whole and streamed, to OpenAI's shape."""

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from services.llm_gateway.adapters.gemini_errors import failure_in
from services.llm_gateway.chat import MALFORMED_ALLOWED, Answer, Chunk, malformed, parsed, text_of
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault, error_in
from services.llm_gateway.sse import SseParser

_FINISHED: Mapping[str, str] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    **dict.fromkeys(
        ("SAFETY", "RECITATION", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT",
         "IMAGE_RECITATION", "MODEL_ARMOR"),
        "content_filter",
    ),
}  # fmt: skip
# The model wrote what is no call: another attempt may do better.
_SPOILT = frozenset({"MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS", "MALFORMED_RESPONSE"})


def usage_of(metadata: Any) -> dict[str, Any] | None:
    """OpenAI's usage for a usageMetadata, None for one that counts nothing.

    `candidatesTokenCount` leaves thinking out, which costs as much as the answer: total = prompt + candidates + thoughts. Where the
    total says that the candidates hold the thoughts already, they are not added again.
    """
    if not isinstance(metadata, Mapping) or not isinstance(metadata.get("promptTokenCount"), int):
        return None
    prompt = _count(metadata, "promptTokenCount") + _count(metadata, "toolUsePromptTokenCount")
    answered, thoughts = _count(metadata, "candidatesTokenCount"), _count(metadata, "thoughtsTokenCount")
    included = thoughts and answered >= thoughts and metadata.get("totalTokenCount") == prompt + answered
    completion = answered if included else answered + thoughts
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": _count(metadata, "cachedContentTokenCount"), **_heard(metadata)},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


def _heard(metadata: Mapping[str, Any]) -> dict[str, int]:
    """The audio tokens of the prompt, where they are told apart."""
    details = metadata.get("promptTokensDetails")
    told = [part for part in details if isinstance(part, Mapping)] if isinstance(details, list) else []
    return {"audio_tokens": sum(_count(part, "tokenCount") for part in told if part.get("modality") == "AUDIO")} if told else {}


def _count(metadata: Mapping[str, Any], name: str) -> int:
    value = metadata.get(name)
    return value if isinstance(value, int) and value > 0 else 0


@dataclass(slots=True)
class _Said:
    """What one candidate says in one answer or event, in the fields of an OpenAI message or delta."""

    text: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    images: list[dict[str, Any]] = field(default_factory=list)
    signature: str = ""

    def fields(self) -> dict[str, Any]:
        """The fields beside role and content, those that there are."""
        found: dict[str, Any] = {}
        if self.reasoning:
            found["reasoning_content"] = "".join(self.reasoning)
        if self.calls:
            found["tool_calls"] = self.calls
        if self.images:
            found["images"] = self.images
        if self.signature:
            found["extra_content"] = {"google": {"thought_signature": self.signature}}
        return found


def _said(candidate: Mapping[str, Any]) -> _Said:
    content = candidate.get("content")
    if not isinstance(content, Mapping | None):
        raise malformed("a candidate's content is no object")
    parts = (content or {}).get("parts") or ()
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Mapping) for part in parts):
        raise malformed("a candidate's parts are no objects")
    said = _Said()
    for part in parts:
        signature = text_of(part.get("thoughtSignature"))
        if (call := part.get("functionCall")) is not None:
            said.calls.append(_call(call, signature))
            continue
        if signature:
            said.signature = signature
        if isinstance(text := part.get("text"), str):
            (said.reasoning if part.get("thought") else said.text).append(text)
        elif isinstance(blob := part.get("inlineData"), Mapping) and not part.get("thought"):
            url = f"data:{text_of(blob.get('mimeType'))};base64,{text_of(blob.get('data'))}"
            said.images.append({"type": "image_url", "image_url": {"url": url}})
    return said


def _call(call: Any, signature: str) -> dict[str, Any]:
    name = call.get("name") if isinstance(call, Mapping) else None
    if not isinstance(name, str) or not name or not isinstance(call.get("args"), Mapping | None):
        # A stream without this event would be an answer that leaves a call out: it is no event to skip.
        raise _billed(FailureClass.MALFORMED, "a function call has no name, or arguments that are no object", "malformed_call", None)
    made = {
        # Older models name no ids; a caller needs one to say which call a result belongs to.
        "id": text_of(call.get("id")) or f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": name, "arguments": orjson.dumps(call.get("args") or {}).decode()},
    }
    if signature:
        made["extra_content"] = {"google": {"thought_signature": signature}}
    return made


def _finish(candidate: Mapping[str, Any], *, called: bool, empty: bool, usage: Mapping[str, Any] | None) -> str:
    """The finish_reason, empty where there is none yet. Raises UpstreamFault for an end that is no answer; its tokens are paid."""
    reason = candidate.get("finishReason")
    if not isinstance(reason, str) or not reason:
        return ""
    message = text_of(candidate.get("finishMessage")) or f"the model stopped with {reason[:64]}"
    if reason in _SPOILT:
        raise _billed(FailureClass.MALFORMED, message, reason, usage)
    finish = _FINISHED.get(reason)
    if finish is None:
        # OTHER, LANGUAGE and what is newer than this table: the answer is not whole, and nobody knows why.
        raise _billed(FailureClass.UNKNOWN, message, reason, usage)
    if finish == "content_filter" and empty:
        raise _billed(FailureClass.CONTENT_POLICY, message, reason, usage)
    return "tool_calls" if called and finish == "stop" else finish


def _billed(failure_class: FailureClass, message: str, code: str, usage: Mapping[str, Any] | None) -> UpstreamFault:
    return UpstreamFault(Failure(failure_class, message[:400], 200, code.lower()[:64]), usage)


def _check_blocked(data: Mapping[str, Any]) -> None:
    feedback = data.get("promptFeedback")
    reason = feedback.get("blockReason") if isinstance(feedback, Mapping) else None
    if isinstance(reason, str) and reason:
        message = text_of(feedback.get("blockReasonMessage")) or f"the prompt was blocked: {reason[:64]}"
        raise _billed(FailureClass.CONTENT_POLICY, message, reason, usage_of(data.get("usageMetadata")))


def _logprobs(candidate: Mapping[str, Any]) -> dict[str, Any] | None:
    result = candidate.get("logprobsResult")
    chosen = result.get("chosenCandidates") if isinstance(result, Mapping) else None
    if not isinstance(chosen, list):
        return None
    tops = result.get("topCandidates")
    content = []
    for number, entry in enumerate(chosen):
        top = tops[number] if isinstance(tops, list) and number < len(tops) else None
        others = top.get("candidates") if isinstance(top, Mapping) else None
        content.append({**_logprob(entry), "top_logprobs": [_logprob(other) for other in others or ()]})
    return {"content": content, "refusal": None}


def _logprob(entry: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        raise malformed("a log probability is no object")
    token = text_of(entry.get("token"))
    return {"token": token, "logprob": entry.get("logProbability", 0.0), "bytes": list(token.encode())}


def read_answer(raw: bytes) -> Answer:
    """A GenerateContentResponse as a chat completion. Raises UpstreamFault."""
    data = parsed(raw, failure_in)
    if not isinstance(data, dict):
        raise malformed("the body is no object")
    _check_blocked(data)
    candidates = data.get("candidates")
    if not isinstance(candidates, list) or not candidates or not all(isinstance(entry, Mapping) for entry in candidates):
        raise malformed("the body has no candidates")
    usage = usage_of(data.get("usageMetadata"))
    choices = [_choice(number, candidate, usage, alone=len(candidates) == 1) for number, candidate in enumerate(candidates)]
    made: dict[str, Any] = {**_head(data), "object": "chat.completion", "choices": choices}
    if usage is not None:
        made["usage"] = usage
    return Answer(orjson.dumps(made), made)


def _choice(number: int, candidate: Mapping[str, Any], usage: Mapping[str, Any] | None, *, alone: bool) -> dict[str, Any]:
    said = _said(candidate)
    text = "".join(said.text)
    empty = alone and not (text or said.calls or said.images)
    finish = _finish(candidate, called=bool(said.calls), empty=empty, usage=usage)
    if not finish:
        raise malformed("a candidate has no finishReason")
    content = text if text or not said.calls else None
    message = {"role": "assistant", "content": content, "refusal": None, **said.fields()}
    choice: dict[str, Any] = {"index": _index(candidate, number), "message": message, "finish_reason": finish}
    if logprobs := _logprobs(candidate):
        choice["logprobs"] = logprobs
    return choice


def _head(data: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": text_of(data.get("responseId")), "created": int(time.time()), "model": text_of(data.get("modelVersion"))}


@dataclass(slots=True)
class _Progress:
    """How far one candidate of a stream is."""

    calls: int = 0
    said_any: bool = False
    finish: str = ""


class GeminiReader:
    """Reads streamGenerateContent?alt=sse. Its streams have no last event: they are whole when every candidate has finished."""

    def __init__(self) -> None:
        self._parser = SseParser()
        self._progress: dict[int, _Progress] = {}
        self._usage: dict[str, Any] | None = None
        self._head: dict[str, Any] = {}
        self._malformed_events = 0
        self._gap = False

    @property
    def done(self) -> bool:
        """Never: the end of the body is the end of the stream."""
        return False

    @property
    def finished(self) -> bool:
        """Whether every candidate that began has its finishReason."""
        return bool(self._progress) and all(progress.finish for progress in self._progress.values())

    def feed(self, read: bytes) -> list[Chunk]:
        """The chunks that end within `read`. Raises UpstreamFault for an error event and for a stream that is none."""
        return self._chunks(self._parser.feed(read))

    def end(self) -> list[Chunk]:
        """What the end of the stream completes."""
        return self._chunks(self._parser.end())

    def _chunks(self, events: Sequence[bytes]) -> list[Chunk]:
        found: list[Chunk] = []
        for event in events:
            try:
                found += self._of_event(event)
            except UpstreamFault as fault:
                fault.sent = found
                raise
        return found

    def _of_event(self, event: bytes) -> list[Chunk]:
        try:
            data = orjson.loads(event)
        except orjson.JSONDecodeError:
            return self._spoilt("an event is not JSON")
        error = error_in(data)
        if error is not None:
            raise UpstreamFault(failure_in(error))
        candidates = data.get("candidates") or [] if isinstance(data, dict) else None
        if not isinstance(candidates, list) or not all(isinstance(entry, dict) for entry in candidates):
            return self._spoilt("an event is of the wrong shape")
        if not any(progress.said_any for progress in self._progress.values()):
            _check_blocked(data)
        was_finished = self.finished
        ending = was_finished or any("finishReason" in candidate for candidate in candidates)
        usage = usage_of(data.get("usageMetadata")) if ending else None
        head = self._head_of(data)
        try:
            chunk = self._chunk(head, candidates, usage)
        except UpstreamFault as fault:
            # A shape that nobody can read is one lost event; an end that is no answer is the end.
            if fault.failure.status == 200:
                raise
            return self._spoilt(fault.failure.message)
        chunks = [chunk] if chunk is not None else []
        # The counts grow with the stream; those of an answer that is not whole would bill too little.
        if self.finished and usage is not None and (not was_finished or usage != self._usage):
            self._usage = usage
            told = {**head, "choices": [], "usage": usage}
            chunks.append(Chunk(orjson.dumps(told), told, usage=usage))
        return chunks

    def _head_of(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Id, time and model: those of the first event stand for all."""
        if not self._head:
            self._head = {**_head(data), "object": "chat.completion.chunk"}
        return self._head

    def _chunk(self, head: dict[str, Any], candidates: list[dict[str, Any]], usage: Mapping[str, Any] | None) -> Chunk | None:
        # All of an event is read before any of it counts, so that one that is spoilt leaves no trace.
        read = [
            (candidate, _index(candidate, number), _said(candidate), _logprobs(candidate)) for number, candidate in enumerate(candidates)
        ]
        choices = []
        chunk = Chunk(b"", {**head, "choices": choices}, after_gap=self._gap)
        for candidate, index, said, logprobs in read:
            fresh = index not in self._progress
            progress = self._progress.setdefault(index, _Progress())
            text = "".join(said.text)
            delta: dict[str, Any] = {"role": "assistant"} if fresh else {}
            if text or fresh:
                delta["content"] = text
            for call in said.calls:
                call["index"] = progress.calls
                progress.calls += 1
            delta.update(said.fields())
            progress.said_any = progress.said_any or bool(text or said.calls or said.images)
            empty = not progress.said_any and len(self._progress) == 1
            finish = _finish(candidate, called=bool(progress.calls), empty=empty, usage=usage)
            progress.finish = finish or progress.finish
            other = bool(said.reasoning or said.images)
            if not (delta or finish):
                continue
            choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": finish or None}
            if logprobs:
                choice["logprobs"] = logprobs
            choices.append(choice)
            chunk.opaque = chunk.opaque or other or index != 0
            chunk.meaningful = chunk.meaningful or bool(text or said.calls or finish or other)
            if index == 0:
                chunk.text, chunk.tool_calls, chunk.finish_reason = text, said.calls, finish
        if not choices:
            return None
        self._gap = False
        chunk.raw = orjson.dumps(chunk.data)
        return chunk

    def _spoilt(self, message: str) -> list[Chunk]:
        self._malformed_events += 1
        self._gap = True
        if self._malformed_events > MALFORMED_ALLOWED:
            raise malformed(message)
        return []


def _index(candidate: Mapping[str, Any], number: int) -> int:
    index = candidate.get("index", number)
    if not isinstance(index, int):
        raise malformed("a candidate's index is no number")
    return index
