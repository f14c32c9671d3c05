"""Strict JSON: depth, encoding, and the size of what is read."""

import asyncio
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.gateway.edge.body import parse_json, read_body
from services.gateway.refusals import BodyTimeout, BodyTooLarge, ClientGone

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(alphabet='ab[]{}"\\\né', max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(alphabet='k"\\[{', max_size=3), children, max_size=4),
    max_leaves=40,
)


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
