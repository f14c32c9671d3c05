"""Lines of output and error files, as OpenAI writes them. Pure."""

import uuid

import orjson

from services.common.errors import BulkheadError, DeadlineExceeded, Overloaded, QuotaExceeded, UpstreamFailed
from services.llm_gateway.batches.ports import Answered

EXPIRED_LINE = {"code": "batch_expired", "message": "This request could not be executed before the completion window expired."}


def request_name() -> str:
    """An id of one request of a batch."""
    return f"batch_req_{uuid.uuid4().hex}"


def answered_line(custom_id: str, answered: Answered) -> bytes:
    """The result of a line that a route, or a provider, has answered."""
    body = answered.body
    if b"\n" in body or b"\r" in body:
        body = orjson.dumps(orjson.loads(body))
    response = {"status_code": answered.status, "request_id": answered.request_id, "body": orjson.Fragment(body)}
    return orjson.dumps({"id": request_name(), "custom_id": custom_id, "response": response, "error": None})


def expired_line(custom_id: str) -> bytes:
    """The result of a line whose time has run out."""
    return orjson.dumps({"id": request_name(), "custom_id": custom_id, "response": None, "error": EXPIRED_LINE})


def waits(error: BulkheadError | None) -> bool:
    """Whether the line goes on waiting: what refuses it will pass with time."""
    if isinstance(error, QuotaExceeded):
        # Without a time, the request is larger than the limit itself.
        return error.retry_after_s is not None
    return isinstance(error, Overloaded)


def repeats(error: BulkheadError | None) -> bool:
    """Whether the line is worth a few more tries: something outside failed, after all retries of the call itself."""
    return isinstance(error, UpstreamFailed | DeadlineExceeded)
