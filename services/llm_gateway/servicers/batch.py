"""BatchService: protos to domain and back."""

from collections.abc import AsyncIterator

from bulkhead.llm.v1 import llm_pb2, llm_pb2_grpc
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import IdempotencyMismatch, InvalidInput, NotFound
from services.common.idempotency import check_key
from services.common.identity import Principal
from services.common.rpc.context import principal
from services.llm_gateway.batches.files import Files, FileTerms, derived_name, file_name
from services.llm_gateway.batches.records import BatchRecord
from services.llm_gateway.batches.service import MOST_LISTED, Batches
from services.llm_gateway.proto_answers import usage_message
from services.llm_gateway.request_rules import SCOPE

MAX_INPUT_BYTES = 3 * 1024 * 1024
DEFAULT_PAGE = 20


class BatchServicer(llm_pb2_grpc.BatchServiceServicer):
    """Serves batches over gRPC. Larger inputs and all results go by files, over the model port."""

    def __init__(self, batches: Batches, files: Files) -> None:
        self._batches = batches
        self._files = files

    async def CreateBatch(self, request, context):
        """Begins a batch over the input that the request holds, or over a file."""
        caller = _caller()
        if bool(request.input_jsonl) == bool(request.input_file_id):
            raise InvalidInput.field("input_jsonl", "exactly one of input_jsonl and input_file_id is required")
        check_key(request.idempotency_key)
        window = _window(request.completion_window.seconds) if request.HasField("completion_window") else "24h"
        file_id, made = (request.input_file_id, False) if request.input_file_id else await self._uploaded(caller, request)
        body = {
            "endpoint": request.endpoint,
            "input_file_id": file_id,
            "completion_window": window,
            "metadata": dict(request.metadata) or None,
        }
        if request.HasField("results_kept"):
            body["output_expires_after"] = {"anchor": "created_at", "seconds": request.results_kept.seconds}
        try:
            record = await self._batches.create(caller, body, idempotency_key=request.idempotency_key, own_key=False)
        except (InvalidInput, IdempotencyMismatch):
            if made:
                await self._files.delete(caller.tenant, file_id)
            raise
        return llm_pb2.CreateBatchResponse(batch=message_of(record))

    async def GetBatch(self, request, context):
        """One batch."""
        return llm_pb2.GetBatchResponse(batch=message_of(await self._batches.get(_caller().tenant, request.batch_id)))

    async def ListBatches(self, request, context):
        """A page of batches; its token is the last id of the page before."""
        if not 0 <= request.page_size <= MOST_LISTED:
            raise InvalidInput.field("page_size", f"must be 1 to {MOST_LISTED}, or 0 for {DEFAULT_PAGE}")
        page = await self._batches.list(_caller().tenant, after=request.page_token, limit=request.page_size or DEFAULT_PAGE)
        token = page.items[-1].id if page.more else ""
        return llm_pb2.ListBatchesResponse(batches=[message_of(record) for record in page.items], next_page_token=token)

    async def CancelBatch(self, request, context):
        """Ends a batch. Doing it again is harmless, so the key needs no record."""
        return llm_pb2.CancelBatchResponse(batch=message_of(await self._batches.cancel(_caller().tenant, request.batch_id)))

    async def ReadBatchResults(self, request, context) -> AsyncIterator[llm_pb2.ReadBatchResultsResponse]:
        """The output file, or the file of failed lines, piece by piece."""
        tenant = _caller().tenant
        record = await self._batches.get(tenant, request.batch_id)
        file_id = record.error_file_id if request.errors else record.output_file_id
        if not file_id:
            raise NotFound("the batch has no such results, or none yet", reason="FILE_NOT_FOUND", metadata={"batch_status": record.status})
        _, pieces = await self._files.content(tenant, file_id)
        async for piece in pieces:
            yield llm_pb2.ReadBatchResultsResponse(jsonl=piece)

    async def _uploaded(self, caller: Principal, request: llm_pb2.CreateBatchRequest) -> tuple[str, bool]:
        """The id of a file with the request's input, and whether it was made now."""
        content = bytes(request.input_jsonl)
        if len(content) > MAX_INPUT_BYTES:
            raise InvalidInput.field("input_jsonl", f"must be at most {MAX_INPUT_BYTES} bytes; upload a file")
        # The same key names the same file, so that a repeat leaves no second one. Its content belongs to the name as well: another
        # content under the same key is another file, and so another batch, which is then refused.
        key = request.idempotency_key
        file_id = derived_name("file-", caller.tenant, caller.user, key, derived_name("", content.hex())) if key else file_name()
        try:
            return (await self._files.get(caller.tenant, file_id)).id, False
        except NotFound:
            return (await self._files.create(caller, "input.jsonl", _pieces(content), FileTerms, file_id=file_id)).id, True


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _window(seconds: int) -> str:
    return f"{seconds // 3600}h" if seconds % 3600 == 0 else f"{seconds}s"


def _caller() -> Principal:
    caller = principal()
    caller.require(SCOPE)
    return caller


def message_of(record: BatchRecord) -> llm_pb2.Batch:
    """A batch as a message."""
    progress = record.progress
    message = llm_pb2.Batch(
        batch_id=record.id,
        status=record.status,
        endpoint=record.spec.endpoint,
        input_file_id=record.spec.input_file_id,
        output_file_id=record.output_file_id,
        error_file_id=record.error_file_id,
        total=progress.total,
        completed=progress.completed,
        failed=progress.failed,
        created_at=_time(record.created_ms),
        expires_at=_time(record.expires_ms),
        usage=usage_message(progress.usage, progress.completed),
        problems=[f"line {e['line']}: {e['message']}" if e.get("line") else str(e["message"]) for e in record.errors],
        metadata=record.spec.metadata or {},
        model=record.model,
    )
    message.completion_window.FromSeconds(record.spec.window_s)
    for error in record.errors:
        message.errors.add(code=error["code"], message=error["message"], line=error.get("line") or 0, param=error.get("param") or "")
    for status in ("in_progress", "finalizing", "cancelling"):
        if status in record.times_ms:
            getattr(message, f"{status}_at").CopyFrom(_time(record.times_ms[status]))
    if record.ended:
        message.ended_at.CopyFrom(_time(record.times_ms[record.status]))
    return message


def _time(milliseconds: int) -> Timestamp:
    made = Timestamp()
    made.FromMilliseconds(milliseconds)
    return made
