"""What agents do in the gateway's tests: async generators of (type, data, provisional)."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any

from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway import fake_clients

Step = tuple[str, dict[str, Any], bool]
Script = Callable[["FakeRun"], AsyncGenerator[Step, None]]
USAGE = {"input_tokens": 7, "output_tokens": 5, "cost_microusd": 12, "model_calls": 1, "tool_calls": 0}


@dataclass
class FakeRun:
    """A run at work."""

    request: pb.CreateRunRequest
    run: pb.Run
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def said(self) -> str:
        """The last message of the user."""
        return self.request.input[-1].text


async def echo(run: FakeRun) -> AsyncGenerator[Step, None]:
    """Says back what the user said, word by word."""
    text = f"You said: {run.said}"
    for word in text.split(" "):
        yield "message_delta", {"text": word if word == "You" else f" {word}", "message_id": "m1"}, True
    yield "message_completed", {"text": text, "message_id": "m1"}, False
    yield "run_finished", {"output_text": text, "finish_reason": "stop", "usage": USAGE, "citations": []}, False


async def tools(run: FakeRun) -> AsyncGenerator[Step, None]:
    """Calls a tool, warns, cites."""
    yield "tool_call_started", {"call_id": "t1", "tool": "calculator", "version": "1.0.0", "arguments": {"expression": "6*7"}}, False
    yield "tool_call_completed", {"call_id": "t1", "tool": "calculator", "output": {"value": 42}, "duration_ms": 3}, False
    yield "warning", {"code": "memory_unavailable", "capability_lost": "long_term_memory", "user_message": "I cannot remember."}, False
    yield "message_delta", {"text": "It is 42 [c1].", "message_id": "m1"}, True
    cited = {"citation_id": "c1", "document_id": "d", "title": "README.md", "heading": "Sums", "char_start": 0, "char_end": 9}
    yield "citation", cited, False
    yield "usage", {"step": 1, "model": "assistant-model", "provider": "simulator", "input_tokens": 7, "output_tokens": 5}, False
    yield "run_finished", {"output_text": "It is 42 [c1].", "finish_reason": "stop", "usage": USAGE, "citations": [cited]}, False


async def fail(run: FakeRun) -> AsyncGenerator[Step, None]:
    """Fails before any text, for the reason that the user names."""
    yield "run_failed", {"error": {"reason": run.said, "message": "It failed.", "retryable": run.said == "OVERLOADED"}, "usage": {}}, False


async def fail_late(run: FakeRun) -> AsyncGenerator[Step, None]:
    """Fails after some text."""
    yield "message_delta", {"text": "Well, ", "message_id": "m1"}, True
    yield "run_failed", {"error": {"reason": "UPSTREAM_FAILED", "message": "It broke.", "retryable": True}, "usage": {}}, False


async def hang(run: FakeRun) -> AsyncGenerator[Step, None]:
    """Says a word and works until it is cancelled."""
    yield "message_delta", {"text": "Working", "message_id": "m1"}, True
    await run.cancelled.wait()
    yield "run_cancelled", {"output_text": "Working", "usage": USAGE}, False


async def silent(run: FakeRun) -> AsyncGenerator[Step, None]:
    """Works without a word until it is cancelled."""
    await run.cancelled.wait()
    yield "run_cancelled", {"output_text": "", "usage": {}}, False


async def takeover(run: FakeRun) -> AsyncGenerator[Step, None]:
    """The first owner dies in the middle of its text; the second writes it again."""
    yield "message_delta", {"text": "The answer ", "message_id": "m1"}, True
    yield "message_delta", {"text": "is fo", "message_id": "m1"}, True
    yield "attempt_superseded", {"from_seq": run.run.first_seq + 2}, False
    yield "message_delta", {"text": "The answer is forty", "message_id": "m2"}, True
    yield "message_delta", {"text": "-two.", "message_id": "m2"}, True
    yield "run_finished", {"output_text": "The answer is forty-two.", "finish_reason": "stop", "usage": USAGE, "citations": []}, False


async def slow(run: FakeRun) -> AsyncGenerator[Step, None]:
    """Forty words, with a breath after each, so that a test can break in."""
    words = [f"w{number} " for number in range(40)]
    for word in words:
        yield "message_delta", {"text": word, "message_id": "m1"}, True
        await asyncio.sleep(0.02)
    yield "run_finished", {"output_text": "".join(words), "finish_reason": "stop", "usage": USAGE, "citations": []}, False


async def flood(run: FakeRun) -> AsyncGenerator[Step, None]:
    """More text than any socket buffers."""
    for _ in range(200):
        yield "message_delta", {"text": "x" * 100_000, "message_id": "m1"}, True
    await run.cancelled.wait()


SCRIPTS: dict[str, Script] = {
    "assistant": echo, "tools": tools, "fail": fail, "fail_late": fail_late, "hang": hang, "silent": silent, "takeover": takeover,
    "slow": slow, "flood": flood, "caller": fake_clients.caller, "structured": fake_clients.structured,
}  # fmt: skip
