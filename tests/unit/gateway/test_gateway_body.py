"""Strict JSON: depth, encoding, and the size of what is read."""

import asyncio
import json
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.gateway.edge.body import parse_json, read_body
from services.gateway.refusals import BodyTimeout, BodyTooLarge, ClientGone
from services.gateway.settings import Settings

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(alphabet='ab[]{}"\\\né', max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(alphabet='k"\\[{', max_size=3), children, max_size=4),
    max_leaves=40,
)


@dataclass(frozen=True)
class Pairs:
    """An object as it is written."""

    pairs: list


def depth(value):
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(depth, inside), default=0)


@given(VALUES, st.integers(0, 6))
def test_the_depth_is_counted_exactly(value, limit):
    for raw in (json.dumps(value).encode(), json.dumps(value, ensure_ascii=False).encode()):
        if depth(value) <= limit:
            assert parse_json(raw, limit) == value
        else:
            with pytest.raises(InvalidInput) as refused:
                parse_json(raw, limit)
            assert refused.value.reason == "NESTED_TOO_DEEPLY"


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "INVALID_JSON"),
        (b'{"a":1,}', "INVALID_JSON"),
        (b'"\\ud800"', "INVALID_JSON"),
        (b'"\xc3"', "INVALID_ENCODING"),
        (b"Infinity", "INVALID_JSON"),
    ],
)
def test_what_is_not_strict_json_is_refused(raw, reason):
    with pytest.raises(InvalidInput) as refused:
        parse_json(raw, 64)
    assert refused.value.reason == reason


# Colons and their escapes, and what looks like one and is not, on both sides.
TEXTS = st.text(alphabet=':ab\\"{,\u00e9', max_size=6)
OBJECTS = st.recursive(
    st.none() | st.integers(0, 9) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.lists(st.tuples(TEXTS, inner), max_size=4).map(Pairs),
    max_leaves=25,
)


def written(value, escape):
    """JSON whose objects have the names of their pairs, as often as they stand there."""
    if isinstance(value, Pairs):
        return "{" + ",".join(f"{written(name, escape)}:{written(inside, escape)}" for name, inside in value.pairs) + "}"
    if isinstance(value, list):
        return "[" + ",".join(written(inside, escape) for inside in value) + "]"
    text = json.dumps(value)
    return text.replace(":", escape) if isinstance(value, str) else text


def twice(value):
    if isinstance(value, Pairs):
        names = [name for name, _ in value.pairs]
        return len(set(names)) < len(names) or any(twice(inside) for _, inside in value.pairs)
    return isinstance(value, list) and any(map(twice, value))


@settings(max_examples=300, deadline=None)
@given(OBJECTS, st.sampled_from([":", "\\u003a", "\\u003A"]))
def test_a_name_that_stands_twice_in_one_object_is_refused_and_nothing_else_is(value, escape):
    raw = written(value, escape).encode()
    if twice(value):
        with pytest.raises(InvalidInput, match="stands twice") as refused:
            parse_json(raw, 64)
        assert refused.value.reason == "INVALID_JSON"
    else:
        assert parse_json(raw, 64) == json.loads(raw)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b'{"a":1,"a":1}', "a"),
        (b'{"b":{"x":[{"c":1,"d":2,"\\u0063":{"e":3}}]}}', "c"),
        (b'{"":0,"":1}', ""),
        (b'{"\\u003a":":","x\\u003a":0,":":1}', ":"),
        (b'{"%s":1,"%s":2}' % (b"n" * 99, b"n" * 99), "n" * 64),
    ],
)
def test_a_name_that_stands_twice_is_told(raw, name):
    with pytest.raises(InvalidInput) as refused:
        parse_json(raw, 64)
    assert [violation.field for violation in refused.value.violations] == [name]
    assert json.dumps(name) in refused.value.message


def test_the_deepest_that_settings_take_is_read_and_one_more_is_not():
    (bound,) = (limit.le for limit in Settings.model_fields["json_depth_limit"].metadata if hasattr(limit, "le"))
    deepest = b"[" * bound + b"]" * bound
    assert parse_json(deepest, bound) == json.loads(deepest)
    with pytest.raises(InvalidInput) as refused:
        parse_json(b"[%b]" % deepest, bound)
    assert refused.value.reason == "NESTED_TOO_DEEPLY"


def sender(*messages):
    left = list(messages)

    async def receive():
        return left.pop(0)

    return receive, left


def part(body, more=True):
    return {"type": "http.request", "body": body, "more_body": more}


async def test_bodies_are_joined_and_bounded():
    receive, _ = sender(part(b"ab"), part(b"cd", more=False))
    assert await read_body(receive, None, 4, 5) == b"abcd"
    receive, left = sender(part(b"ab"), part(b"cde"), part(b"f", more=False))
    with pytest.raises(BodyTooLarge):
        await read_body(receive, None, 4, 5)
    assert not left  # read to its end, so that the client gets to see the refusal
    receive, left = sender(part(b"x" * 10, more=False))
    with pytest.raises(BodyTooLarge):
        await read_body(receive, str(10**12), 4, 5)
    assert left  # what says that it is endless is not listened to


async def test_clients_that_leave_or_stall_are_told_apart():
    receive, _ = sender(part(b"ab"), {"type": "http.disconnect"})
    with pytest.raises(ClientGone):
        await read_body(receive, None, 4, 5)

    async def never():
        await asyncio.sleep(60)

    with pytest.raises(BodyTimeout):
        await read_body(never, None, 4, 0.01)
