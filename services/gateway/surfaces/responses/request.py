"""What a response asks for, in our terms. What is not supported is refused by name, or named with the answer where it is only a hint."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import InvalidInput, NotFound
from services.gateway.client_tools import client_tools, refuse_other_types, response_format, tool_choice
from services.gateway.inputs import Said, check_answers
from services.gateway.surfaces.native.models import INT32_MAX, INT64_MAX
from services.gateway.surfaces.openai.fields import (
    MOST_NAME_CHARS,
    NO_EFFECT,
    REFUSED,
    SILENT,
    STREAM_NO_EFFECT,
    Unused,
    boolean,
    ignored,
    labels,
    mapping,
    number,
    refuse,
    strings,
    text,
    unsupported,
    whole,
)
from services.gateway.surfaces.responses import ids
from services.gateway.surfaces.responses.asked import LABEL, as_accepted, labels_with, named, told_of
from services.gateway.surfaces.responses.input import Input

# Beside what both routes refuse: what would change the answer here, and fields of the other route that would.
_REFUSED: Unused = {
    **REFUSED,
    "n": (1,),
    "messages": (),
    "max_tokens": (),
    "max_completion_tokens": (),
    "response_format": ({"type": "text"},),
    "prompt": (),
    "context_management": ([],),
    "moderation": (),
    "generate": (True,),
}
_WHY = {
    "n": "only one response is made",
    "messages": "what is said is the input",
    "max_tokens": "is max_output_tokens here",
    "max_completion_tokens": "is max_output_tokens here",
    "response_format": "is text.format here",
}
# Hints, which are named where they ask for something; beside those of both routes these are of this one alone.
UNUSED: Unused = {**NO_EFFECT, "include": ([],), "truncation": ("disabled",), "reasoning": ({},)}
# Of what may be included, the one thing that an answer here could have.
_LOGPROBS = "message.output_text.logprobs"
# What is left out or refused is looked at as well: what is of the wrong type is a mistake, whatever it asks for.
_TYPES: Mapping[str, Callable[[Mapping[str, Any], str], object]] = {
    "include": strings,
    "parallel_tool_calls": boolean,
    "reasoning": mapping,
    "top_p": partial(number, least=0, most=1),
    "top_logprobs": partial(whole, least=0, most=20),
    "truncation": text,
    **dict.fromkeys(sorted(SILENT), text),
}
SUPPORTED = frozenset(
    {
        "model", "input", "instructions", "stream", "stream_options", "background", "store", "previous_response_id", "conversation",
        "metadata", "max_output_tokens", "max_tool_calls", "temperature", "service_tier", "text", "tools",
        "tool_choice",
    }
)  # fmt: skip
# Which run goes first among those of the tenant that wait.
_PRIORITIES = {"auto": 0, "default": 0, "flex": -5, "priority": 5, "fast": 5}
# What says how a run is made, and so cannot be said to one that is there already; with the values that ask for nothing.
_OF_A_NEW_RUN: Mapping[str, tuple[Any, ...]] = {
    "instructions": ("",),
    "conversation": ("",),
    "metadata": ({},),
    "max_output_tokens": (),
    "max_tool_calls": (),
    "temperature": (),
    "service_tier": ("", "auto"),
    "store": (True,),
}


class ResponseRequest:
    """A checked request. Raises InvalidInput with OpenAI's `param` for the first thing that is wrong."""

    def __init__(self, body: Any, headers: Mapping[str, str]) -> None:
        if not isinstance(body, dict):
            raise InvalidInput("the body must be a JSON object")
        without_effect = _without_effect(body)
        self.model = text(body, "model", required=True)
        self.stream, self.background = boolean(body, "stream"), boolean(body, "background")
        self.store = body.get("store") is None or boolean(body, "store")
        if self.background and not self.store:
            raise InvalidInput.field("background", "needs a response that is stored")
        self.instructions = text(body, "instructions")
        self.temperature = number(body, "temperature", 0, 2)
        self.max_tokens = whole(body, "max_output_tokens", 1, INT64_MAX)
        self.max_tool_calls = whole(body, "max_tool_calls", 1, INT32_MAX)
        self.priority = _priority(text(body, "service_tier"))
        self.metadata = labels(body)
        if LABEL in self.metadata:
            raise InvalidInput.field(f"metadata.{LABEL}", "is a label of the platform's own")
        refuse_other_types(body.get("tools"))
        self.tools = client_tools(body.get("tools"))
        self.tool_choice = tool_choice(body.get("tool_choice"), self.tools)
        self.response_format = response_format(mapping(body, "text").get("format"), "text.format")
        previous, conversation = text(body, "previous_response_id"), _conversation(body)
        if previous and conversation:
            raise InvalidInput.field("previous_response_id", "cannot be used together with conversation")
        if conversation and not self.store:
            raise unsupported("store", "what is said in a conversation is kept as long as that is")
        self.previous_run = _previous_run(previous) if previous else ""
        self.thread_id = ids.thread_id_of(conversation) if conversation else ""
        self.input = Input(body.get("input"))
        if self.input.references and not (self.previous_run or self.thread_id):
            raise ids.no_item(self.input.references[0].where)
        check_answers(self.input.messages, "call_id", whole=not self.previous_run and not self.thread_id)
        if self.input.decisions:
            if not previous:
                raise InvalidInput.field("previous_response_id", "must name the response that asked for an approval")
            for name, unused in _OF_A_NEW_RUN.items():
                if body.get(name) is not None and not _among(body[name], unused):
                    raise unsupported(name, "cannot be changed of a response that goes on after an approval")
        self.ignored = named(without_effect, self._kept())
        leaving = headers.get("x-bulkhead-on-disconnect", "continue")
        if leaving not in ("continue", "cancel"):
            raise InvalidInput.field("x-bulkhead-on-disconnect", "must be continue or cancel")
        self.cancel_on_disconnect = leaving == "cancel" and not self.background

    @property
    def said(self) -> Sequence[Said]:
        """What the run is given: the instructions, and the input."""
        return [*([Said("system", self.instructions, "instructions")] if self.instructions else []), *self.input.messages]

    def shown(self) -> dict[str, Any]:
        """What a response shows of its request."""
        told = told_of(as_accepted(self.tools, self.tool_choice, self.response_format))
        asked = {"instructions": self.instructions or None, "metadata": self.metadata or None, "ignored": self.ignored}
        return {**self._given(), **asked, **told}

    def _given(self) -> dict[str, Any]:
        return {
            "background": self.background, "max_output_tokens": self.max_tokens, "max_tool_calls": self.max_tool_calls,
            "temperature": self.temperature, "previous_response_id": ids.response_id(self.previous_run) if self.previous_run else None,
        }  # fmt: skip

    def _labels(self) -> Mapping[str, str]:
        """Labels of the run: the caller's own, and what a response shows of its request."""
        return labels_with(self.metadata, {**self._kept(), "ignored": self.ignored})

    def _kept(self) -> dict[str, Any]:
        return {**self._given(), "instructions": bool(self.instructions)}

    def create_run(self, told: Sequence[pb.InputMessage], thread_id: str, key: str, run_id: str = "") -> pb.CreateRunRequest:
        """The run that it is, on this thread; `told` is what was `said`, as an input."""
        asked = pb.CreateRunRequest(
            thread_id=thread_id,
            agent=self.model,
            input=told,
            run_id=run_id,
            idempotency_key=key,
            metadata=self._labels(),
            append_only_output=True,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            priority=self.priority,
            on_disconnect=pb.ON_DISCONNECT_CANCEL if self.cancel_on_disconnect else pb.ON_DISCONNECT_CONTINUE,
            client_tools=self.tools,
            tool_choice_json=self.tool_choice,
            response_format_json=self.response_format,
        )
        if self.max_tool_calls is not None:
            asked.limits.max_tool_calls = self.max_tool_calls
        return asked


def _without_effect(body: Mapping[str, Any]) -> list[str]:
    """Names of what is taken without effect. Raises InvalidInput for what cannot be left out, and for a hint of the wrong type."""
    for name, typed in _TYPES.items():
        typed(body, name)
    refuse(body, _REFUSED, _WHY)
    if _LOGPROBS in strings(body, "include"):
        raise unsupported("include", "answers have no logprobs")
    if text(body, "truncation") not in ("", "auto", "disabled"):
        raise unsupported("truncation", "must be auto or disabled")
    if mapping(body, "prompt_cache_options").get("prewarm"):
        raise unsupported("prompt_cache_options.prewarm", "each request is answered")
    found = ignored(body, UNUSED, SUPPORTED | SILENT | _REFUSED.keys())
    words = mapping(body, "text")
    _only({name: value for name, value in words.items() if name not in ("format", "verbosity")}, "text")
    if text(words, "verbosity", shown_as="text.verbosity"):
        found.append("text.verbosity")
    options = mapping(body, "stream_options")
    if options and not boolean(body, "stream"):
        raise InvalidInput.field("stream_options", "is only for stream: true")
    boolean(options, "include_obfuscation", "stream_options.include_obfuscation")
    return found + ignored(options, STREAM_NO_EFFECT, (), "stream_options.")


def _among(value: Any, unused: tuple[Any, ...]) -> bool:
    # To Python, True is 1.
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in unused)


def _only(given: Mapping[str, Any], where: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise unsupported(f"{where}.{str(name)[:MOST_NAME_CHARS]}")


def _previous_run(response_id: str) -> str:
    try:
        return ids.run_id_of(response_id)
    except NotFound:
        raise ids.no_previous() from None


def _priority(tier: str) -> int:
    if tier and tier not in _PRIORITIES:
        raise unsupported("service_tier", f"must be one of {', '.join(_PRIORITIES)}")
    return _PRIORITIES.get(tier, 0)


def _conversation(body: Mapping[str, Any]) -> str:
    value = body.get("conversation")
    if not isinstance(value, dict):
        return text(body, "conversation")
    _only({name: one for name, one in value.items() if name != "id"}, "conversation")
    inner = value.get("id")
    if not isinstance(inner, str) or not inner:
        raise InvalidInput.field("conversation.id", "must be a string")
    return inner
