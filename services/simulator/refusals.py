"""The errors this server answers with, in the shape and with the codes that OpenAI clients branch on."""

from collections.abc import Mapping
from enum import StrEnum

import orjson

_TYPE_BY_STATUS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
}


class Failure(StrEnum):
    """What went wrong, where the dialects tell it in words of their own."""

    PLAIN = "plain"
    RATE_LIMIT = "rate_limit"
    QUOTA = "quota"
    CONTEXT = "context"
    POLICY = "policy"
    BAD_KEY = "bad_key"


def error_type(status: int) -> str:
    """The `type` of the error body for an HTTP status."""
    return _TYPE_BY_STATUS.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_body(message: str, *, type: str, code: str | None, param: str | None = None) -> bytes:
    """`{"error":{message,type,param,code}}` as JSON bytes."""
    return orjson.dumps({"error": {"message": message, "type": type, "param": param, "code": code}})


class Refused(Exception):
    """A request that is answered with an error instead of a completion.

    `status` is the HTTP status; `code` and `param` are OpenAI's machine-readable hints, None where it has none. `retry_after_s` is a
    wait that is told in the body where the dialect has a place for it.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        type: str | None = None,
        kind: Failure = Failure.PLAIN,
        retry_after_s: float | None = None,
    ):
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.param = param
        self.type = type or error_type(status)
        self.kind = kind
        self.retry_after_s = retry_after_s

    def body(self) -> bytes:
        """The JSON error body in OpenAI's form."""
        return error_body(self.message, type=self.type, code=self.code, param=self.param)
