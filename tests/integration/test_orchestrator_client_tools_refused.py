"""What of a client's tools, of results and of forms of answers is refused, and with which field."""

import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import FailedPrecondition, InvalidInput
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.integration.client_calls import MIXED, TOOLS, ended, made, results, user


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    async with served(settings_for(identities, behind, state_url, write_config(tmp_path / "config")), identities) as made:
        yield made


BAD = [
    ([pb.InputMessage(role="tool", text="x", tool_call_id="nope")], {}, "input[0].tool_call_id"),
    ([pb.InputMessage(role="tool", text="x")], {}, "input[0].tool_call_id"),
    ([user("a"), pb.InputMessage(role="tool", text="x", tool_call_id="a")], {}, "input[1].tool_call_id"),
    (
        [user("a"), pb.InputMessage(role="assistant", tool_calls=[pb.ClientToolCall(tool_call_id="a", name="b")]), user("c")], {},
        "input[1].tool_calls",
    ),
    ([pb.InputMessage(role="user", text="a", tool_call_id="x")], {}, "input[0].tool_call_id"),
    ([user("a")], {"client_tools": [pb.ClientTool(name="calculator")]}, "client_tools[0].name"),
    ([user("a")], {"client_tools": [pb.ClientTool(name="a"), pb.ClientTool(name="a")]}, "client_tools[1].name"),
    ([user("a")], {"client_tools": [pb.ClientTool(name="a b")]}, "client_tools[0].name"),
    ([user("a")], {"client_tools": [pb.ClientTool(name="delegate_to_x")]}, "client_tools[0].name"),
    ([user("a")], {"client_tools": [pb.ClientTool(name="a", parameters_json=b"[]")]}, "client_tools[0].parameters_json"),
    ([user("a")], {"client_tools": [pb.ClientTool(name="a", parameters_json=b'{"type":"string"}')]}, "client_tools[0].parameters_json"),
    ([user("a")], {"client_tools": [pb.ClientTool(name="a", parameters_json=b'{"type":7}')]}, "client_tools[0].parameters_json"),
    ([user("a")], {"client_tools": [pb.ClientTool(name="a", parameters_json=b"[" * 2000)]}, "client_tools[0].parameters_json"),
    (
        [user("a")], {"client_tools": [pb.ClientTool(name="a", parameters_json=b'{"x":"%s"}' % (b"y" * 33_000))]},
        "client_tools[0].parameters_json",
    ),
    ([user("a")], {"client_tools": [pb.ClientTool(name="a", description="d" * 4097)]}, "client_tools[0].description"),
    ([user("a")], {"client_tools": [pb.ClientTool(name=f"t{i}") for i in range(65)]}, "client_tools"),
    ([user("a")], {"tool_choice_json": b'"sometimes"'}, "tool_choice_json"),
    ([user("a")], {"tool_choice_json": b'{"type":"function","function":{"name":"nobody"}}'}, "tool_choice_json"),
    ([user("a")], {"response_format_json": b'{"type":"xml"}'}, "response_format_json"),
    ([user("a")], {"response_format_json": b"{"}, "response_format_json"),
    (
        [user("a")], {"response_format_json": b'{"type":"json_schema","json_schema":{"name":"n","schema":{"type":7}}}'},
        "response_format_json.json_schema.schema",
    ),
    ([user("a")], {"response_format_json": b'{"type":"json_schema","json_schema":{"schema":{}}}'}, "response_format_json.json_schema.name"),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
async def test_what_is_wrong_is_named(client, number):
    said, fields, field = BAD[number]
    with pytest.raises(InvalidInput) as caught:
        await made(client, *said, thread_id="t", run_id="r", **fields)
    assert field in [violation.field for violation in caught.value.violations]
    # Nothing was begun.
    await ended(client, user("say hi"), thread_id="t", run_id="r")


async def test_each_call_that_waits_has_to_be_answered(client):
    first = await ended(client, user(MIXED), thread_id="t", client_tools=TOOLS)
    both = results(first, "one", "two")
    for said in (both[:1], [both[0], both[0]]):
        with pytest.raises(InvalidInput):
            await made(client, *said, thread_id="t")
    # Another user's thread tells nothing.
    with pytest.raises(InvalidInput) as caught:
        await made(client, *both, thread_id="t2")
    assert caught.value.reason == "TOOL_CALL_UNKNOWN"
    assert (await ended(client, *both, thread_id="t")).status == pb.RUN_STATUS_SUCCEEDED


@pytest.mark.parametrize("agent", ["lead", "flow"])
async def test_strategies_that_cannot_offer_them_say_so(client, agent):
    for fields in ({"client_tools": TOOLS}, {"response_format_json": b'{"type":"json_object"}'}):
        with pytest.raises(FailedPrecondition) as caught:
            await made(client, user("say hi"), agent=agent, **fields)
        assert caught.value.reason == "UNSUPPORTED"
