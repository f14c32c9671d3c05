"""What a chat completion asks for, in our terms."""

from collections.abc import Mapping
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import InvalidInput
from services.gateway.surfaces.native.models import ID_PATTERN, INT64_MAX
from services.gateway.surfaces.openai.fields import boolean, labels, mapping, matches, number, text, unsupported, whole

# What changes the shape or the meaning of the answer cannot be left out in silence: the value that means "not used", or none.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "stop": ([], ""),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "prediction": (),
}
# Hints on how to sample or bill. They are the agent's to decide; a request that names them is served, and told so.
_NO_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "top_p": (1,),
    "seed": (),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "reasoning_effort": (),
    "verbosity": (),
    "service_tier": ("auto", "default"),
    "parallel_tool_calls": (True,),
    "store": (False,),
}
_TAKEN = frozenset(
    {"model", "messages", "stream", "stream_options", "temperature", "max_tokens", "max_completion_tokens", "n", "metadata"}
)  # fmt: skip
# They say who asks or help a provider's cache; leaving them out changes nothing that a caller could see.
_SILENT = frozenset({"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
OUR_METADATA = ("thread_id", "on_disconnect")


class ChatRequest:
    """A checked request. Raises InvalidInput with OpenAI's `param` for the first thing that is wrong."""

    def __init__(self, body: Any, headers: Mapping[str, str]) -> None:
        if not isinstance(body, dict):
            raise InvalidInput("the body must be a JSON object")
        self.model = text(body, "model", required=True)
        self.messages = _messages(body.get("messages"))
        self.stream = boolean(body, "stream")
        options = mapping(body, "stream_options")
        if options and not self.stream:
            raise InvalidInput.field("stream_options", "is only for stream: true")
        self.include_usage = boolean(options, "include_usage", "stream_options.include_usage")
        self.temperature = number(body, "temperature", 0, 2)
        longest = whole(body, "max_completion_tokens", 1, INT64_MAX)
        self.max_tokens = longest if longest is not None else whole(body, "max_tokens", 1, INT64_MAX)
        if whole(body, "n", 1, 128) not in (None, 1):
            raise unsupported("n", "only one choice is made")
        for name, unused in _UNSUPPORTED.items():
            if body.get(name) is not None and body[name] not in unused:
                raise unsupported(name)
        self.ignored = [name for name, unused in _NO_EFFECT.items() if body.get(name) is not None and body[name] not in unused]
        known = _TAKEN | _SILENT | _UNSUPPORTED.keys() | _NO_EFFECT.keys()
        self.ignored += [str(name)[:64] for name in body if name not in known]
        self.metadata = labels(body, len(OUR_METADATA))
        thread_id = headers.get("x-bulkhead-thread-id") or self.metadata.pop("thread_id", "")
        self.thread_id = matches("metadata.thread_id", thread_id, ID_PATTERN) if thread_id else ""
        leaving = headers.get("x-bulkhead-on-disconnect") or self.metadata.pop("on_disconnect", "continue")
        if leaving not in ("continue", "cancel"):
            raise InvalidInput.field("metadata.on_disconnect", "must be continue or cancel")
        self.cancel_on_disconnect = leaving == "cancel"

    def create_run(self, idempotency_key: str) -> pb.CreateRunRequest:
        """The run that answers it: on its thread with the last message only, or on an ephemeral thread with all of them."""
        messages = self.messages[-1:] if self.thread_id else self.messages
        return pb.CreateRunRequest(
            thread_id=self.thread_id,
            agent=self.model,
            input=[pb.InputMessage(role=role, text=content) for role, content in messages],
            idempotency_key=idempotency_key,
            metadata=self.metadata,
            append_only_output=True,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            on_disconnect=pb.ON_DISCONNECT_CANCEL if self.cancel_on_disconnect else pb.ON_DISCONNECT_CONTINUE,
        )


def _messages(value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise InvalidInput.field("messages", "must be a list of at least one message")
    if len(value) > 1000:
        raise InvalidInput.field("messages", "must be at most 1000 messages")
    found = []
    for index, message in enumerate(value):
        where = f"messages[{index}]"
        if not isinstance(message, dict):
            raise InvalidInput.field(where, "must be an object")
        role = message.get("role")
        if role in ("tool", "function"):
            raise unsupported(f"{where}.role", "the agent's tools run on the server")
        if not isinstance(role, str) or role not in _ROLES:
            raise InvalidInput.field(f"{where}.role", "must be one of system, developer, user, assistant")
        for name in ("tool_calls", "function_call", "audio"):
            if message.get(name):
                raise unsupported(f"{where}.{name}")
        found.append((_ROLES[role], _content(message.get("content"), f"{where}.content", role)))
    if found[-1][0] != "user":
        raise InvalidInput.field("messages", "the last message must be of role user")
    if not found[-1][1].strip():
        raise InvalidInput.field(f"messages[{len(found) - 1}].content", "must not be empty")
    return found


def _content(value: Any, where: str, role: str) -> str:
    if isinstance(value, str):
        return value
    if value is None and role == "assistant":
        return ""
    if not isinstance(value, list):
        raise InvalidInput.field(where, "must be a text or a list of parts")
    parts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict):
            raise InvalidInput.field(f"{where}[{index}]", "must be an object")
        if part.get("type") != "text":
            raise unsupported(f"{where}[{index}].type", "only parts of type text are taken")
        if not isinstance(part.get("text"), str):
            raise InvalidInput.field(f"{where}[{index}].text", "must be a string")
        parts.append(part["text"])
    return "".join(parts)
