"""How native routes are declared: the guarded route class, the problems that any route may answer, and the answers in OpenAPI."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from services.gateway.edge.route import GuardedRoute


def problem_answer(text: str, schema: str = "Problem") -> dict[str, Any]:
    """A refusal of a route; `schema` is the name of one of the package's NAMED_MODELS."""
    return {"description": text, "content": {"application/problem+json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}


_STATUSES = {
    400: "The request is not valid.", 401: "No valid API key.", 403: "A scope is missing.", 404: "Not there, or not yours.",
    409: "Somebody else is at it.", 413: "The body is too large.", 415: "Unsupported media type.", 422: "The body is not valid.",
    429: "A limit is used up.", 500: "Internal error.", 502: "An upstream failed.", 503: "Not available now.", 504: "Not done in time.",
}  # fmt: skip
PROBLEMS: dict[int | str, dict[str, Any]] = {status: problem_answer(text) for status, text in _STATUSES.items()}
_OF_VISITORS = (400, 404, 422, 429, 500, 502, 503, 504)
_EVENT = {
    "type": "object",
    "description": "One server-sent event.",
    "properties": {
        "id": {"type": "string", "description": "seq of the event."},
        "event": {"type": "string", "description": "type of the event."},
        "data": {
            "type": "string", "contentMediaType": "application/json", "contentSchema": {"$ref": "#/components/schemas/EventOut"},
            "description": "The event as one line of JSON; /schemas/events/v1.json describes it with the data of each type.",
        },
    },
}  # fmt: skip
EVENTS = {"text/event-stream": {"schema": _EVENT}}


def native_router(tag: str) -> APIRouter:
    """A router of guarded routes."""
    return APIRouter(route_class=GuardedRoute, tags=[tag], responses=PROBLEMS)


def visitors_router(tag: str) -> APIRouter:
    """A router of routes that anybody may use, who have neither key nor scope and send nothing."""
    return APIRouter(route_class=GuardedRoute, tags=[tag], responses={status: PROBLEMS[status] for status in _OF_VISITORS})


def answers(model: type[BaseModel] | None, status: int = 200, text: str = "Done.", **content: Any) -> dict[int | str, dict[str, Any]]:
    """The success answer of a route; `content` adds media types."""
    described: dict[str, Any] = {"description": text}
    if model is not None:
        described["model"] = model
    if content:
        described["content"] = content["content"]
    return {status: described}
