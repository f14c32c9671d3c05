"""Lines of batches in a dialect: requests as the dialect says them, answers and errors as the line's own route would give them."""

from collections.abc import Mapping
from typing import Any, Protocol

from opentelemetry import context as otel_context

from services.llm_gateway.batches.provider_port import LineResult
from services.llm_gateway.chat import Answer
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.model_port.errors import OPENAI
from services.llm_gateway.ports import Attempt, Limits, WireRequest
from services.llm_gateway.registry import Deployment
from services.llm_gateway.verdicts import error_of

# What is the request's own fault is told; any other failure says nothing of it, and the line is executed here.
TOLD = frozenset({FailureClass.CALLER_FAULT, FailureClass.CONTEXT_WINDOW, FailureClass.CONTENT_POLICY})
_NO_LIMITS = Limits(0.0, 0.0, 0.0, 0.0, 0.0)


class ChatDialect(Protocol):
    """What a batch needs of a dialect."""

    def chat(self, attempt: Attempt, *, stream: bool) -> WireRequest:
        """The request of a completion. Raises UpstreamFault for what cannot be said."""
        ...

    def read_answer(self, raw: bytes) -> Answer:
        """The completion of a body. Raises UpstreamFault."""
        ...


def attempt_at(deployment: Deployment, body: Mapping[str, Any]) -> Attempt:
    """An attempt for the sake of what it would send."""
    return Attempt(deployment, body, _NO_LIMITS, 1, otel_context.get_current())


def plain_call(dialect: ChatDialect, deployment: Deployment) -> WireRequest:
    """The least call of a deployment: its address, its credentials and headers are those of a batch, too."""
    body = {"model": deployment.model, "messages": [{"role": "user", "content": "."}], "max_tokens": 1}
    return dialect.chat(attempt_at(deployment, body), stream=False)


def said(dialect: ChatDialect, deployment: Deployment, body: Mapping[str, Any]) -> bytes | None:
    """The request in the dialect; None where it cannot be said."""
    try:
        return dialect.chat(attempt_at(deployment, body), stream=False).body
    except UpstreamFault:
        return None


def answered(
    dialect: ChatDialect, deployment: Deployment, number: int, raw: bytes, usage: Mapping[str, Any] | None, request_id: str
) -> LineResult:
    """The result for a body that the provider takes money for."""
    try:
        answer = dialect.read_answer(raw)
    except UpstreamFault as fault:
        return failed(deployment, number, fault.failure, request_id, usage=usage, billed=True)
    return LineResult(number, 200, answer.raw, request_id, answer.usage, billed=True)


def failed(
    deployment: Deployment,
    number: int,
    failure: Failure,
    request_id: str,
    *,
    usage: Mapping[str, Any] | None = None,
    billed: bool = False,
) -> LineResult:
    """The result for a failure."""
    if failure.failure_class not in TOLD:
        return LineResult(number, usage=usage, billed=billed)
    error = error_of(failure, deployment.group)
    return LineResult(number, OPENAI.status(error), OPENAI.of(error), request_id, usage, billed)
