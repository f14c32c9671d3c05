"""Documents, through the memory service."""

from collections.abc import Sequence

from bulkhead.memory.v1 import memory_pb2, memory_pb2_grpc

from services.common.errors import BulkheadError, DeadlineExceeded, InvalidInput, NotFound, PermissionDenied, QuotaExceeded, Unauthenticated
from services.common.rpc.channel import Dialer
from services.tool_executor.failures import ToolFailure
from services.tool_executor.outcomes import Citation
from services.tool_executor.ports import FoundPassage


class MemoryDocuments:
    """Implements ports.Documents with the caller's own token, so that the memory service decides what may be seen."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._stub: memory_pb2_grpc.DocumentServiceStub | None = None

    async def search(self, query: str, limit: int) -> Sequence[FoundPassage]:
        """As the port says."""
        if self._stub is None:
            self._stub = memory_pb2_grpc.DocumentServiceStub(self._dialer.channel("memory"))
        try:
            answer = await self._stub.SearchDocuments(memory_pb2.SearchDocumentsRequest(query=query, page_size=limit))
        except LookupError as error:
            raise ToolFailure(
                "transport.unreachable", "The document search is not set up here.", developer_message="no address of the memory service"
            ) from error
        except BulkheadError as error:
            raise _failure(error) from error
        return [_passage(p, number) for number, p in enumerate(answer.passages, start=1)]


def _passage(passage: memory_pb2.Passage, number: int) -> FoundPassage:
    c = passage.citation
    return FoundPassage(
        passage.text,
        Citation(f"d{number}", c.document_id, c.document_version, c.title, c.char_start, c.char_end, c.content_hash, c.heading),
    )


def _failure(error: BulkheadError) -> ToolFailure:
    match error:
        case _ if error.reason == "UNREACHABLE":
            code, message = "transport.unreachable", "The document search cannot be reached."
        case DeadlineExceeded():
            code, message = "transport.timeout", "The document search did not answer in time."
        case InvalidInput():
            code, message = "upstream.bad_request", "The document search does not accept this query."
        case PermissionDenied() | Unauthenticated():
            code, message = "auth.scope_missing", "The caller may not read documents."
        case NotFound():
            code, message = "upstream.not_found", "There are no such documents."
        case QuotaExceeded():
            code, message = "upstream.rate_limited", "The document search is used too often."
        case _:
            code, message = "upstream.server", "The document search failed."
    return ToolFailure(code, message, developer_message=error.reason, retry_after_s=error.retry_after_s)
