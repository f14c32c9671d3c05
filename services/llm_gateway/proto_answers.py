"""Answers as messages: whole, and event by event. What has no field of its own stands in a JSON object beside those that have one."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson
from bulkhead.common.v1 import common_pb2
from bulkhead.llm.v1 import llm_pb2

from services.llm_gateway.answer_forms import Joined, is_plain
from services.llm_gateway.chat import Answer, CallNumbers, Chunk, arguments_text, text_of
from services.llm_gateway.messages_shape import OWN_FIELDS
from services.llm_gateway.money import Usage
from services.llm_gateway.results import Finished, Notice, Outcome

_Event = llm_pb2.StreamCompleteResponse
# Members of a message, a call, a choice and an answer that have a field of their own.
_OF_MESSAGE = frozenset({"role", "content", "tool_calls", "reasoning_content", "refusal"})
_OF_CALL = frozenset({"id", "index", "type", "function"})
_OF_CHOICE = frozenset({"index", "message", "delta", "finish_reason"})
_OF_ANSWER = frozenset({"id", "object", "model", "choices", "usage"})
_OF_TOKEN = frozenset({"token", "logprob", "bytes", "top_logprobs"})
_MOST = 2**31
_MICRO = 1_000_000


def completed_message(answer: Answer, outcome: Outcome, notices: Sequence[Notice]) -> llm_pb2.CompleteResponse:
    """A whole completion."""
    first = answer.data["choices"][0]
    return llm_pb2.CompleteResponse(
        message=message_of(first["message"]), outcome=outcome_message(outcome, notices), details=_details(answer.data)
    )


def message_of(message: Mapping[str, Any]) -> llm_pb2.Message:
    """An assistant message."""
    made = llm_pb2.Message(role="assistant")
    left = set()
    content, reasoning, refusal = message.get("content"), message.get("reasoning_content"), message.get("refusal")
    if isinstance(content, str):
        made.text = content
    elif isinstance(content, list):
        made.content_json = orjson.dumps(content)
    # Newer vLLM and OpenRouter call it `reasoning`, which stays among the others, so that it goes back as it came.
    if thought := reasoning if reasoning is not None else message.get("reasoning"):
        made.reasoning = text_of(thought)
    if refusal:
        made.refusal = text_of(refusal)
    for name, value in (("reasoning_content", reasoning), ("refusal", refusal)):
        if not isinstance(value, str | None):
            left.add(name)
    for call in message.get("tool_calls") or ():
        made.tool_calls.append(_call(call))
    made.extra_json = _rest(message, _OF_MESSAGE - left)
    return made


def _call(call: Mapping[str, Any]) -> llm_pb2.ToolCall:
    function = call.get("function") or {}
    return llm_pb2.ToolCall(
        tool_call_id=text_of(call.get("id")),
        name=text_of(function.get("name")),
        arguments_json=arguments_text(function.get("arguments")).encode(),
        extra_json=_call_rest(call),
    )


def _call_rest(call: Mapping[str, Any]) -> bytes:
    kind = call.get("type")
    return _rest(call, _OF_CALL if kind is None or kind == "function" else _OF_CALL - {"type"})


def _rest(holder: Mapping[str, Any], known: Iterable[str]) -> bytes:
    """The members beside the known ones as JSON; nothing where there are none."""
    rest = {key: value for key, value in holder.items() if key not in known and value is not None}
    return orjson.dumps(rest) if rest else b""


def _details(data: Mapping[str, Any]) -> llm_pb2.AnswerDetails:
    choices, usage = data["choices"], data.get("usage")
    logprobs, rest = _choice_rest(choices[0])
    made = llm_pb2.AnswerDetails(
        logprobs=logprobs, choice_json=rest, usage_json=orjson.dumps(usage) if usage else b"", extra_json=_rest(data, _OF_ANSWER)
    )
    for place, choice in enumerate(choices[1:], start=1):
        logprobs, rest = _choice_rest(choice)
        made.further_choices.add(
            index=_number(choice.get("index", place)), message=message_of(choice["message"]),
            finish_reason=text_of(choice.get("finish_reason")), logprobs=logprobs, extra_json=rest,
        )  # fmt: skip
    return made


def _choice_rest(choice: Mapping[str, Any]) -> tuple[llm_pb2.Logprobs | None, bytes]:
    """Log probabilities, and the further members of a choice; the former are among the latter where they are of another shape."""
    told = choice.get("logprobs")
    if told is None:
        return None, _rest(choice, _OF_CHOICE)
    try:
        logprobs = llm_pb2.Logprobs(content=_tokens(told.get("content")), refusal=_tokens(told.get("refusal")))
    except (AttributeError, KeyError, TypeError, ValueError):
        logprobs = None
    # Members of other servers (token ids, sampling probabilities) have no field, and stay as they came.
    if logprobs is None or told.keys() - {"content", "refusal"} or not (_plain(told.get("content")) and _plain(told.get("refusal"))):
        return logprobs, _rest(choice, _OF_CHOICE)
    return logprobs, _rest(choice, _OF_CHOICE | {"logprobs"})


def _tokens(entries: Any) -> list[llm_pb2.TokenLogprob]:
    return [
        llm_pb2.TokenLogprob(
            token=entry["token"],
            logprob=entry["logprob"],
            utf8=None if entry.get("bytes") is None else bytes(entry["bytes"]),
            top=_tokens(entry.get("top_logprobs")),
        )
        for entry in entries or ()
    ]


def _plain(entries: Any) -> bool:
    """Whether tokens have nothing but what a TokenLogprob holds."""
    return all(entry.keys() <= _OF_TOKEN and entry["logprob"] is not None and _plain(entry.get("top_logprobs")) for entry in entries or ())


def _number(value: Any) -> int:
    """A position as a provider gave it; 0 for what is none."""
    return value if isinstance(value, int) and 0 <= value < _MOST else 0


class StreamedAnswer:
    """The events of one stream. Texts of one network read that follow each other become one event."""

    def __init__(self, *, text_only: bool = False) -> None:
        """`text_only` leaves out what is no piece of the text of an answer; `finished` has it all the same."""
        self._text_only = text_only
        self._joined = Joined()
        self._numbers: dict[int, CallNumbers] = {}

    def feed(self, chunks: Sequence[Chunk]) -> list[llm_pb2.StreamCompleteResponse]:
        """The events of one network read."""
        events: list[llm_pb2.StreamCompleteResponse] = []
        said: list[str] = []
        for chunk in chunks:
            self._joined.add(chunk)
            if is_plain(chunk):
                said.append(chunk.text)
                continue
            if said:
                _append(events, "text_delta", llm_pb2.TextDelta, "".join(said), 0)
                said.clear()
            for choice in chunk.data.get("choices") or ():
                (self._text_of if self._text_only else self._choice)(events, choice)
        if said:
            _append(events, "text_delta", llm_pb2.TextDelta, "".join(said), 0)
        return events

    def _text_of(self, events: list[llm_pb2.StreamCompleteResponse], choice: Mapping[str, Any]) -> None:
        content = (choice.get("delta") or {}).get("content")
        if content and isinstance(content, str):
            _append(events, "text_delta", llm_pb2.TextDelta, content, _number(choice.get("index")))

    def _choice(self, events: list[llm_pb2.StreamCompleteResponse], choice: Mapping[str, Any]) -> None:
        number, delta = _number(choice.get("index")), choice.get("delta") or {}
        if thought := text_of(delta.get("reasoning_content")) or text_of(delta.get("reasoning")):
            _append(events, "reasoning_delta", llm_pb2.ReasoningDelta, thought, number)
        # Before the text: a block of thinking, with its signature, ends here.
        self._detail(events, choice, delta, number)
        self._text_of(events, choice)
        if refusal := text_of(delta.get("refusal")):
            _append(events, "refusal_delta", llm_pb2.RefusalDelta, refusal, number)
        for place, call in enumerate(delta.get("tool_calls") or ()):
            function = call.get("function") or {}
            if (numbers := self._numbers.get(number)) is None:
                numbers = self._numbers[number] = CallNumbers()
            events.append(
                _Event(
                    tool_call_delta=llm_pb2.ToolCallDelta(
                        index=numbers.of(call, place),
                        tool_call_id=text_of(call.get("id")),
                        name=text_of(function.get("name")),
                        arguments_fragment=arguments_text(function.get("arguments")),
                        choice=number,
                        extra_json=_call_rest(call),
                    )
                )
            )

    def _detail(self, events: list[Any], choice: Mapping[str, Any], delta: Mapping[str, Any], number: int) -> None:
        own = delta.get(OWN_FIELDS)
        # What the prompt takes is told with all the usage at the end.
        hidden = {OWN_FIELDS} if isinstance(own, Mapping) and own.keys() <= {"prompt_usage"} else set()
        more = _rest(delta, _OF_MESSAGE | hidden) if delta.keys() - _OF_MESSAGE - hidden else b""
        logprobs, rest = _choice_rest(choice)
        if more or rest or logprobs is not None:
            events.append(_Event(detail_delta=llm_pb2.DetailDelta(choice=number, logprobs=logprobs, delta_json=more, choice_json=rest)))

    def finished(self, event: Finished, most_bytes: int) -> llm_pb2.StreamCompleteResponse:
        """The last event, of at most `most_bytes` where leaving out what the events have told helps."""
        joined = self._joined.answer()
        if joined is not None:
            message, details = message_of(joined.data["choices"][0]["message"]), _details(joined.data)
        else:
            message, details = llm_pb2.Message(role="assistant", text=event.text), _details(self._joined.frame())
            for call in event.tool_calls:
                message.tool_calls.add(tool_call_id=call["id"], name=call["name"], arguments_json=call["arguments"].encode())
        finished = llm_pb2.CompletionFinished(message=message, outcome=outcome_message(event.outcome, ()), details=details)
        if finished.ByteSize() > most_bytes:
            finished.details.CopyFrom(_details(self._joined.frame()))
            finished.message.ClearField("extra_json")
        return _Event(finished=finished)


def _append(events: list[llm_pb2.StreamCompleteResponse], field: str, kind: Any, text: str, choice: int) -> None:
    """Adds a text, to the last event where that is of the same kind."""
    if events and events[-1].WhichOneof("event") == field and (last := getattr(events[-1], field)).choice == choice:
        last.text += text
        return
    events.append(_Event(**{field: kind(text=text, choice=choice) if choice else kind(text=text)}))


def opened_event(outcome: Outcome) -> llm_pb2.StreamCompleteResponse:
    """Who answers a stream."""
    return _Event(opened=llm_pb2.StreamOpened(outcome=outcome_message(outcome, ())))


def warning_of(notice: Notice) -> common_pb2.Warning:
    """A notice as the warning that travels to the user."""
    return common_pb2.Warning(
        code=notice.code, fallback=notice.fallback, user_message=notice.message, attributes_json=orjson.dumps(dict(notice.attributes))
    )


def usage_message(usage: Usage, model_calls: int = 1) -> common_pb2.Usage:
    """Usage with its cost in micro-USD."""
    return common_pb2.Usage(
        input_tokens=usage.input,
        output_tokens=usage.output,
        cached_input_tokens=usage.cached_input,
        reasoning_tokens=usage.reasoning,
        cost_microusd=usage.cost_microusd,
        estimated=usage.estimated,
        model_calls=model_calls,
    )


def outcome_message(outcome: Outcome, notices: Sequence[Notice]) -> llm_pb2.CompletionOutcome:
    """How an answer came about."""
    usage, timing = outcome.usage, outcome.timing
    made = llm_pb2.CompletionOutcome(
        finish_reason=outcome.finish_reason,
        model=outcome.deployment.group,
        provider_model=outcome.provider_model,
        provider=outcome.deployment.provider,
        deployment_id=outcome.deployment.id,
        response_id=outcome.response_id,
        usage=usage_message(usage),
        attempts=outcome.attempts,
        fallbacks=outcome.fallbacks,
        retries=outcome.retries,
        cached=outcome.cached,
        routing_json=orjson.dumps(dict(outcome.routing)) if outcome.routing else b"",
        warnings=[warning_of(notice) for notice in notices],
        cost_nanousd=usage.cost_nanousd,
        cache_write_tokens=usage.cache_write,
        upstream_headers=outcome.upstream_headers,
        timing=llm_pb2.CallTiming(
            queue_us=int(timing.queue_s * _MICRO), reserve_us=int(timing.reserve_s * _MICRO),
            upstream_us=int(timing.upstream_s * _MICRO), retry_us=int(timing.retry_s * _MICRO),
        ),
    )  # fmt: skip
    for limit in outcome.limits:
        state = made.limits.add(kind=limit.kind, limit=limit.limit, remaining=limit.remaining)
        state.reset_after.FromNanoseconds(int(limit.reset_s * 1e9))
    return made
