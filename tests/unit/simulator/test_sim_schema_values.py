"""Values made from JSON Schemas satisfy them, for any schema that a client may send."""

import contextlib

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulator.refusals import Refused
from services.simulator.schema_values import SchemaFiller

_LEAVES = st.one_of(
    st.just({"type": "string"}),
    st.builds(lambda low, more: {"type": "string", "minLength": low, "maxLength": low + more}, st.integers(0, 30), st.integers(0, 30)),
    st.builds(lambda low, more: {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(-50, 50), st.integers(0, 50)),
    st.builds(lambda low: {"type": "number", "exclusiveMinimum": low}, st.integers(-50, 50)),
    st.builds(lambda high: {"type": "integer", "exclusiveMaximum": high}, st.integers(-50, 50)),
    st.builds(lambda step: {"type": "integer", "multipleOf": step, "minimum": 0}, st.integers(1, 9)),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.just({"type": ["string", "null"]}),
    st.builds(lambda choices: {"enum": choices}, st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True)),
    st.builds(lambda value: {"const": value}, st.one_of(st.integers(-5, 5), st.text(max_size=5), st.booleans())),
    st.sampled_from([{"type": "string", "format": kind} for kind in ("date", "date-time", "email", "uuid", "uri", "ipv4")]),
)


def _containers(children):
    names = st.text("abcdefgh", min_size=1, max_size=4)
    return st.one_of(
        st.builds(
            lambda properties, extra: {"type": "object", "properties": properties, "required": sorted(properties)[: extra + 1]},
            st.dictionaries(names, children, min_size=1, max_size=4),
            st.integers(0, 3),
        ),
        st.builds(lambda items, low: {"type": "array", "items": items, "minItems": low}, children, st.integers(0, 3)),
        st.builds(lambda branches: {"anyOf": branches}, st.lists(children, min_size=1, max_size=3)),
    )


@pytest.mark.parametrize("examples", [100, pytest.param(1_000, marks=pytest.mark.system)])
def test_any_value_fits_its_schema(examples):
    @settings(max_examples=examples, deadline=None)
    @given(schema=st.recursive(_LEAVES, _containers, max_leaves=12), text=st.text(max_size=60))
    def holds(schema, text):
        value = SchemaFiller(text, schema).fill()
        jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())

    holds()


def test_values_come_from_the_text():
    schema = {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "mail": {"type": "string", "format": "email"},
            "when": {"type": "string", "format": "date"},
        },
        "required": ["city", "days", "mail", "when"],
    }
    text = "Weather in New York for 3 days in Fahrenheit from 2030-01-02, to ada@example.org"
    assert SchemaFiller(text, schema).fill() == {
        "city": "New York", "days": 3, "unit": "fahrenheit", "mail": "ada@example.org", "when": "2030-01-02",
    }  # fmt: skip


def test_optional_properties_are_left_out_without_a_hint():
    schema = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"enum": ["x"]}}, "required": ["a"]}
    assert SchemaFiller("nothing here", schema).fill().keys() == {"a"}


def test_references_and_all_of_are_followed():
    schema = {
        "$defs": {"Name": {"allOf": [{"type": "object"}, {"properties": {"n": {"const": 7}}, "required": ["n"]}]}},
        "type": "object",
        "properties": {"name": {"$ref": "#/$defs/Name"}},
        "required": ["name"],
    }
    assert SchemaFiller("", schema).fill() == {"name": {"n": 7}}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"allOf": [{"$ref": "#"}, {"$ref": "#"}]},
        {"type": "object", "properties": {"a": {"$ref": "#/nowhere"}}, "required": ["a"]},
        {
            **{"$defs": {f"d{n}": {"type": "array", "minItems": 9, "items": {"$ref": f"#/$defs/d{n + 1}"}} for n in range(20)}},
            "$ref": "#/$defs/d0",
        },
    ],
)
def test_schemas_without_an_end_are_refused_in_time(schema):
    with pytest.raises(Refused):
        SchemaFiller("", schema).fill()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": 5},
        {"type": "object", "properties": []},
        {"type": "object", "required": "a"},
        {"type": "object", "required": [1, None]},
        {"enum": []},
        {"anyOf": []},
        {"anyOf": [None]},
        {"type": "string", "pattern": "(a+)+$"},
        {"type": "string", "pattern": "["},
        {"type": "string", "maxLength": -1},
        {"type": "string", "minLength": 10**12},
        {"type": "integer", "multipleOf": 0},
        {"type": "array", "minItems": 10**9},
        {"type": "array", "items": False},
        {"$ref": "#"},
        {"$ref": "https://example.com/schema"},
        {"$ref": 3},
        True,
    ],
)
def test_odd_schemas_are_survived(schema):
    with contextlib.suppress(Refused):
        SchemaFiller("some text 5", schema).fill()
