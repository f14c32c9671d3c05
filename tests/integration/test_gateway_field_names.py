"""Refusals of a real orchestrator over HTTP: in the names that the client used."""

import pytest

from services.orchestrator.testing.harness import served, settings_for, write_config
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
