"""Arguments with wrong JSON types are repaired where there is one reading, and left alone elsewhere."""

import copy

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.tool_executor.coercion import coerce
from services.tool_executor.schemas import Schema


def an_object(**properties):
    return Schema({"type": "object", "properties": properties})


@pytest.mark.parametrize(
    ("schema", "given_value", "wanted"),
    [
        ({"type": "integer"}, "5", 5),
        ({"type": "integer"}, " -7 ", -7),
        ({"type": "integer"}, "5.0", 5),
        ({"type": "number"}, "2.5", 2.5),
        ({"type": "number"}, "1e3", 1000.0),
        ({"type": "number"}, "12", 12),
        ({"type": "boolean"}, "true", True),
        ({"type": "boolean"}, "False", False),
        ({"type": ["integer", "null"]}, "null", None),
        ({"type": "array", "items": {"type": "integer"}}, "[1,2]", [1, 2]),
        ({"type": "array", "items": {"type": "integer"}}, '["1","2"]', [1, 2]),
        ({"type": "array", "items": {"type": "string"}}, "a", ["a"]),
        ({"type": "array", "items": {"type": "integer"}}, "5", [5]),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"type": "string"}, 5, "5"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "8", 8),
        ({"$ref": "#/$defs/count"}, "3", 3),
    ],
)
def test_one_reading(schema, given_value, wanted):
    whole = Schema({"type": "object", "properties": {"v": schema}, "$defs": {"count": {"type": "integer"}}})
    value, changed = coerce(whole, {"v": given_value})
    assert value == {"v": wanted}
    assert type(value["v"]) is type(wanted)
    assert changed[0] == "/v"
    assert whole.is_valid(value)


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "integer"}, "five"),
        ({"type": "integer"}, "5.5"),
        ({"type": "integer"}, ""),
        ({"type": "integer"}, True),
        ({"type": "number"}, "nan"),
        ({"type": "number"}, "1e999"),
        ({"type": "boolean"}, "yes"),
        ({"type": "boolean"}, 1),
        ({"type": "string"}, True),
        ({"type": "string"}, None),
        ({"type": "object"}, "[1]"),
        ({"type": "integer", "minimum": 3}, 1),
        ({"enum": ["a"]}, "b"),
    ],
)
def test_no_reading(schema, value):
    assert coerce(an_object(v=schema), {"v": value}) == ({"v": value}, [])


def test_arguments_that_were_encoded_twice():
    value, changed = coerce(an_object(v={"type": "integer"}), '{"v": "1"}')
    assert value == {"v": 1}
    assert changed == ["", "/v"]


def test_what_already_fits_stays_a_string_though_it_looks_like_a_number():
    schema = an_object(zip={"type": "string"}, count={"type": "integer"})
    assert coerce(schema, {"zip": "01234", "count": "2"})[0] == {"zip": "01234", "count": 2}


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**53), 2**53), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8)
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)),
    max_leaves=8,
)
schemas = st.sampled_from(
    [
        {"type": "integer"},
        {"type": "number"},
        {"type": "boolean"},
        {"type": "string"},
        {"type": "array", "items": {"type": "integer"}},
        {"type": "object", "properties": {"a": {"type": "number"}}},
        {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "string"}}]},
        {"type": ["string", "null"]},
    ]
)


@settings(deadline=None)
@given(schemas, json_values)
def test_coercion_touches_only_what_was_rejected_and_settles(schema, value):
    compiled = an_object(v=schema)
    arguments = {"v": value}
    before = copy.deepcopy(arguments)
    was_valid = compiled.is_valid(arguments)
    coerced, changed = coerce(compiled, arguments)
    assert arguments == before
    if was_valid:
        assert (coerced, changed) == (arguments, [])
    if compiled.is_valid(coerced):
        assert coerce(compiled, coerced) == (coerced, [])


@settings(deadline=None)
@given(st.integers(-(10**15), 10**15), st.booleans())
def test_what_a_model_wrote_as_text_comes_back_as_it_was_meant(number, truth):
    schema = an_object(
        n={"type": "integer"}, f={"type": "number"}, b={"type": "boolean"}, many={"type": "array", "items": {"type": "integer"}}
    )
    text = {"n": str(number), "f": f"{number}.5", "b": str(truth).lower(), "many": f"[{number}]"}
    assert coerce(schema, text)[0] == {"n": number, "f": float(f"{number}.5"), "b": truth, "many": [number]}
