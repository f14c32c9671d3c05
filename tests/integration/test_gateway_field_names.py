"""Refusals of a real orchestrator over HTTP: in the names that the client used."""

import orjson
import pytest

from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.contract.ag_ui_client import Client, parsed
from tests.integration.approvals import call, desk
from tests.integration.real_gateway import answered, gateway_before


@pytest.fixture
async def http(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities), gateway_before(identities, state_url, settings.grpc_port) as people:
        yield await people.session()


async def test_a_refusal_of_a_service_names_what_the_client_wrote(http):
    await answered(http.post("/v1/threads/t/runs", json={"input": "say hi"}, headers={"prefer": "wait=30"}), 200)
    for route in ("/v1/runs", "/v1/threads", "/v1/threads/t/runs", "/v1/approvals", "/v1/schedules"):
        told = await answered(http.get(f"{route}?after=nonsense"), 400)
        assert [error["field"] for error in told["errors"]] == ["after"], route
        assert "page_token" not in str(told)
    wrong = {"type": "object", "properties": 3}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": wrong}}
    for asked, field in (
        ({"client_tools": [{"name": "a", "parameters": wrong}]}, "client_tools.0.parameters"),
        ({"tool_choice": {"type": "function", "function": {"name": "nobodys"}}}, "tool_choice"),
        ({"response_format": form}, "response_format.json_schema.schema"),
    ):
        told = await answered(http.post("/v1/threads/t/runs", json={"input": "say hi", **asked}), 400)
        assert [error["field"] for error in told["errors"]] == [field]
    schedule = {"input": "hi", "timing": {"interval_ms": 1}}
    told = await answered(http.post("/v1/schedules", json=schedule), 400)
    assert [error["field"] for error in told["errors"]] == ["timing.interval_ms"]


RESULT = {"id": "t1", "role": "tool", "toolCallId": "nobodys", "content": "x"}


@pytest.mark.parametrize(
    ("asked", "field", "code"),
    [
        ({"tools": [{"name": "update_plan", "description": ""}]}, "tools[0].name", "INVALID_INPUT"),
        ({"tools": [{"name": "a", "description": "", "parameters": {"properties": 3}}]}, "tools[0].parameters", "INVALID_INPUT"),
        ({"messages": [{"id": "u1", "role": "user", "content": "x" * 600_000}]}, "messages", "INVALID_INPUT"),
        ({"messages": [RESULT]}, "messages[0].toolCallId", "TOOL_CALL_UNKNOWN"),
    ],
)
async def test_what_ag_ui_asks_for_and_an_orchestrator_refuses_is_named_as_the_client_wrote_it(http, asked, field, code):
    said = [{"id": "u0", "role": "user", "content": "say hi"}]
    for run_id, more in (("r-1", {}), ("r-2", asked)):
        body = {"threadId": "t", "runId": run_id, "messages": said, **more}
        async with http.post("/ag-ui/helper", json=body) as response:
            status, told = response.status, await response.read()
    told = orjson.loads(told)
    assert (status, told["code"], [error["field"] for error in told["metadata"]["bulkhead"]["errors"]]) == (400, code, [field])
    # Clients show the message and nothing else.
    assert field in told["message"] or code != "INVALID_INPUT"


async def test_arguments_that_a_person_gives_and_that_do_not_fit_are_named_as_the_client_wrote_them(identities, state_url, tmp_path):
    async with desk(identities, state_url, tmp_path) as made, gateway_before(identities, state_url, made.settings.grpc_port) as people:
        http = await people.session()
        body = {"threadId": "t", "runId": "r-1", "messages": [{"id": "u", "role": "user", "content": call(("wipe", {"n": 1}))}]}
        async with http.post("/ag-ui/careful", json=body) as response:
            (interrupt,) = Client().take(parsed(await response.read())).interrupts
        payload = {"approved": True, "editedArgs": {"n": "two"}}
        entry = {"interruptId": interrupt["id"], "status": "resolved", "payload": payload}
        told = await answered(http.post("/ag-ui/careful", json={**body, "runId": "r-2", "messages": [], "resume": [entry]}), 400)
        fields = [error["field"] for error in told["metadata"]["bulkhead"]["errors"]]
        assert (told["code"], fields) == ("ARGUMENTS_INVALID", ["resume[0].payload.editedArgs/n"])
