"""What OpenAPI says of every route beside its models: examples that are valid and true, headers that are sent, keys that are kept."""

from typing import Any

import aiohttp
import jsonschema
import orjson
import pytest
import pytest_asyncio
import yaml

from services.gateway import fakes
from tests.contract.event_schema import problems
from tests.integration.hook_sender import signed

pytestmark = pytest.mark.asyncio(loop_scope="module")
CHANGING = {"post", "put", "patch", "delete"}
# These answer a POST or DELETE and change nothing: they look for something, or always refuse.
UNCHANGING = {
    "POST /v1/documents/search", "POST /v1/memories/search", "POST /v1/conversations/{conversation_id}",
    "POST /v1/conversations/{conversation_id}/items", "DELETE /v1/conversations/{conversation_id}/items/{item_id}",
}  # fmt: skip
# Who comes there has no key, and the webhook-id is one.
SIGNED = "POST /v1/hooks/{hook}"
LIMITS = {"RateLimit", "RateLimit-Policy"}
# Headers that are there only where they have something to say; a fork starts a run only where it goes on.
AT_TIMES = {"Retry-After", "Link", "Idempotent-Replayed", "Preference-Applied"}
TOLD = LIMITS | AT_TIMES | {"Location", "x-bulkhead-run-id", "x-bulkhead-thread-id"}
FORK = "POST /v1/threads/{thread_id}/fork"
# What the paths of the examples lead to is made before.
NAMES = {
    "thread_id": "seen", "run_id": "run-seen", "agent": "assistant", "model": "assistant", "approval_id": "run-seen/1/0", "call_id": "c",
    "response_id": "resp_run-seen", "conversation_id": "conv_seen", "item_id": "msg_run-seen.i0",
}  # fmt: skip
# A cancel ends what others look at, a deletion takes it away: these come last.
LAST = ("cancel", "delete")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(identities, _state_server, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    limited = {"requests_per_minute": 100_000, "requests_per_day": 1_000_000}
    (folder / "policies.yaml").write_text(yaml.safe_dump({"sets": {"test": {"free": limited, "enterprise": limited}}}))
    async with fakes.gateway(identities, _state_server, config_dir=folder, wait_limit_s=5.0) as gateway:
        yield gateway


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(served):
    async with aiohttp.ClientSession(served.url, headers=served.headers(x_request_timeout_ms="3000")) as session:
        yield session


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def document(http):
    async with http.get("/openapi.json") as response:
        return orjson.loads(await response.read())


def resolved(document: Any, node: Any) -> Any:
    while "$ref" in node:
        found = document
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        node = found
    return node


def operations(document):
    """(`POST /v1/threads`, operation) of every route."""
    return [(f"{method.upper()} {path}", one) for path, methods in document["paths"].items() for method, one in methods.items()]


def contents(document):
    """(where, content) of everything that has a schema: bodies, and answers of every status."""
    for name, operation in operations(document):
        for form, content in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{name} takes {form}", content
        for status, answer in operation["responses"].items():
            for form, content in resolved(document, answer).get("content", {}).items():
                yield f"{name} answers {status} {form}", content


def faults(document, schema, value):
    """What is wrong with a value by a schema of the document."""
    whole = {**schema, "components": document["components"]}
    return [f"{error.json_path}: {error.message[:160]}" for error in jsonschema.Draft202012Validator(whole).iter_errors(value)]


def shown(document, content):
    """The values of the examples of a content."""
    return [resolved(document, one)["value"] for one in content.get("examples", {}).values()]


async def test_everything_that_is_json_has_an_example(document):
    bare = [
        where
        for where, content in contents(document)
        if where.endswith("json") and "schema+json" not in where and not shown(document, content)
    ]
    assert bare == []


async def test_every_example_is_what_its_schema_says(document):
    found = {
        where: faults(document, content["schema"], value) for where, content in contents(document) for value in shown(document, content)
    }
    assert len(found) > 900
    assert {where: wrong for where, wrong in found.items() if wrong} == {}
    assert problems([orjson.loads(document["components"]["examples"]["Event"]["value"]["data"])]) == {}


async def test_an_example_of_a_refusal_has_the_status_that_it_is_of(document):
    for where, content in contents(document):
        for value in shown(document, content):
            if "application/problem+json" in where:
                assert f"answers {value['status']} " in where
                assert value["type"] == "urn:bulkhead:problem:" + value["reason"].lower().replace("_", "-")


async def test_every_route_that_changes_something_takes_a_key(document):
    taking = {
        name for name, operation in operations(document) if any(one["name"] == "Idempotency-Key" for one in operation.get("parameters", ()))
    }
    changing = {name for name, _ in operations(document) if name.split(" ")[0].lower() in CHANGING}
    assert taking == changing - UNCHANGING - {SIGNED}
    required = [
        name for name, one in operations(document) for p in one.get("parameters", ()) if p["name"] == "Idempotency-Key" and p["required"]
    ]
    assert required == ["POST /v1/runs/cancel"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def answers(http, document, served):
    """(name, operation, status, headers, body) of every route but the streams, asked with its example."""
    async with http.post("/v1/threads/seen/runs", json={"input": "hi", "run_id": "run-seen"}, headers={"prefer": "wait=5"}) as response:
        assert response.status == 200, await response.text()
    found = []
    for name, operation in sorted(operations(document), key=lambda one: [word in one[0].lower() for word in LAST]):
        method, path = name.split(" ")
        if path.endswith("/events") or path == "/ag-ui/{agent}":
            continue
        content = operation.get("requestBody", {}).get("content", {}).get("application/json")
        body = (
            {} if content is None else {"data": orjson.dumps(shown(document, content)[0]), "headers": {"content-type": "application/json"}}
        )
        headers = {**body.pop("headers", {}), "idempotency-key": f"key of {name}".replace(" ", "-")}
        names = {p["name"]: NAMES.get(p["name"], "none") for p in operation.get("parameters", ()) if p["in"] == "path"}
        if name == SIGNED:
            async with http.post("/v1/hooks", json={"agent": "assistant"}) as response:
                made = await response.json()
            path, headers = made["url"], headers | signed(made["secret"], body["data"].decode())
        async with http.request(method, path.format(**names), headers=headers, **body) as response:
            found.append((name, operation, response.status, response.headers, await response.read()))
    return found


async def test_no_example_of_a_body_is_refused_for_what_it_is(answers):
    refused = {
        name: body
        for name, operation, status, _, body in answers
        if status in (400, 413, 415, 422, 500) and "requestBody" in operation and name not in UNCHANGING
    }
    assert refused == {}


async def test_what_is_answered_has_the_members_of_the_example(document, answers):
    compared, other = [], {}
    for name, operation, status, headers, body in answers:
        content = operation["responses"].get(str(status), {}).get("content", {}).get("application/json")
        if status >= 300 or content is None or headers["content-type"] != "application/json":
            continue
        told, (example,) = orjson.loads(body), shown(document, content)
        wrong = faults(document, content["schema"], told)
        if missing := set(example) - set(told):
            wrong.append(f"the example alone has {sorted(missing)}")
        if more := set(told) - set(example) - {"metadata"}:
            wrong.append(f"the answer alone has {sorted(more)}")
        compared.append(name)
        other |= {name: wrong} if wrong else {}
    assert len(compared) > 30
    assert other == {}


async def test_answers_have_the_headers_that_the_document_names_and_no_other_limits(document, answers):
    odd = {}
    for name, operation, status, headers, body in answers:
        if str(status) not in operation["responses"]:
            odd[name] = f"{status} is not in the document: {body[:200]!r}"
            continue
        named = set(resolved(document, operation["responses"][str(status)])["headers"])
        sure = {header for header in named - AT_TIMES if name != FORK or not header.startswith("x-bulkhead-")}
        if missing := [header for header in sure if header not in headers]:
            odd[name] = f"{status} is without {missing}"
        # A refusal names the run where it is known by then.
        said = TOLD if status < 300 else LIMITS | AT_TIMES
        if told := [header for header in said if header in headers and header not in named]:
            odd[name] = f"{status} has {told}, which nobody said"
    assert odd == {}


async def test_who_is_not_known_is_told_of_no_limits(document, served):
    async with aiohttp.ClientSession(served.url) as stranger, stranger.get("/v1/runs") as response:
        assert response.status == 401
        assert [name for name in LIMITS if name in response.headers] == []
    assert set(document["components"]["responses"]["Problem401"]["headers"]) == {"x-request-id"}


async def test_a_limit_that_is_used_up_says_when_to_come_back(document, served, identities, _state_server, tmp_path):
    free = {"requests_per_minute": 1, "requests_per_day": 10}
    (tmp_path / "policies.yaml").write_text(yaml.safe_dump({"sets": {"test": {"free": free, "enterprise": {}}}}))
    async with fakes.gateway(identities, _state_server, config_dir=tmp_path) as short:
        key = await short.issue(user="lia", tier="free")
        async with aiohttp.ClientSession(short.url, headers={"x-api-key": key}) as http:
            async with http.get("/v1/agents") as response:
                assert response.status == 200
            async with http.get("/v1/agents") as response:
                told, headers = orjson.loads(await response.read()), response.headers
                assert response.status == 429
    answer = document["components"]["responses"]["Problem429"]
    assert set(answer["headers"]) == {"x-request-id", "Retry-After", *LIMITS}
    assert [name for name in answer["headers"] if name not in headers] == []
    delayed = [name for name, one in document["components"]["responses"].items() if "Retry-After" in one["headers"]]
    assert sorted({name[-3:] for name in delayed}) == ["409", "429", "503"]
    example = resolved(document, answer["content"]["application/problem+json"]["examples"]["QUOTA_EXCEEDED"])["value"]
    # `limit` and `period_s` are of this refusal.
    assert set(example) <= set(told)
    assert faults(document, {"$ref": "#/components/schemas/Problem"}, told) == []
