"""BatchService: the same batches as over HTTP, their results included."""

import grpc
import orjson
import pytest
from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound

LOCAL = {"provider": False}


async def test_grpc_is_equal_in_power(gateway, line, identities):
    async with gateway(LOCAL) as g:
        async with grpc.aio.insecure_channel(g.address) as channel:
            stub = llm_pb2_grpc.BatchServiceStub(channel)
            token = [("authorization", f"Bearer {identities.token()}")]

            def call(method, request):
                return method(request, metadata=token, timeout=20)

            content = b"\n".join(orjson.dumps(entry) for entry in [line("a", "say exactly: hello"), line("b", "x", max_tokens=-1)])
            request = llm_pb2.CreateBatchRequest(
                input_jsonl=content, endpoint="/v1/chat/completions", metadata={"a": "b"}, idempotency_key="k"
            )
            made = (await call(stub.CreateBatch, request)).batch
            assert made.status == "validating"
            assert (await call(stub.CreateBatch, request)).batch.batch_id == made.batch_id

            async def ended():
                found = (await call(stub.GetBatch, llm_pb2.GetBatchRequest(batch_id=made.batch_id))).batch
                return found if found.status == "completed" else None

            done = await testing.eventually_async(ended, "the batch ends")
            assert (done.total, done.completed, done.failed) == (2, 1, 1)
            assert done.metadata == {"a": "b"}
            assert done.usage.cost_microusd > 0
            assert done.HasField("ended_at")
            over_http = await g.client.batches.retrieve(made.batch_id)
            answers, errors = await g.outputs(over_http)
            assert [entry["custom_id"] for entry in answers + errors] == ["a", "b"]
            for failed, expected in ((False, answers), (True, errors)):
                pieces = stub.ReadBatchResults(
                    llm_pb2.ReadBatchResultsRequest(batch_id=made.batch_id, errors=failed), metadata=token, timeout=20
                )
                content = b"".join([piece.jsonl async for piece in pieces])
                assert [orjson.loads(entry) for entry in content.splitlines()] == expected
            assert_shown_alike(over_http.to_dict(mode="json"), done)
            files = [file.id async for file in g.client.files.list()]
            listed = await call(stub.ListBatches, llm_pb2.ListBatchesRequest(page_size=1))
            assert [batch.batch_id for batch in listed.batches] == [made.batch_id]
            assert listed.next_page_token == ""
            for method, request, error in [
                (stub.GetBatch, llm_pb2.GetBatchRequest(batch_id="batch_x"), NotFound),
                (stub.CancelBatch, llm_pb2.CancelBatchRequest(batch_id=made.batch_id), Conflict),
                (stub.CreateBatch, llm_pb2.CreateBatchRequest(endpoint="/v1/chat/completions"), InvalidInput),
                (stub.CreateBatch, llm_pb2.CreateBatchRequest(input_jsonl=b"x", input_file_id="y", endpoint="/x"), InvalidInput),
                (
                    stub.CreateBatch,
                    llm_pb2.CreateBatchRequest(input_jsonl=b"{}", endpoint="/v1/chat/completions", results_kept=Duration(seconds=9)),
                    InvalidInput,
                ),
                (stub.ListBatches, llm_pb2.ListBatchesRequest(page_size=1000), InvalidInput),
                (
                    stub.CreateBatch,
                    llm_pb2.CreateBatchRequest(input_jsonl=b"{}", endpoint="/v1/chat/completions", idempotency_key="k"),
                    IdempotencyMismatch,
                ),
            ]:
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call(method, request)
                assert raised.value.code() == error.code
            # What was refused has left nothing behind.
            assert [file.id async for file in g.client.files.list()] == files


def assert_shown_alike(over_http, batch):
    """Each member that HTTP shows of a batch stands in its message."""
    told = {
        "id": batch.batch_id, "object": "batch", "endpoint": batch.endpoint, "model": batch.model, "input_file_id": batch.input_file_id,
        "completion_window": f"{batch.completion_window.seconds // 3600}h", "status": batch.status, "metadata": dict(batch.metadata),
        "output_file_id": batch.output_file_id, "error_file_id": batch.error_file_id, "created_at": batch.created_at.seconds,
        "expires_at": batch.expires_at.seconds, "in_progress_at": batch.in_progress_at.seconds,
        "finalizing_at": batch.finalizing_at.seconds, "completed_at": batch.ended_at.seconds,
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "usage": {
            "input_tokens": batch.usage.input_tokens, "input_tokens_details": {"cached_tokens": batch.usage.cached_input_tokens},
            "output_tokens": batch.usage.output_tokens, "output_tokens_details": {"reasoning_tokens": batch.usage.reasoning_tokens},
            "total_tokens": batch.usage.input_tokens + batch.usage.output_tokens, "cost_microusd": batch.usage.cost_microusd,
        },
    }  # fmt: skip
    assert {key: value for key, value in over_http.items() if value is not None} == told
