"""Violations are data, and never hold what was rejected."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tool_executor.failures import Violation
from services.tool_executor.schemas import BadSchema, Schema

ORDER = Schema(
    {
        "type": "object",
        "properties": {
            "count": {"type": "integer", "minimum": 1, "multipleOf": 2},
            "kind": {"enum": ["small", "large"]},
            "name": {"type": "string", "minLength": 3, "pattern": "^[a-z]+$"},
            "when": {"type": "string", "format": "date"},
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True, "maxItems": 2},
            "either": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
            "fixed": {"const": 7},
        },
        "required": ["count"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("value", "violation"),
    [
        ({}, Violation("", "required", "count")),
        ({"count": "x"}, Violation("/count", "type", ["integer"])),
        ({"count": 0}, Violation("/count", "minimum", 1)),
        ({"count": 3}, Violation("/count", "multipleOf", 2)),
        ({"count": 2, "kind": "huge"}, Violation("/kind", "enum", ["small", "large"])),
        ({"count": 2, "name": "ab"}, Violation("/name", "minLength", 3)),
        ({"count": 2, "name": "ABC"}, Violation("/name", "pattern", "^[a-z]+$")),
        ({"count": 2, "when": "soon"}, Violation("/when", "format", "date")),
        ({"count": 2, "tags": ["a", 1]}, Violation("/tags/1", "type", ["string"])),
        ({"count": 2, "tags": ["a", "a"]}, Violation("/tags", "uniqueItems", None)),
        ({"count": 2, "either": "x"}, Violation("/either", "anyOf", ["integer", "null"])),
        ({"count": 2, "fixed": 8}, Violation("/fixed", "const", 7)),
        (
            {"count": 2, "a/b~c": 1},
            Violation("/a~1b~0c", "additionalProperties", ["count", "either", "fixed", "kind", "name", "tags", "when"]),
        ),
        ([], Violation("", "type", ["object"])),
    ],
)
def test_a_violation_names_place_keyword_and_expectation(value, violation):
    assert violation in ORDER.violations(value)


secrets = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF), min_size=4, max_size=12)


@settings(deadline=None)
@given(secrets, st.sampled_from(["count", "kind", "name", "when", "tags", "either", "fixed"]))
def test_a_rejected_value_is_never_repeated(secret, where):
    for value in ({"count": 2, where: secret}, {"count": 2, where: [secret, secret]}, {"count": 2, where: {"a": secret}}):
        told = json.dumps([[v.path, v.keyword, v.expected] for v in ORDER.violations(value)], ensure_ascii=False)
        assert ORDER.violations(value)
        assert secret not in told


def test_violations_are_capped():
    schema = Schema({"type": "array", "items": {"type": "integer"}})
    assert len(schema.violations(["x"] * 1000)) == 16


@pytest.mark.parametrize(
    "definition",
    [
        {"type": "nonsense"},
        {"properties": []},
        {"$ref": "https://example.com/elsewhere.json"},
        {"$ref": "#/$defs/missing"},
        {"pattern": "("},
        {"minimum": "one"},
    ],
)
def test_a_bad_schema_is_refused(definition):
    with pytest.raises(BadSchema) as caught:
        Schema(definition)
    assert str(caught.value)
