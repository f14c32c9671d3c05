"""What a tool gives to be shown, in the real loop: nothing that a guardrail keeps back, and each thing once, whoever is lost at a write."""

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.orchestrator.ports import ToolOutcome
from services.orchestrator.testing.turn_world import Journal, World, agent, steps_before
from services.orchestrator.turn import tables
from services.orchestrator.turn.guardrails import ALLOWED, RESULT, Verdict

SECRET = {"content": [{"type": "code", "language": "x", "text": "a s3cret"}, {"type": "table", "columns": ["a"], "rows": [["s3cret"]]}]}


class Guard:
    def __init__(self, action):
        self.stages, self.fails_open, self.timeout_s, self.action = frozenset({RESULT}), frozenset(), 1.0, action

    async def check(self, what):
        if self.action == "allow":
            return ALLOWED
        return Verdict(self.action, "secret", what.text.replace("s3cret", "[gone]"), "words", "1")


def world_of(output, **fields):
    reply = lambda call: "done" if steps_before(call) else [("look", {})]  # noqa: E731
    return World(reply, agent(), tool=lambda name, arguments: ToolOutcome("done", orjson.dumps(output)), **fields)


@pytest.mark.parametrize(("action", "shown"), [("allow", "s3cret"), ("replace", "[gone]"), ("refuse", "")])
def test_what_a_guardrail_keeps_back_is_shown_by_no_event(action, shown):
    world = world_of(SECRET, guardrails=Guard(action))
    world.run()
    kinds = [kind for kind, _ in world.journal.events]
    assert (kinds.count("code_block"), kinds.count("table")) == ((1, 1) if shown else (0, 0))
    for data in world.journal.of("code_block", "table"):
        assert shown in orjson.dumps(data).decode()
    assert (b"s3cret" in orjson.dumps(world.journal.events)) == (action == "allow")


@given(st.dictionaries(st.integers(1, 12), st.booleans(), max_size=4))
@settings(max_examples=60, deadline=None)
def test_each_thing_is_shown_once_behind_its_call_whoever_is_lost(lost_at):
    world = world_of(SECRET, journal=Journal(lost_at))
    world.run()
    kinds = [kind for kind, _ in world.journal.events]
    at = kinds.index("tool_call_completed")
    assert kinds[at : at + 3] == ["tool_call_completed", "code_block", "table"]
    assert (kinds.count("code_block"), kinds.count("table")) == (1, 1)
    assert [data["content_id"] for data in world.journal.of("code_block", "table")] == ["s1c0/0", "s1c0/1"]


def test_without_anything_that_keeps_blobs_the_rest_is_shown():
    world = world_of({"content": [{"type": "image", "data": "aGFsbG8=", "mimeType": "image/png"}, *SECRET["content"]]})
    world.run()
    assert [data["attributes"]["reason"] for data in world.journal.of("warning")] == ["BLOBS_NOT_CONFIGURED"]
    assert len(world.journal.of("code_block", "table")) == 2


CELLS = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=200)


@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(CELLS, min_size=n, max_size=n), max_size=60)), st.integers(300, 4_000))
def test_as_many_rows_as_fit_are_shown_and_no_more(rows, most):
    before, tables.MOST_BYTES = tables.MOST_BYTES, most
    try:
        data = {"columns": ["a"] * (len(rows[0]) if rows else 1), "rows": rows, "total_rows": len(rows), "blob_id": "b" * 37}
        kept = tables.first_rows(data, rows)
        assert kept == rows[: len(kept)]
        assert tables.fits({**data, "rows": kept})
        more = rows[: len(kept) + 1]
        # A comma is counted for the first row too.
        assert len(kept) == len(rows) or len(orjson.dumps({**data, "rows": more})) >= most
    finally:
        tables.MOST_BYTES = before


@given(st.text('a\u00e4\u6570\n"\\\0', min_size=40, max_size=600), st.integers(100, 400))
def test_the_beginning_of_a_text_fits(text, most):
    before, tables.MOST_BYTES = tables.MOST_BYTES, most
    try:
        kept = tables.beginning({"text": text, "name": "n"}, text)
        assert text.startswith(kept)
        assert tables.fits({"text": kept, "name": "n"})
    finally:
        tables.MOST_BYTES = before
