"""The OpenAPI document, and the service against it: schemathesis with a bounded number of examples."""

import asyncio
import threading
from contextlib import suppress

import httpx2
import hypothesis
import jsonschema
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.specs.openapi import checks as openapi_checks

from services.gateway import fakes

# Examples of each operation and mode: what shows a break of the document at once, and what looks further.
FEW, MANY = 2, 12
# The id of an approval has slashes, and no path that is generated has one: seconds of search end without an example. Such ids stand in
# the tests of approvals.
SLASHED = "{approval_id}"
SLOWLY_STREAMED = {"/v1/threads/{thread_id}/events", "/v1/runs/{run_id}/events"}


@pytest.fixture(scope="module")
def served(identities, _state_server):
    """A gateway in a loop and thread of its own, because schemathesis is synchronous."""
    started, stop = threading.Event(), asyncio.Event()
    found = {}

    async def main():
        async with fakes.gateway(identities, _state_server, wait_limit_s=2.0) as gateway:
            found["gateway"], found["loop"] = gateway, asyncio.get_running_loop()
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert started.wait(30)
    yield found["gateway"]
    found["loop"].call_soon_threadsafe(stop.set)
    thread.join(20)


@pytest.fixture(scope="module")
def document(served):
    return schemathesis.openapi.from_url(f"{served.url}/openapi.json")


def test_the_document_names_every_route_its_problems_and_its_key(served):
    answer = httpx2.get(f"{served.url}/openapi.json")
    content = answer.json()
    assert content["openapi"].startswith("3.1")
    routes = {path for path in content["paths"] if path.startswith(("/v1/", "/replay"))}
    assert len(routes) == 66
    # What the path of these says is all that is asked for, or the signature of what comes there.
    keyless = {"/v1/blobs/links/{token}", "/v1/hooks/{hook}"}
    assert {path for path in routes for one in content["paths"][path].values() if not one["security"]} == keyless
    for path in routes - keyless:
        for operation in content["paths"][path].values():
            assert operation["security"] == [{"apiKey": []}]
            assert "401" in operation["responses"]
    gone = {path for path, operations in content["paths"].items() for one in operations.values() if "410" in one["responses"]}
    assert gone == {"/v1/threads/{thread_id}/events", "/replay/{thread_id}"}
    forms = content["paths"]["/v1/documents"]["post"]["requestBody"]["content"]
    assert set(forms) == {"application/json", "text/markdown", "text/plain"}
    assert {"multipart/form-data", "image/png", "application/zip"} < set(content["paths"]["/v1/blobs"]["post"]["requestBody"]["content"])


def with_defaults(node, path=""):
    """(path, schema) of each schema of a document that states a default."""
    if isinstance(node, dict):
        if "default" in node:
            yield path, node
        for key, value in node.items():
            yield from with_defaults(value, f"{path}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from with_defaults(value, f"{path}/{number}")


def test_every_default_is_a_value_that_the_field_takes(served):
    document = httpx2.get(f"{served.url}/openapi.json").json()
    found = dict(with_defaults(document))
    assert len(found) > 40
    # References lead into the document.
    refused = {
        path: schema["default"]
        for path, schema in found.items()
        if not jsonschema.Draft202012Validator(schema | {"components": document["components"]}).is_valid(schema["default"])
    }
    assert refused == {}


def operations(document):
    return [result.ok() for result in document.get_all_operations()]


CHECKS = [
    schemathesis.checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_schema_conformance,
]


@pytest.mark.parametrize("examples", [FEW, pytest.param(MANY, marks=pytest.mark.system)])
def test_the_service_keeps_to_the_document(served, document, examples):
    statuses = []
    for operation in operations(document):
        if operation.path in SLOWLY_STREAMED:
            continue
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.POSITIVE and SLASHED in operation.path:
                continue
            strategy = operation.as_strategy(generation_mode=mode)

            @hypothesis.given(case=strategy)
            @hypothesis.settings(
                max_examples=examples, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
            )
            def probe(case):
                answer = case.call_and_validate(
                    headers={"authorization": f"Bearer {served.key}", "x-request-timeout-ms": "1500"}, checks=CHECKS
                )
                statuses.append(answer.status_code)

            with suppress(hypothesis.errors.Unsatisfiable):
                probe()
    assert len(statuses) > 25 * examples
    assert {200, 201, 202, 400, 404, 422} <= set(statuses)
