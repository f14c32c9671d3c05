"""What the fake orchestrator does for clients with tools of their own, forms of answers, images and labels: as the real one tells it."""

from collections.abc import AsyncGenerator
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import InvalidInput

Step = tuple[str, dict[str, Any], bool]
USAGE = {"input_tokens": 7, "output_tokens": 5, "cost_microusd": 12, "model_calls": 1, "tool_calls": 0}
# What a user says so that the answer is a refusal, in place of one of the form that was asked for.
REPHRASE = "rephrase"


def queued(request: pb.CreateRunRequest) -> dict[str, Any]:
    """What run_queued tells of a request, beside the agent."""
    found: dict[str, Any] = {"input": [_message(message) for message in request.input]}
    if request.client_tools:
        found["client_tools"] = [
            {
                "name": tool.name, "description": tool.description, "strict": tool.strict,
                "parameters": orjson.loads(tool.parameters_json or b"{}"),
            }
            for tool in request.client_tools
        ]  # fmt: skip
    for name in ("tool_choice", "response_format"):
        if given := getattr(request, f"{name}_json"):
            found[name] = orjson.loads(given)
    return found


def _message(message: pb.InputMessage) -> dict[str, Any]:
    found: dict[str, Any] = {"role": message.role, "text": message.text}
    if message.images:
        found["images"] = [{"blob_id": image.blob_id, "detail": image.detail or "auto"} for image in message.images]
    if message.tool_calls:
        found["tool_calls"] = [
            {"tool_call_id": call.tool_call_id, "name": call.name, "arguments": call.arguments_json.decode()} for call in message.tool_calls
        ]
    if message.tool_call_id:
        found["tool_call_id"] = message.tool_call_id
    return found


def check_results(request: pb.CreateRunRequest, last: pb.Run | None) -> None:
    """Raises InvalidInput for results of no call: neither of one in the input nor of one that the thread's last run waits for."""
    asked = {call.tool_call_id for message in request.input for call in message.tool_calls}
    given = {message.tool_call_id for message in request.input if message.role == "tool"} - asked
    waiting = {call.tool_call_id for call in last.client_tool_calls} if last is not None else set()
    if given and given != waiting:
        raise InvalidInput.field("input", "must answer each call that waits, and no other")


def ended(run: pb.Run, data: dict[str, Any]) -> None:
    """What a run's end tells of its client's tools."""
    run.finish_reason = str(data.get("finish_reason", ""))
    for call in data.get("client_tool_calls", ()):
        run.client_tool_calls.add(tool_call_id=call["tool_call_id"], name=call["name"], arguments_json=call["arguments"].encode())


async def caller(run: Any) -> AsyncGenerator[Step, None]:
    """Has its client call each tool that it brings, with the object that the user said as arguments; with results it says them back."""
    request = run.request
    results = [message for message in request.input if message.role == "tool"]
    if request.input[-1].role == "tool":
        text = "They gave " + ", ".join(message.text for message in results) + "."
        yield "message_delta", {"text": text, "message_id": "m1"}, True
        yield "run_finished", {"output_text": text, "finish_reason": "stop", "usage": USAGE, "citations": []}, False
        return
    chosen = orjson.loads(request.tool_choice_json or b'"auto"')
    named = chosen["function"]["name"] if isinstance(chosen, dict) else ""
    names = [tool.name for tool in request.client_tools if named in ("", tool.name)] if chosen != "none" else []
    yield "tool_call_started", {"call_id": "t1", "tool": "calculator", "version": "1.0.0", "arguments": {"expression": "6*7"}}, False
    yield "tool_call_completed", {"call_id": "t1", "tool": "calculator", "output": {"value": 42}, "duration_ms": 3}, False
    text = "Let me look."
    for word in ("Let me", " look."):
        yield "message_delta", {"text": word, "message_id": "m1"}, True
    yield "message_completed", {"text": text, "message_id": "m1"}, False
    end = {"output_text": text, "finish_reason": "stop", "usage": USAGE, "citations": []}
    if names:
        said = request.input[-1].text
        arguments = said if said.startswith("{") else "{}"
        calls = [{"tool_call_id": f"call_{run.run.run_id}_{at}", "name": name, "arguments": arguments} for at, name in enumerate(names)]
        yield "interrupt_raised", {"kind": "client_tools", "calls": calls}, False
        end |= {"finish_reason": "tool_calls", "client_tool_calls": calls}
    yield "run_finished", end, False


async def structured(run: Any) -> AsyncGenerator[Step, None]:
    """Says first what has not the form that was asked for, and then what the user said."""
    if run.said == REPHRASE:
        yield "run_finished", {"output_text": "Say it otherwise.", "finish_reason": REPHRASE, "usage": USAGE, "citations": []}, False
        return
    yield "message_delta", {"text": "Of course! ", "message_id": "m1"}, True
    yield "message_completed", {"text": "Of course! ", "message_id": "m1"}, False
    yield "message_delta", {"text": run.said, "message_id": "m2"}, True
    yield "message_completed", {"text": run.said, "message_id": "m2"}, False
    yield "run_finished", {"output_text": run.said, "finish_reason": "stop", "usage": USAGE, "citations": []}, False
