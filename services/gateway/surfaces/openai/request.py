"""What a chat completion asks for, in our terms."""

from collections.abc import Mapping, Sequence
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import InvalidInput
from services.gateway.client_tools import client_tools, refuse_other_types, response_format, tool_choice
from services.gateway.surfaces.native.models import ID_PATTERN, INT64_MAX
from services.gateway.surfaces.openai import messages
from services.gateway.surfaces.openai.fields import (
    NO_EFFECT,
    REFUSED,
    SILENT,
    STREAM_NO_EFFECT,
    Unused,
    boolean,
    ignored,
    labels,
    mapping,
    matches,
    number,
    refuse,
    text,
    unsupported,
    whole,
)

# Beside the hints of both routes those that say something else on the other one.
_NO_EFFECT: Unused = {**NO_EFFECT, "service_tier": ("auto", "default"), "store": (False,)}
_TAKEN = frozenset(
    {
        "model", "messages", "stream", "stream_options", "temperature", "max_tokens", "max_completion_tokens", "n", "metadata", "tools",
        "tool_choice", "response_format",
    }
)  # fmt: skip
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
        refuse(body, REFUSED, {})
        self.ignored = ignored(body, _NO_EFFECT, _TAKEN | SILENT | REFUSED.keys())
        self.ignored += ignored(options, STREAM_NO_EFFECT, ("include_usage",), "stream_options.")
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
