"""Batches as callers see them, through the openai SDK and over gRPC, executed by the gateway itself."""

import asyncio

import openai
import pytest
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from openai.types import Batch

from services.common import testing
from services.common.accounts import LimitSet
from services.common.errors import InvalidInput, NotFound


async def test_a_batch_is_answered_line_by_line_in_the_order_of_its_input(gateway, line, sim):
    async with gateway() as g:
        lines = [line(f"line-{n}", f"say exactly: answer number {n}") for n in range(30)]
        batch = await g.begun(lines, metadata={"purpose": "test"})
        assert (batch.object, batch.status, batch.endpoint) == ("batch", "validating", "/v1/chat/completions")
        done = await g.ended(batch)
        assert done.status == "completed", done
        assert done.request_counts.model_dump() == {"total": 30, "completed": 30, "failed": 0}
        assert done.metadata == {"purpose": "test"}
        assert done.error_file_id is None
        assert done.model == "main"
        assert done.expires_at - done.created_at == 24 * 3600
        assert done.created_at <= done.in_progress_at <= done.finalizing_at <= done.completed_at
        answers, errors = await g.outputs(done)
        assert errors == []
        assert [answer["custom_id"] for answer in answers] == [f"line-{n}" for n in range(30)]
        for number, answer in enumerate(answers):
            assert answer["error"] is None
            assert answer["response"]["status_code"] == 200
            assert answer["response"]["body"]["choices"][0]["message"]["content"] == f"answer number {number}"
        billed = sum(entry["billed_nanousd"] for entry in await sim.log())
        assert sum(entry["cost_nanousd"] for entry in await g.lines()) == billed
        assert done.usage.total_tokens == sum(answer["response"]["body"]["usage"]["total_tokens"] for answer in answers)
        assert done.usage.model_extra["cost_microusd"] == -(-billed // 1000)
        Batch.model_validate(done.model_dump())
        # Nothing is left of the work beside its files.
        assert not list(g.folder.glob("files/*/work/*"))
