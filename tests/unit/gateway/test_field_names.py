"""Whatever a service calls a field, an answer of a native route names what the route has, or nothing."""

import ast
from unittest.mock import MagicMock

import pytest
from bulkhead.memory.v1 import memory_pb2
from bulkhead.orchestrator.v1 import admin_pb2, approvals_pb2, hooks_pb2, orchestrator_pb2, schedules_pb2, webhooks_pb2
from bulkhead.tools.v1 import tools_pb2
from fastapi import FastAPI

from services.common.errors import FieldViolation, InvalidInput
from services.common.testing import ROOT
from services.gateway.edge.naming import HEADERS, as_the_route_says, named
from services.gateway.edge.route import GuardedRoute
from services.gateway.surfaces.native import routers
from services.gateway.surfaces.native.models import DocumentCreate

PROTOS = (orchestrator_pb2, approvals_pb2, admin_pb2, schedules_pb2, webhooks_pb2, hooks_pb2, memory_pb2, tools_pb2)
RAISING = {"field": 0, "FieldViolation": 0, "checked_id": 0}


@pytest.fixture(scope="module")
def native():
    return routers(MagicMock())


@pytest.fixture(scope="module")
def document(native):
    made = FastAPI()
    for router in native:
        made.include_router(router)
    return made.openapi()


def routes_of(native):
    return [route for router in native for route in router.routes if isinstance(route, GuardedRoute) and route.include_in_schema]


def documented(document, route):
    """The names at the top of a request, as the OpenAPI document has them."""
    (method,) = route.methods
    operation = document["paths"][route.path_format][method.lower()]
    found = {parameter["name"] for parameter in operation.get("parameters", ())}
    for content in operation.get("requestBody", {}).get("content", {}).values():
        for schema in (content["schema"], *content["schema"].get("anyOf", ())):
            if "$ref" in schema:
                # That of a document is named by hand.
                model = document["components"]["schemas"].get(schema["$ref"].rpartition("/")[2], DocumentCreate.model_json_schema())
                found |= set(model["properties"])
            if content["schema"].get("format") == "binary":
                # All of the body, which has no fields.
                found.add("content")
    return found | set(HEADERS)


def raised():
    """Fields that a service names in a refusal, as far as they are written down as such."""
    for service in ("orchestrator", "memory", "tool_executor", "common"):
        for path in (ROOT / "services" / service).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and node.args:
                    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                    first = node.args[0]
                    if name in RAISING and isinstance(first, ast.Constant) and isinstance(first.value, str):
                        yield first.value


def declared():
    """Every field of every request, down to the second level."""
    for module in PROTOS:
        for name, message in module.DESCRIPTOR.message_types_by_name.items():
            for field in message.fields if name.endswith("Request") else ():
                yield field.name
                yield from (f"{field.name}.{inner.name}" for inner in (field.message_type.fields if field.message_type else ()))


def test_no_answer_of_a_native_route_names_a_field_that_the_route_does_not_have(native, document):
    fields = {*raised(), *declared(), "input[3].role", "decision.edit.arguments_json/n/0", "memories[0].expires_at"}
    routes = routes_of(native)
    assert (len(fields) > 100, len(routes) > 40) == (True, True)
    for route in routes:
        known = documented(document, route)
        for field in fields:
            error = as_the_route_says(InvalidInput.field(field, "is wrong"), route.names())
            for violation in error.violations:
                assert violation.field.split(".")[0] in known, (route.path, field, violation.field)
            told = error.message.removesuffix("is wrong").removesuffix(": ")
            assert told == "" or told.split(".")[0] in known, (route.path, field, error.message)


@pytest.mark.parametrize(
    ("method", "path", "field", "expected"),
    [
        ("GET", "/v1/runs", "page_token", "after"),
        ("GET", "/v1/approvals", "page_size", "limit"),
        ("GET", "/v1/threads/{thread_id}/events", "after_seq", "after"),
        ("POST", "/v1/threads", "ttl", "ttl_ms"),
        ("POST", "/v1/threads/{thread_id}/fork", "new_thread_id", "thread_id"),
        ("POST", "/v1/threads/{thread_id}/fork", "checkpoint", "at"),
        ("POST", "/v1/threads/{thread_id}/rollback", "checkpoint", "to"),
        ("POST", "/v1/threads/{thread_id}/runs", "limits.deadline", "limits.deadline_ms"),
        ("POST", "/v1/threads/{thread_id}/runs", "input[2].role", "input.2.role"),
        ("POST", "/v1/threads/{thread_id}/runs", "input[2].text", "input.2.content"),
        ("POST", "/v1/threads/{thread_id}/runs", "idempotency_key", "Idempotency-Key"),
        ("POST", "/v1/threads/{thread_id}/runs", "client_tools[1].parameters_json", "client_tools.1.parameters"),
        ("POST", "/v1/threads/{thread_id}/runs", "tool_choice_json", "tool_choice"),
        ("POST", "/v1/threads/{thread_id}/runs", "response_format_json.json_schema.schema", "response_format.json_schema.schema"),
        ("POST", "/v1/feedback", "dwell", "dwell_ms"),
        ("POST", "/v1/schedules", "definition.timing.interval", "timing.interval_ms"),
        ("POST", "/v1/schedules", "timing.jitter", "timing.jitter_ms"),
        ("POST", "/v1/schedules", "overlap", "overlap_policy"),
        ("POST", "/v1/approvals/{approval_id}/decision", "decision", "verb"),
        ("POST", "/v1/approvals/{approval_id}/decision", "decision.edit.arguments_json/a/0", "arguments.a.0"),
        ("POST", "/v1/approvals/{approval_id}/decision", "decision.delegate.user", "to.user"),
        ("POST", "/v1/approvals/{approval_id}/decision", "decision.outcome.failed", "verb"),
        ("PUT", "/v1/runs/{run_id}/plan", "expected_version", "version"),
        ("POST", "/v1/documents", "title", "title"),
        ("POST", "/v1/memories", "memories[0].expires_at", "expires_at"),
        ("POST", "/v1/agents/{agent}/chat", "input[0].text", "user_input"),
        ("POST", "/v1/threads/{thread_id}/runs", "somewhere.else", ""),
    ],
)
def test_what_has_another_name_on_a_route_is_named_so(native, method, path, field, expected):
    (route,) = [route for route in routes_of(native) if route.path_format == path and method in route.methods]
    assert named(field, route.names()) == expected


def test_what_the_route_cannot_name_is_told_without_a_name():
    error = InvalidInput("the request is not valid", violations=[FieldViolation("a", "x"), FieldViolation("b.c", "y")])
    assert [v.field for v in as_the_route_says(error, {"a": None}).violations] == ["a"]
    assert error.message == "the request is not valid"
    assert as_the_route_says(InvalidInput.field("b", "must be small"), {"a": None}).message == "must be small"
