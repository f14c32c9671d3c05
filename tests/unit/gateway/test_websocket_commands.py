"""What a message of `/ws` is taken for, whatever it is, and how often one may come."""

import json

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import InvalidInput
from services.gateway.surfaces.websocket import pacing
from services.gateway.surfaces.websocket.commands import VERBS, command, encoded, id_of, parsed
from services.gateway.surfaces.websocket.pacing import Pace

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)
NAMES = st.sampled_from(
    ["id", "type", "run_id", "thread_id", "call_id", "approval_id", "watch", "after", "idempotency_key", "on_disconnect", "verb", "text"]
)
MESSAGES = st.dictionaries(NAMES | st.text(max_size=8), VALUES | st.just("r") | st.sampled_from(list(VERBS)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=300) | MESSAGES.map(json.dumps) | VALUES.map(json.dumps))
def test_any_text_is_a_command_or_a_refusal_of_ours(text):
    try:
        value = parsed(text, 64)
        assert id_of(value) in (None, value.get("id"))
        verb, members = command(value)
        if verb.method in ("POST", "PUT"):
            body = orjson.loads(encoded(members.body()))
            assert not {"id", "type", "idempotency_key"} & body.keys()
        if verb.method:
            assert verb.path(members).startswith("/v1/")
            assert "\n" not in verb.path(members)
    except InvalidInput:
        pass


@settings(max_examples=60, deadline=None)
@given(MESSAGES, st.sampled_from(list(VERBS)))
def test_a_member_leads_to_no_route_but_that_of_the_command(given_members, kind):
    try:
        verb, members = command({**given_members, "id": "x", "type": kind})
    except InvalidInput:
        return
    steps = {"start": 4, "steer": 4, "cancel": 4, "stop": 4, "update_plan": 4, "cancel_tool_call": 6, "cancel_runs": 3, "watch": 4}
    if kind in steps:
        assert len(verb.path(members).strip("/").split("/")) == steps[kind]


@pytest.mark.parametrize("text", ['{"a": 1, "a": 1}', '{"a": {"b": 1, "b": 2}}', '{"a": [{"b": 1, "\\u0062": 2}]}'])
def test_names_that_stand_twice_are_refused_wherever_they_stand(text):
    with pytest.raises(InvalidInput, match="stands twice"):
        parsed(text, 64)


def test_a_pace_goes_into_debt_and_time_pays_it(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pacing.time, "monotonic", lambda: now[0])
    pace = Pace(10.0, 3.0, 2.0)
    assert [pace.take() for _ in range(3)] == [0.0, 0.0, 0.0]
    assert pace.take() == pytest.approx(0.1)
    assert not pace.flooded
    assert (pace.take(), pace.take()) == (pytest.approx(0.2), pytest.approx(0.3))
    assert pace.flooded
    now[0] = 0.4
    assert (pace.take(), pace.flooded) == (0.0, False)
    now[0] = 100.0
    assert [pace.take() for _ in range(4)][-1] > 0


def test_what_costs_more_than_may_come_at_once_is_let_through_by_a_pace_that_is_at_rest(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pacing.time, "monotonic", lambda: now[0])
    pace = Pace(1.0, 2.0, 5.0)
    assert (pace.take(17), pace.flooded) == (0.0, False)
    assert (pace.take(17), pace.flooded) == (pytest.approx(2.0), False)
    now[0] = 4.0
    assert pace.take(2) == 0.0
