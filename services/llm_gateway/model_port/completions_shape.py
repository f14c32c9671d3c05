"""Requests and answers of the legacy text completions, from and to those of chat completions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.chat import Chunk, text_of
from services.llm_gateway.money import Usage
from services.llm_gateway.request_rules import check_request

MAX_PROMPTS = 128
MAX_LOGPROBS = 5
_OWN = frozenset({"model", "prompt", "echo", "suffix", "best_of", "logprobs", "stream", "stream_options", "messages"})
_FINISHES = frozenset({"stop", "length", "content_filter"})


@dataclass(frozen=True, slots=True)
class TextRequest:
    """A request: a chat body for each prompt, and what of the answer is ours to make. `n` choices belong to each prompt."""

    prompts: tuple[str, ...]
    bodies: tuple[dict[str, Any], ...]
    n: int
    echo: bool
    stream: bool
    usage_wanted: bool


def text_request(body: Mapping[str, Any]) -> TextRequest:
    """Reads a request. Raises InvalidInput that names the wrong or unsupported field."""
    prompts = _prompts(body.get("prompt"))
    flags = {}
    for name in ("echo", "stream"):
        value = body.get(name)
        if not isinstance(value, bool | None):
            raise InvalidInput.field(name, "must be a boolean")
        flags[name] = bool(value)
    if body.get("suffix"):
        raise _unsupported("suffix", "chat models complete no text between two others")
    for name in ("tools", "functions"):
        if body.get(name):
            raise _unsupported(name, "use /v1/chat/completions")
    n = body.get("n")
    n = 1 if n is None else n
    if body.get("best_of") not in (None, n):
        raise _unsupported("best_of", "chat models do not rank their own answers; ask for n")
    shared = {name: value for name, value in body.items() if name not in _OWN and value is not None}
    _add_logprobs(shared, body.get("logprobs"), echo=flags["echo"])
    options = body.get("stream_options") or {}
    if not isinstance(options, Mapping):
        raise InvalidInput.field("stream_options", "must be an object")
    if flags["stream"]:
        shared |= {"stream": True, "stream_options": {**options, "include_usage": True}}
    bodies = tuple({**shared, "messages": [{"role": "user", "content": prompt}]} for prompt in prompts)
    check_request(bodies[0])
    return TextRequest(prompts, bodies, n, flags["echo"], flags["stream"], bool(options.get("include_usage")))


def _prompts(given: Any) -> tuple[str, ...]:
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not prompts:
        raise InvalidInput.field("prompt", "must be a text or a list of texts, and not empty")
    if all(isinstance(prompt, int | list) for prompt in prompts):
        raise _unsupported("prompt", "prompts must be texts, not tokens")
    if not all(isinstance(prompt, str) and prompt for prompt in prompts):
        raise InvalidInput.field("prompt", "must hold texts that are not empty")
    if len(prompts) > MAX_PROMPTS:
        raise InvalidInput.field("prompt", f"must hold at most {MAX_PROMPTS} texts")
    return tuple(prompts)


def _add_logprobs(shared: dict[str, Any], wanted: Any, *, echo: bool) -> None:
    if wanted is None or wanted is False:
        return
    if not isinstance(wanted, int) or not 0 <= wanted <= MAX_LOGPROBS:
        raise InvalidInput.field("logprobs", f"must be an integer from 0 to {MAX_LOGPROBS}")
    if echo:
        raise _unsupported("logprobs", "chat models tell no log probabilities of the prompt that echo repeats")
    shared |= {"logprobs": True, "top_logprobs": int(wanted)}


def _unsupported(field: str, why: str) -> InvalidInput:
    return InvalidInput(f"{field}: not supported: {why}", reason="UNSUPPORTED_PARAMETER", metadata={"param": field})


def legacy_choice(asked: TextRequest, prompt: int, choice: Mapping[str, Any]) -> dict[str, Any]:
    """A choice of the chat answer to the prompt of that number."""
    message = choice["message"]
    text = text_of(message.get("content")) or text_of(message.get("refusal"))
    return {
        "text": asked.prompts[prompt] + text if asked.echo else text,
        "index": prompt * asked.n + choice.get("index", 0),
        "logprobs": _logprobs(choice.get("logprobs"), 0),
        "finish_reason": _finish(choice.get("finish_reason")),
    }


def _finish(reason: Any) -> str | None:
    return reason if not reason or reason in _FINISHES else "stop"


def _logprobs(given: Any, offset: int) -> dict[str, Any] | None:
    content = given.get("content") if isinstance(given, Mapping) else None
    if not isinstance(content, list) or not content:
        return None
    tokens, offsets = [text_of(entry.get("token")) for entry in content], []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    tops = [{text_of(top.get("token")): top.get("logprob") for top in entry.get("top_logprobs") or ()} for entry in content]
    return {"tokens": tokens, "token_logprobs": [entry.get("logprob") for entry in content], "top_logprobs": tops, "text_offset": offsets}


def added_usage(usages: Sequence[tuple[Mapping[str, Any] | None, Usage]]) -> dict[str, Any]:
    """The usage of several calls together: what the provider told of each, else what was charged for it."""
    prompt = completion = cached = reasoning = 0
    for told, charged in usages:
        if told is None:
            prompt, completion = prompt + charged.input, completion + charged.output
            cached, reasoning = cached + charged.cached_input, reasoning + charged.reasoning
            continue
        prompt += _count(told, "prompt_tokens")
        completion += _count(told, "completion_tokens")
        cached += _count(told.get("prompt_tokens_details"), "cached_tokens")
        reasoning += _count(told.get("completion_tokens_details"), "reasoning_tokens")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": reasoning},
    }


def _count(holder: Any, name: str) -> int:
    value = holder.get(name) if isinstance(holder, Mapping) else None
    return value if isinstance(value, int) and value > 0 else 0


class LegacyStream:
    """Turns the chunks of one chat stream after the other into events of one text completion."""

    def __init__(self, asked: TextRequest) -> None:
        self._asked = asked
        self._head: dict[str, Any] = {}
        self._echoed: set[int] = set()
        self._offsets: dict[int, int] = {}
        self._usages: list[tuple[Mapping[str, Any] | None, Usage]] = []
        self._told: Mapping[str, Any] | None = None

    def feed(self, chunks: Sequence[Chunk]) -> bytes:
        """The events for some chunks of the answer to the first prompt that is not `finished`."""
        return b"".join(self._chunk(len(self._usages), chunk) for chunk in chunks)

    def finished(self, charged: Usage) -> None:
        """One prompt is answered."""
        self._usages.append((self._told, charged))
        self._told = None

    def end(self) -> bytes:
        """The usage of all prompts, where it was asked for."""
        return self._event([], usage=added_usage(self._usages)) if self._asked.usage_wanted else b""

    def _chunk(self, prompt: int, chunk: Chunk) -> bytes:
        data = chunk.data
        if chunk.usage is not None:
            self._told = chunk.usage
        if not self._head:
            self._head = {
                "id": f"cmpl-{text_of(data.get('id'))}",
                "object": "text_completion",
                "created": data.get("created", 0),
                "model": text_of(data.get("model")),
            }
        choices = [self._choice(prompt, choice) for choice in data.get("choices") or ()]
        choices = [choice for choice in choices if choice["text"] or choice["finish_reason"]]
        return self._event(choices) if choices else b""

    def _choice(self, prompt: int, choice: Mapping[str, Any]) -> dict[str, Any]:
        delta = choice.get("delta") or {}
        index = prompt * self._asked.n + choice.get("index", 0)
        text = text_of(delta.get("content")) or text_of(delta.get("refusal"))
        logprobs = _logprobs(choice.get("logprobs"), self._offsets.get(index, 0))
        self._offsets[index] = self._offsets.get(index, 0) + len(text)
        if self._asked.echo and index not in self._echoed:
            self._echoed.add(index)
            text = self._asked.prompts[prompt] + text
        return {"text": text, "index": index, "logprobs": logprobs, "finish_reason": _finish(choice.get("finish_reason"))}

    def _event(self, choices: list[dict[str, Any]], usage: Mapping[str, Any] | None = None) -> bytes:
        made = {**self._head, "choices": choices, **({} if usage is None else {"usage": usage})}
        return b"data: " + orjson.dumps(made) + b"\n\n"
