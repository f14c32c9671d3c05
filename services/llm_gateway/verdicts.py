"""What a caller is told when a model call failed: from the failure class to a domain error of the one table."""

from services.common.errors import BulkheadError, InvalidInput, Overloaded, UpstreamFailed
from services.llm_gateway.failures import Failure, FailureClass


def error_of(failure: Failure, model: str) -> BulkheadError:
    """The domain error of a failure.

    Only what is the caller's own fault repeats the provider's words. Dead credentials and empty accounts of ours answer
    as a failed upstream, so that nobody looks for the fault in the caller's key.
    """
    metadata = {"failure_class": failure.failure_class.value, "model": model}
    if failure.status:
        metadata["upstream_status"] = str(failure.status)
    if failure.code:
        metadata["upstream_code"] = failure.code
    match failure.failure_class:
        case FailureClass.CALLER_FAULT:
            if failure.param:
                metadata["param"] = failure.param
            return InvalidInput(failure.message or "the provider refused the request", reason="REQUEST_REFUSED", metadata=metadata)
        case FailureClass.CONTEXT_WINDOW:
            message = failure.message or "the prompt is longer than the model's context"
            return InvalidInput(message, reason="CONTEXT_LENGTH_EXCEEDED", metadata=metadata)
        case FailureClass.CONTENT_POLICY:
            message = failure.message or "the provider refused the content"
            return InvalidInput(message, reason="CONTENT_POLICY_VIOLATION", metadata=metadata)
        case FailureClass.RATE_LIMITED:
            message = "the model's provider is at its rate limit"
            return Overloaded(message, reason="UPSTREAM_RATE_LIMITED", retry_after_s=failure.retry_after_s or 1.0, metadata=metadata)
        case FailureClass.SATURATED:
            message = "the model is at its configured rate limit"
            return Overloaded(message, reason="UPSTREAM_RATE_LIMITED", retry_after_s=failure.retry_after_s or 1.0, metadata=metadata)
        case FailureClass.BREAKER_OPEN:
            message = "the model fails and is left alone for a while"
            return Overloaded(message, reason="UPSTREAM_UNAVAILABLE", retry_after_s=failure.retry_after_s or 1.0, metadata=metadata)
        case FailureClass.UNFIT:
            message = failure.message or "the model cannot take this request"
            if failure.param:
                metadata["param"] = failure.param
            return InvalidInput(message, reason=failure.code or "CAPABILITY_MISSING", metadata=metadata)
        case FailureClass.CREDENTIAL | FailureClass.QUOTA:
            message = "the gateway's credentials for this model are used up"
            return UpstreamFailed(message, reason="UPSTREAM_CREDENTIALS_EXHAUSTED", metadata=metadata)
        case FailureClass.CUT | FailureClass.STALLED:
            return UpstreamFailed("the model's answer broke off", metadata=metadata)
        case FailureClass.TIMEOUT_CONNECT | FailureClass.TIMEOUT_FIRST_TOKEN | FailureClass.TIMEOUT_TOTAL:
            return UpstreamFailed("the model did not answer in time", reason="UPSTREAM_TIMEOUT", metadata=metadata)
        case FailureClass.MODEL_GONE:
            return UpstreamFailed("the provider does not have this model", reason="UPSTREAM_MODEL_GONE", metadata=metadata)
    return UpstreamFailed("the model cannot be reached or failed", metadata=metadata)
