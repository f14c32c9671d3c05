"""What every route may refuse with: one answer a status and surface, with examples that are made as the answers themselves are."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from opentelemetry import trace

from services.common.errors import (
    BudgetExceeded,
    BulkheadError,
    Conflict,
    DeadlineExceeded,
    FieldViolation,
    IdempotencyMismatch,
    Internal,
    InvalidInput,
    NotFound,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    Unauthenticated,
    UpstreamFailed,
)
from services.gateway.edge.document._things import SNAPSHOT
from services.gateway.edge.exchange import Exchange
from services.gateway.edge.problems import PROBLEM, ag_ui_error, is_ag_ui, is_openai, openai_error, problem
from services.gateway.refusals import BodyTimeout, BodyTooLarge, InvalidBody, RangeNotSatisfiable, ResumeGap, UnsupportedMediaType

_PATH = "/v1/threads/support-4711/runs"
_REQUEST_ID, _TRACE_ID = "4f9d2c5b0e6a4b7f", "4bf92f3577b34da6a3ce929d0e0e4736"
GONE = 410
_STEPS = "Input should be a valid integer"


def _errors() -> Sequence[BulkheadError]:
    policy = {"policy": "requests_per_minute", "violated_policies": "requests_per_minute"}
    return (
        InvalidInput.field("limit", "Input should be less than or equal to 1000"),
        Unauthenticated("an API key is needed: `Authorization: Bearer bh_…`", reason="API_KEY_MISSING"),
        PermissionDenied("the key lacks the scope runs:write", reason="SCOPE_MISSING", metadata={"missing_scopes": "runs:write"}),
        NotFound("there is no such thread", reason="THREAD_NOT_FOUND"),
        Conflict("a call with this idempotency key is still at work", reason="IDEMPOTENCY_IN_FLIGHT", retry_after_s=4.2),
        ResumeGap(5000, SNAPSHOT),
        BodyTooLarge("the body is larger than 4194304 bytes", metadata={"limit": "4194304"}),
        UnsupportedMediaType("the body must be application/json"),
        BodyTimeout("nothing of the body came for 20 s, or all of it took longer than 300 s"),
        RangeNotSatisfiable(18231),
        InvalidBody(f"limits.max_steps: {_STEPS}", violations=[FieldViolation("limits.max_steps", _STEPS)]),
        IdempotencyMismatch("the idempotency key was used before with another body"),
        QuotaExceeded("60 requests a minute are allowed", metadata=policy, retry_after_s=12.0),
        BudgetExceeded("the budget of this month is spent"),
        Internal("internal error 9b1deb4d3b7d", metadata={"error_id": "9b1deb4d3b7d"}),
        UpstreamFailed("the memory service does not answer as it should"),
        Overloaded("the orchestrator is not reachable now", reason="UNREACHABLE", metadata={"service": "orchestrator"}),
        DeadlineExceeded("the answer took longer than the time that was given"),
    )


def _problem(error: BulkheadError) -> dict[str, Any]:
    return problem(error, Exchange(_REQUEST_ID, _TRACE_ID, trace.INVALID_SPAN, {}), _PATH)


def _openai(error: BulkheadError) -> dict[str, Any]:
    return {"error": openai_error(error)}


_FORMS: Mapping[str, Callable[[BulkheadError], dict[str, Any]]] = {"Problem": _problem, "OpenAIError": _openai, "RunError": ag_ui_error}


def form_of(path: str) -> str:
    """The form in which a path refuses: a key of the examples, and the beginning of the names of answers."""
    return "OpenAIError" if is_openai(path) else "RunError" if is_ag_ui(path) else "Problem"


class Refusals:
    """The answers with a status of 400 and above, each kept once under `components`."""

    def __init__(self, headers: Callable[..., dict[str, Any]]) -> None:
        """`headers` is headers_of."""
        self._headers = headers
        self.responses: dict[str, Any] = {}
        self.examples: dict[str, Any] = {}

    def reference(self, path: str, status: int, described: dict[str, Any], *, limited: bool = True) -> dict[str, Any]:
        """What stands in the document for the answer `described` of a path: a reference, or, where another answer of that name is there
        already, the answer itself. `limited` where the caller is known, and with them their limits."""
        form = form_of(path)
        answer = {**described, "headers": self._headers(status, guarded=limited)}
        media = PROBLEM if form == "Problem" else "application/json"
        if media in described.get("content", {}):
            shown = {error.reason: self._example(form, error) for error in _errors() if error.http_status == status}
            answer["content"] = {media: {**described["content"][media], "examples": shown}}
        name = f"{form}{status}"
        if status == GONE or not limited:
            # Told by the routes of a log alone, with more members than any other; or of callers who are nobody.
            return answer
        if self.responses.setdefault(name, answer) != answer:
            return answer
        return {"$ref": f"#/components/responses/{name}"}

    def _example(self, form: str, error: BulkheadError) -> dict[str, Any]:
        name = f"{form}{error.http_status}.{error.reason}"
        self.examples.setdefault(name, {"value": _FORMS[form](error)})
        return {"$ref": f"#/components/examples/{name}"}
