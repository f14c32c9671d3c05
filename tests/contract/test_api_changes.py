"""The check of the API against the last release: every kind of break is found and told in a line, and what is added breaks nobody."""

import copy
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripts import check_api
from scripts.api_changes import events_changes, openapi_changes
from services.common.testing import ROOT

THING = {
    "type": "object",
    "required": ["id", "kind"],
    "properties": {
        "id": {"type": "string"},
        "kind": {"enum": ["a", "b"], "type": "string"},
        "size": {"type": "integer"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "parts": {"type": "array", "items": {"$ref": "#/components/schemas/Part"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
PART = {"type": "object", "properties": {"of": {"$ref": "#/components/schemas/Part"}, "count": {"type": "integer"}}}
MAKE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "maxLength": 64},
        "mode": {"enum": ["x", "y"], "type": "string"},
        "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
        "limit": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]},
    },
}
LISTED = {"type": "array", "items": {"$ref": "#/components/schemas/Thing"}}
JSON = "application/json"
DOCUMENT = {
    "paths": {
        "/things": {
            "post": {
                "parameters": [{"name": "wait", "in": "query", "required": False, "schema": {"type": "boolean"}}],
                "requestBody": {"required": False, "content": {JSON: {"schema": {"$ref": "#/components/schemas/Make"}}}},
                "responses": {
                    "201": {
                        "headers": {"Location": {"schema": {"type": "string"}}},
                        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Thing"}}, "text/event-stream": {"schema": {}}},
                    },
                    "404": {"$ref": "#/components/responses/Gone"},
                },
            },
            "get": {"responses": {"200": {"content": {JSON: {"schema": LISTED}}}}},
        }
    },
    "components": {
        "schemas": {"Thing": THING, "Part": PART, "Make": MAKE},
        "responses": {"Gone": {"content": {JSON: {"schema": {"type": "object", "properties": {"reason": {"type": "string"}}}}}}},
    },
}  # fmt: skip
POST = "paths /things post"
MADE = "components schemas Make"
TOLD = "components schemas Thing"
GONE = object()


def changed(document: Any, path: str, value: Any) -> Any:
    """The document with another value at a place, or without it."""
    made = copy.deepcopy(document)
    *steps, last = [int(step) if step.isdigit() else step for step in path.split(" ")]
    node = made
    for step in steps:
        node = node[step] if isinstance(node, list) else node[str(step)]
    key = last if isinstance(node, list) else str(last)
    if value is GONE:
        del node[key]
    else:
        node[key] = value
    return made


BREAKS = [
    ("paths /things", GONE, "/things: the route is gone"),
    (POST, GONE, "POST /things: the method is gone"),
    (f"{POST} security", [{"apiKey": []}], "POST /things: needs a key now"),
    (f"{POST} parameters 0", GONE, "POST /things: query parameter wait is gone"),
    (f"{POST} parameters 0 required", True, "POST /things: query parameter wait is required now"),
    (f"{POST} parameters 0 schema type", "integer", "POST /things: query parameter wait: is integer now, and was boolean"),
    (
        f"{POST} parameters",
        [*DOCUMENT["paths"]["/things"]["post"]["parameters"], {"name": "k", "in": "header", "required": True, "schema": {}}],
        "POST /things: header parameter k is new and required",
    ),
    (f"{POST} requestBody required", True, "POST /things: a body is required now"),
    (f"{POST} requestBody", GONE, "POST /things: takes no body any more"),
    (f"{POST} requestBody content", {"text/plain": {}}, "POST /things: body: application/json is gone"),
    (f"{MADE} properties mode", GONE, "POST /things: body: the member mode is gone"),
    (f"{MADE} required", ["name", "mode"], "POST /things: body: the member mode is required now"),
    (f"{MADE} properties mode enum", ["x"], "POST /things: body.mode: the value 'y' is gone"),
    (f"{MADE} properties name enum", ["x", "y"], "POST /things: body.name: only takes 'x', 'y' now"),
    (f"{MADE} properties name type", "integer", "POST /things: body.name: is integer now, and was string"),
    (f"{MADE} properties name maxLength", 32, "POST /things: body.name: maxLength is 32 now"),
    (f"{MADE} properties name minLength", 1, "POST /things: body.name: minLength is 1 now"),
    (f"{MADE} properties name pattern", "^a", "POST /things: body.name: pattern is ^a now"),
    (f"{MADE} properties input anyOf 1", GONE, "POST /things: body.input: array is gone"),
    (f"{MADE} properties limit", {"type": "integer", "minimum": 1}, "POST /things: body.limit: null is gone"),
    (f"{MADE} properties limit anyOf 0 minimum", 2, "POST /things: body.limit: minimum is 2 now"),
    (f"{POST} responses 201", GONE, "POST /things: the answer 201 is gone"),
    (f"{POST} responses 404", GONE, "POST /things: the answer 404 is gone"),
    (f"{POST} responses 201 headers Location", GONE, "POST /things: 201: the header Location is gone"),
    (f"{POST} responses 201 content text/event-stream", GONE, "POST /things: 201: text/event-stream is gone"),
    (f"{TOLD} properties size", GONE, "POST /things: 201: the member size is gone"),
    (f"{TOLD} required", ["id"], "POST /things: 201: the member kind may be absent now"),
    (f"{TOLD} properties kind enum", ["a"], "POST /things: 201.kind: the value 'b' is gone"),
    (f"{TOLD} properties size type", "number", "POST /things: 201.size: is number now, and was integer"),
    (f"{TOLD} properties id", {"anyOf": [{"type": "string"}, {"type": "null"}]}, "POST /things: 201.id: may be null now"),
    (f"{TOLD} properties note", {"anyOf": [{"type": "integer"}, {"type": "null"}]}, "POST /things: 201.note: string is gone"),
    (f"{TOLD} properties labels additionalProperties type", "integer", "POST /things: 201.labels.*: is integer now, and was string"),
    ("components schemas Part properties count", GONE, "POST /things: 201.parts[]: the member count is gone"),
    ("components responses Gone content application/json schema properties reason", GONE, "POST /things: 404: the member reason is gone"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "line"), BREAKS)
def test_what_breaks_a_client_is_told_in_a_line(place, value, line):
    assert line in openapi_changes(DOCUMENT, changed(DOCUMENT, place, value))
    assert openapi_changes(DOCUMENT, copy.deepcopy(DOCUMENT)) == []


ADDED = [
    ("paths /others", {"get": {"responses": {}}}),
    ("paths /things put", {"responses": {}}),
    (f"{POST} parameters 0 required", False),
    (f"{POST} responses 202", {"description": "Later."}),
    (f"{POST} responses 201 headers RateLimit", {"schema": {"type": "string"}}),
    (f"{POST} responses 201 content text/plain", {}),
    (f"{POST} requestBody content text/plain", {}),
    (f"{MADE} properties more", {"type": "string"}),
    (f"{MADE} required", []),
    (f"{MADE} properties mode enum", ["x", "y", "z"]),
    (f"{MADE} properties mode", {"type": "string"}),
    (f"{MADE} properties name maxLength", 128),
    (f"{MADE} properties limit anyOf 0 type", "number"),
    (f"{MADE} properties name", {"anyOf": [{"type": "string", "maxLength": 64}, {"type": "null"}]}),
    (f"{MADE} additionalProperties", True),
    (f"{TOLD} properties more", {"type": "string"}),
    (f"{TOLD} required", ["id", "kind", "size"]),
    (f"{TOLD} properties kind enum", ["a", "b", "c"]),
    (f"{TOLD} properties note", {"type": "string"}),
]


@pytest.mark.parametrize(("place", "value"), ADDED)
def test_what_is_added_breaks_nobody(place, value):
    made = changed(DOCUMENT, place, value)
    assert (made == DOCUMENT) == (place.endswith("0 required"))
    assert openapi_changes(DOCUMENT, made) == []


# --- the documents of the last release ---


@pytest.fixture(scope="module")
def released():
    return {name: orjson.loads((check_api.RELEASED / name).read_bytes()) for name in (check_api.OPENAPI, check_api.EVENTS)}


def removable(node: Any, path: tuple = (), *, of: str = "") -> Iterator[tuple]:
    """Places of members, values of a list of values, routes and methods: whatever a client may have relied on."""
    if isinstance(node, dict):
        for key, value in node.items():
            if of in ("properties", "paths", "methods") and not key.startswith("x-"):
                yield (*path, key)
            below = key if key in ("properties", "paths") and of != "properties" else "methods" if of == "paths" else ""
            yield from removable(value, (*path, key), of=below)
    elif isinstance(node, list):
        for at, value in enumerate(node):
            if path[-1] == "enum" and len(node) > 1:
                yield (*path, at)
            yield from removable(value, (*path, at))


def without(node: Any, path: tuple) -> Any:
    """A copy without what stands at a place; the rest is shared."""
    if len(path) == 1:
        if isinstance(node, dict):
            return {key: value for key, value in node.items() if key != path[0]}
        return [value for at, value in enumerate(node) if at != path[0]]
    made = copy.copy(node)
    made[path[0]] = without(node[path[0]], path[1:])
    return made


def reached(document: dict[str, Any]) -> set[str]:
    """Names of the components that a route leads to."""
    found: set[str] = set()
    left = [orjson.dumps(document["paths"]).decode()]
    while left:
        for part in left.pop().split('"#/components/')[1:]:
            name = part.partition('"')[0]
            if name not in found:
                found.add(name)
                kind, _, key = name.partition("/")
                left.append(orjson.dumps(document["components"][kind][key]).decode())
    return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_nothing_can_be_taken_from_the_released_routes_unseen(released, data):
    document = released[check_api.OPENAPI]
    names = reached(document)
    places = [p for p in removable(document) if p[0] == "paths" or (p[0] == "components" and "/".join(p[1:3]) in names)]
    assert len(places) > 500
    place = data.draw(st.sampled_from(places))
    assert openapi_changes(document, without(document, place)), place
    assert openapi_changes(without(document, place), document) == [] or "required" in str(
        openapi_changes(without(document, place), document)
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_nothing_can_be_taken_from_the_released_events_unseen(released, data):
    schema = released[check_api.EVENTS]
    # StreamError stands beside the types, and is no data of any.
    places = [p for p in removable(schema) if p[:2] != ("$defs", "StreamError") and "allOf" not in p]
    places += [("allOf", at) for at in range(len(schema["allOf"]))]
    assert len(places) > 150
    place = data.draw(st.sampled_from(places))
    assert events_changes(schema, without(schema, place)), place


def test_events_may_come_and_not_change(released):
    schema = released[check_api.EVENTS]
    rule = {"if": {"properties": {"type": {"const": "of_next_year"}}}, "then": {"properties": {"data": {"type": "object"}}}}
    assert events_changes(schema, {**schema, "allOf": [*schema["allOf"], rule]}) == []
    usage = schema["$defs"]["usage"]
    more = {**usage, "properties": {**usage["properties"], "more": {"type": "string"}}, "required": [*usage["required"], "more"]}
    assert events_changes(schema, changed(schema, "$defs usage", more)) == []
    assert events_changes(schema, changed(schema, "$defs usage properties model type", "integer")) == [
        "event usage: data.model: is integer now, and was string"
    ]
    assert events_changes(schema, changed(schema, "$id", "urn:x")) == ["events: `$id` is 'urn:x', and was 'urn:bulkhead:schema:events:v1'"]


def test_this_tree_breaks_no_client_of_the_last_release():
    ran = subprocess.run([sys.executable, "-m", "scripts.check_api"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_break_fails_the_check_and_a_release_takes_it(released, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(check_api, "RELEASED", tmp_path / "schemas")
    monkeypatch.setattr(check_api, "present", lambda: now)
    now = copy.deepcopy(released)
    monkeypatch.setattr(sys, "argv", ["check_api", "--release"])
    assert check_api.main() == 0
    monkeypatch.setattr(sys, "argv", ["check_api"])
    assert check_api.main() == 0
    del now[check_api.OPENAPI]["paths"]["/v1/quota"]
    assert check_api.main() == 1
    assert "/v1/quota: the route is gone\n1 changes break clients" in capsys.readouterr().err


def test_the_release_is_small_and_in_its_one_form(released):
    files = list(check_api.RELEASED.iterdir())
    assert {file.name for file in files} == set(released)
    assert sum(file.stat().st_size for file in files) < 1_000_000
    for name, content in released.items():
        assert (check_api.RELEASED / name).read_bytes() == check_api.written(check_api.kept(content))
