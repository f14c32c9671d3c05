"""What a chat completion asks for, in our terms."""

from collections.abc import Mapping, Sequence
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import InvalidInput
from services.gateway.client_tools import client_tools, refuse_other_types, response_format, tool_choice
from services.gateway.surfaces.native.models import ID_PATTERN, INT64_MAX
from services.gateway.surfaces.openai import messages
from services.gateway.surfaces.openai.fields import boolean, labels, mapping, matches, number, text, unsupported, whole

# What changes the shape or the meaning of the answer cannot be left out in silence: the value that means "not used", or none.
_UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "functions": ([],),
    "function_call": ("none", "auto"),
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
    {
        "model", "messages", "stream", "stream_options", "temperature", "max_tokens", "max_completion_tokens", "n", "metadata", "tools",
        "tool_choice", "response_format",
    }
)  # fmt: skip
# They say who asks or help a provider's cache; leaving them out changes nothing that a caller could see.
_SILENT = frozenset({"user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
OUR_METADATA = ("thread_id", "on_disconnect")


class ChatRequest:
    """A checked request. Raises InvalidInput with OpenAI's `param` for the first thing that is wrong."""

    def __init__(self, body: Any, headers: Mapping[str, str]) -> None:
        if not isinstance(body, dict):
            raise InvalidInput("the body must be a JSON object")
        self.model = text(body, "model", required=True)
        said = messages.read_messages(body.get("messages"))
        refuse_other_types(body.get("tools"))
        self.tools = client_tools(body.get("tools"), inner="function")
        self.tool_choice = tool_choice(body.get("tool_choice"), self.tools, inner="function")
        self.response_format = response_format(body.get("response_format"), "response_format", inner="json_schema")
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
        # On its thread what is new, on an ephemeral one all that was said.
        self.said = messages.new(said) if self.thread_id else messages.whole(said)
        leaving = headers.get("x-bulkhead-on-disconnect") or self.metadata.pop("on_disconnect", "continue")
        if leaving not in ("continue", "cancel"):
            raise InvalidInput.field("metadata.on_disconnect", "must be continue or cancel")
        self.cancel_on_disconnect = leaving == "cancel"

    def create_run(self, told: Sequence[pb.InputMessage], idempotency_key: str) -> pb.CreateRunRequest:
        """The run that answers it; `told` is what was `said`, as an input."""
        return pb.CreateRunRequest(
            thread_id=self.thread_id,
            agent=self.model,
            input=told,
            idempotency_key=idempotency_key,
            metadata=self.metadata,
            append_only_output=True,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            on_disconnect=pb.ON_DISCONNECT_CANCEL if self.cancel_on_disconnect else pb.ON_DISCONNECT_CONTINUE,
            client_tools=self.tools,
            tool_choice_json=self.tool_choice,
            response_format_json=self.response_format,
        )
