"""The JSON Schema of native events: where it is served, that it names what is documented and what is written, and what it refuses."""

import ast
import re

import aiohttp
import jsonschema
import orjson
import pytest

from services.common.testing import ROOT
from services.gateway import fakes
from services.gateway.surfaces.schemas import EVENTS_PATH
from services.gateway.surfaces.schemas.events import DATA, SCHEMA
from tests.contract.event_schema import problems

EVENT = {
    "seq": 3, "ts": "2026-01-31T12:00:00.000001Z", "thread_id": "t", "run_id": "run_1", "attempt": 1, "type": "message_delta",
    "data": {"text": "It", "message_id": "run_1/1"}, "provisional": True, "trace_id": None, "schema_version": 1,
}  # fmt: skip
OPEN = jsonschema.Draft202012Validator(SCHEMA)


def catalogue() -> list[str]:
    """The types in the table of docs/api.md."""
    (section,) = re.findall(r"^## Events\n(.*?)^## ", (ROOT / "docs/api.md").read_text(), re.M | re.S)
    rows = re.findall(r"^\| (`[^|]*) \|", section, re.M)
    return [name for row in rows for name in re.findall(r"`(\w+)`", row)]


def called_with(node: ast.Call) -> list[ast.expr]:
    """The arguments of a call that name a type of event."""
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return {"emit": node.args[:1], "Draft": node.args[:1], "Terminal": node.args[2:3]}.get(name, [])


def written() -> set[str]:
    """The types that the orchestrator writes: as its code has them, and as the functions of the store have them."""
    found = set()
    for path in (ROOT / "services/orchestrator").rglob("*.py"):
        if "testing" not in path.parts:
            calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
            named = (argument for call in calls for argument in called_with(call) if isinstance(argument, ast.Constant))
            found |= {argument.value for argument in named}
    for path in (ROOT / "services/orchestrator").rglob("*.lua"):
        text = path.read_text()
        for pattern in (r"[{=] ?'(\w+)', '0'", r"'y', '(\w+)'", r"'(run_(?:finished|failed|cancelled))'", r"= '(\w+_received)'"):
            found |= set(re.findall(pattern, text))
    return found


async def test_anybody_can_have_it_at_its_address(identities, state_url):
    async with fakes.gateway(identities, state_url) as served, aiohttp.ClientSession(served.url) as http, http.get(EVENTS_PATH) as answer:
        assert (answer.status, answer.content_type) == (200, "application/schema+json")
        told = orjson.loads(await answer.read())
    jsonschema.Draft202012Validator.check_schema(told)
    assert told == orjson.loads(orjson.dumps(SCHEMA))
    assert (EVENTS_PATH, told["$id"], told["$schema"]) == (
        "/schemas/events/v1.json", "urn:bulkhead:schema:events:v1", "https://json-schema.org/draft/2020-12/schema"
    )  # fmt: skip


def test_the_catalogue_and_the_schema_name_the_same_types():
    named = catalogue()
    assert len(named) == len(set(named)) > 30
    assert set(named) ^ set(DATA) == set()


def test_names_that_others_use_lead_to_types_that_there_are():
    (section,) = re.findall(r"^## Names that others use\n(.*?)^## ", (ROOT / "docs/api.md").read_text(), re.M | re.S)
    ours = [name for cell in re.findall(r"^\|[^|]+\|([^|]+)\|$", section, re.M) for name in re.findall(r"`(\w+)`", cell)]
    assert {"image", "table", "code_block", "chart", "audio", "file", "feedback"} <= set(ours) <= set(DATA)


def test_whatever_the_orchestrator_writes_is_in_the_schema():
    found = written()
    assert len(found) > 30
    assert found - set(DATA) == set()
    # Of these the code has no constant where it makes them.
    assert set(DATA) - found == {"interrupt_updated", "thread_deleted"}


def test_types_and_members_that_are_not_listed_are_no_fault_of_an_event():
    for event in (EVENT, {**EVENT, "type": "of_next_year", "data": {"x": 1}}, {**EVENT, "data": {**EVENT["data"], "x": 1}, "more": 1}):
        assert OPEN.is_valid(event), event
    assert problems([{**EVENT, "type": "of_next_year"}, {**EVENT, "more": 1}]).total() == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"seq": "3"},
        {"ts": "2026-01-31 12:00:00"},
        {"run_id": 1},
        {"data": "text"},
        {"data": {"text": "It"}},
        {"data": {"text": 1, "message_id": "m"}},
        {"type": "run_failed", "data": {"error": {"reason": "X"}, "usage": {}}},
        {"type": "usage", "data": {"step": 1, "model": "m", "provider": "p"}},
        {"type": "interrupt_raised", "data": {"interrupt_id": "r/1/0"}},
        {"type": "plan_updated", "data": {"version": 1, "steps": [{"title": "a", "status": "maybe"}]}},
    ],
)
def test_what_is_listed_is_held(changes):
    assert OPEN.is_valid(EVENT)
    assert not OPEN.is_valid({**EVENT, **changes})


CALL = {"tool_call_id": "c0", "name": "look", "arguments": '{"at": 1}'}
ASKED = {
    "interrupt_id": "run_1/1/0", "kind": "tool_call", "call_id": "c0", "tool": "send_mail", "version": "1", "arguments": {},
    "arguments_digest": "a" * 64, "schema": {}, "reason": "r", "expires_at_ms": 1, "on_expiry": "reject", "four_eyes": False,
    "approvers": {"users": [], "scopes": [], "requester": True},
}  # fmt: skip
SHOWN = {"content_id": "c0/0", "call_id": "c0", "title": ""}
BLOB = {"blob_id": "blob_1", "mime_type": "image/png", "size": 3, "sha256": "a" * 64}
CHART = {
    **SHOWN, "chart_type": "line", "x_label": "", "y_label": "", "alt": "", "series": [{"name": "s", "points": [["a", 1.5], [2, 3]]}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "data", "wrong"),
    [
        ("interrupt_raised", ASKED, [{"kind": "client_tools"}, {"interrupt_id": None}, {"arguments_digest": "x"}]),
        (
            "interrupt_raised",
            {"kind": "client_tools", "calls": [CALL]},
            [{"kind": "tool_call"}, {"calls": "c0"}, {"calls": [{"name": "x"}]}],
        ),
        ("image", {**SHOWN, **BLOB, "name": "", "alt": "", "width": 2, "height": 1}, [{"width": 0}, {"sha256": "x"}, {"blob_id": None}]),
        (
            "table",
            {**SHOWN, "columns": ["a"], "rows": [["x"], [1.5], [True], [None]], "total_rows": 4},
            [{"rows": [[{}]]}, {"columns": [1]}],
        ),
        ("chart", CHART, [{"chart_type": "radar"}, {"series": [{"name": "s", "points": [[1, "x"]]}]}, {"series": [{"points": []}]}]),
    ],
)
def test_what_tools_show_and_ask_of_clients_has_its_members(kind, data, wrong):
    event = {**EVENT, "type": kind, "data": data}
    assert problems([event]) == {}
    assert problems([{**event, "data": {**data, "more": 1}}]).total() > 0
    for changes in wrong:
        assert not OPEN.is_valid({**event, "data": {**data, **changes}}), changes


@pytest.mark.parametrize("member", sorted(EVENT))
def test_the_envelope_is_always_whole(member):
    assert not OPEN.is_valid({name: value for name, value in EVENT.items() if name != member})
