"""Exceptions of FastAPI, Starlette and our own, turned into answers."""

from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from services.common.errors import MAX_VIOLATIONS, BulkheadError, FieldViolation, Internal, InvalidInput, NotFound
from services.gateway.edge.problems import internal, is_openai, refusal
from services.gateway.refusals import InvalidBody, MethodNotAllowed

_PLACES = ("body", "query", "path", "header")


def install(app: FastAPI) -> None:
    """Registers the handlers. What none of them knows is answered as an internal error and raised on to the edge, which logs it."""
    app.add_exception_handler(BulkheadError, _domain)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unforeseen)


async def _domain(request: Request, error: Any) -> Response:
    return refusal(request, error)


async def _unforeseen(request: Request, error: Any) -> Response:
    return internal(request)


async def _validation(request: Request, error: Any) -> Response:
    return refusal(request, invalid(error.errors(), openai=is_openai(request.url.path)))


async def _http(request: Request, error: Any) -> Response:
    headers = error.headers or {}
    known: BulkheadError
    if error.status_code == 404:
        known = NotFound("there is no such route", reason="ROUTE_NOT_FOUND")
    elif error.status_code == 405:
        known = MethodNotAllowed("the route does not take this method", metadata={"allow": headers.get("Allow", "")})
    elif error.status_code < 500:
        known = InvalidInput("the request is not valid")
    else:
        known = Internal("internal error")
    return refusal(request, known)


def invalid(errors: list[Any], *, openai: bool = False) -> InvalidInput:
    """The domain error for pydantic's findings; it names the fields and never repeats a rejected value."""
    violations = [FieldViolation(_field(e["loc"], openai), e["msg"]) for e in errors[:MAX_VIOLATIONS]]
    message = f"{violations[0].field}: {violations[0].description}" if violations else "the request is not valid"
    if len(errors) > 1:
        message += f" (and {len(errors) - 1} more)"
    in_body = bool(errors) and errors[0]["loc"][:1] == ("body",)
    return (InvalidBody if in_body and not openai else InvalidInput)(message, violations=violations)


def _field(location: tuple, openai: bool) -> str:
    # Where it stands comes first; behind it, a field may have one of these names itself.
    parts = location[1:] if len(location) > 1 and location[0] in _PLACES else location
    if not openai:
        return ".".join(str(p) for p in parts)[:256]
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else str(part))
    return text[:256]
