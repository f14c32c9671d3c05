"""Model calls over gRPC."""

from collections.abc import AsyncGenerator
from typing import Any

import orjson
from bulkhead.common.v1 import common_pb2
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc

from services.common.errors import UpstreamFailed
from services.common.rpc.channel import Dialer
from services.orchestrator.ports import Message, ModelCall, ModelFinished, TextDelta, ToolDefinition, ToolRequest, Warned

# What was thought, signed: Anthropic's and Gemini's models refuse, or do without, their own tool calls where it is missing. DeepSeek and
# its like want the thoughts of a turn in which tools are called under the name by which they gave them, OpenRouter their details.
_WANTED_BACK = frozenset(
    {"thinking_blocks", "provider_specific_fields", "extra_content", "reasoning", "reasoning_content", "reasoning_details"}
)


def warned(warning: common_pb2.Warning) -> dict[str, Any]:
    """A warning as the data of its event."""
    data: dict[str, Any] = {
        "code": warning.code, "capability_lost": warning.capability_lost, "fallback": warning.fallback,
        "user_message": warning.user_message,
    }  # fmt: skip
    if warning.attributes_json:
        data["attributes"] = orjson.loads(warning.attributes_json)
    return data


class LlmGateway:
    """The LLM gateway."""

    def __init__(self, dialer: Dialer) -> None:
        self._stub = llm_pb2_grpc.LlmServiceStub(dialer.channel("llm_gateway"))

    async def stream(self, call: ModelCall) -> AsyncGenerator[TextDelta | Warned | ModelFinished]:
        """As ports.Models.stream."""
        stream = self._stub.StreamComplete(_request(call))
        answer: ModelFinished | None = None
        try:
            # Read to its end: leaving a stream at its last message would cancel it in the eyes of the server.
            async for response in stream:
                kind = response.WhichOneof("event")
                if kind == "text_delta":
                    yield TextDelta(response.text_delta.text)
                elif kind == "finished":
                    answer = _finished(response.finished)
                elif kind == "warning":
                    yield Warned(warned(response.warning))
        finally:
            await stream.aclose()
        if answer is None:
            raise UpstreamFailed("the model's answer ended midway", reason="INCOMPLETE_ANSWER")
        yield answer

    async def spent(self, run_id: str) -> tuple[int, int]:
        """As ports.Models.spent."""
        told = await self._stub.GetBudget(llm_pb2.GetBudgetRequest(run_id=run_id))
        found = [(budget.spent_microusd, budget.reserved_microusd) for budget in told.budgets if budget.scope == "run"]
        return found[0] if found else (0, 0)


def _request(call: ModelCall) -> llm_pb2.StreamCompleteRequest:
    # Filled in place: messages made one by one and put into one another are copied each time, which takes three times as long.
    request = llm_pb2.StreamCompleteRequest(idempotency_key=call.key, text_only=True)
    source = request.input
    source.model, source.run_id, source.thread_id = call.model, call.run_id, call.thread_id
    for message in call.messages:
        added = source.messages.add(role=message.role, text=message.text, tool_call_id=message.tool_call_id, extra_json=message.extra)
        if message.content:
            added.content_json = message.content
        for c in message.tool_calls:
            added.tool_calls.add(tool_call_id=c.call_id, name=c.name, arguments_json=c.arguments, extra_json=c.extra)
    for tool in call.tools:
        added_tool = source.tools.add(name=tool.name, description=tool.description, parameters_json=tool.parameters)
        if tool.strict:
            added_tool.tool_json = _strict(tool)
    source.tool_choice_json, source.response_format_json = call.tool_choice, call.response_format
    if call.temperature is not None:
        source.temperature = call.temperature
    if call.max_tokens is not None:
        source.max_tokens = call.max_tokens
    if call.budget_microusd is not None:
        source.run_budget_microusd = call.budget_microusd
    if call.stale_s:
        source.cache.stale_if_error.FromMilliseconds(int(call.stale_s * 1000))
    return request


def _strict(tool: ToolDefinition) -> bytes:
    function = {"name": tool.name, "description": tool.description, "parameters": orjson.Fragment(tool.parameters), "strict": True}
    return orjson.dumps({"type": "function", "function": function})


def _wanted_back(extra_json: bytes, reasoning: str = "") -> bytes:
    """What the provider of an answer wants back of it, and no other provider stumbles over."""
    kept = {name: value for name, value in orjson.loads(extra_json).items() if name in _WANTED_BACK} if extra_json else {}
    # Signed thoughts hold the text as well.
    if reasoning and not kept.keys() & {"reasoning", "reasoning_content", "thinking_blocks", "extra_content"}:
        kept["reasoning_content"] = reasoning
    return orjson.dumps(kept) if kept else b""


def _finished(finished: llm_pb2.CompletionFinished) -> ModelFinished:
    usage, message = finished.outcome.usage, finished.message
    calls = tuple(ToolRequest(c.tool_call_id, c.name, c.arguments_json, _wanted_back(c.extra_json)) for c in message.tool_calls)
    return ModelFinished(
        Message("assistant", message.text, calls, extra=_wanted_back(message.extra_json, message.reasoning)),
        finished.outcome.finish_reason,
        {
            "input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens,
            "cached_input_tokens": usage.cached_input_tokens, "reasoning_tokens": usage.reasoning_tokens,
            "cost_microusd": usage.cost_microusd,
        },
        finished.outcome.model,
        finished.outcome.provider,
        finished.outcome.cached == "replayed",
    )  # fmt: skip
