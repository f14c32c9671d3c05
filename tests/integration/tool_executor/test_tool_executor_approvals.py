"""Approvals: a tool that needs one runs with a signed approval for exactly this call, and with nothing else."""

from dataclasses import replace
from datetime import timedelta
from unittest import mock

import orjson
import pytest
from bulkhead.tools.v1 import tools_pb2

from services.common import testing
from services.common.approval import Approval, canonical, digest
from services.common.identity import Minter, _tokens
from tests.integration.tool_executor import harness
from tests.integration.tool_executor.harness import DONE, FAILED, UNKNOWN

KEY = "run-a/1/0"


@pytest.fixture
async def desk(tmp_path, identities, state_url):
    async with harness.outside_server() as outside:
        tools = [
            harness.http_tool(outside, "wipe", "/wipe", approval="by_annotations"),
            harness.http_tool(outside, "fire", "/fire", approval="always"),
            harness.http_tool(outside, "tidy", "/tidy", approval="by_annotations", annotations={"destructive": False}),
            harness.http_tool(outside, "once", "/once", annotations={"destructive": False}),
        ]
        harness.write_config(tmp_path / "config", tools)
        async with harness.executor(tmp_path / "config", state_url, identities) as client:
            with testing.calling(identities, testing.principal_of()):
                yield outside, client


def approval_of(tool, arguments, **fields):
    tenant = testing.principal_of().tenant
    return Approval(tenant, "run-a", KEY, tool, "1.0.0", digest(canonical(arguments)), **{"approvers": ("bo",), **fields})


def minter(identities, issuer="orchestrator"):
    return Minter.from_file(identities.signing_key(issuer), issuer)


async def test_a_tool_says_whether_its_calls_need_an_approval(desk):
    _, client = desk
    tools = (await client.stub.ListTools(tools_pb2.ListToolsRequest())).tools
    assert {tool.name: tool.approval for tool in tools} == {
        "wipe": tools_pb2.TOOL_APPROVAL_WAIVABLE, "fire": tools_pb2.TOOL_APPROVAL_REQUIRED, "tidy": tools_pb2.TOOL_APPROVAL_NONE,
        "once": tools_pb2.TOOL_APPROVAL_NONE,
    }  # fmt: skip


async def test_without_an_approval_nothing_runs_and_the_key_stays_free_for_one(desk, identities):
    outside, client = desk
    refused = await client.result("wipe", {"n": 1}, KEY, run_id="run-a")
    assert (refused.outcome, refused.error.code) == (FAILED, "policy.approval_required")
    assert not outside.seen
    token = approval_of("wipe", {"n": 1}).sign(minter(identities))
    done = await client.result("wipe", {"n": 1}, KEY, run_id="run-a", approval=token)
    assert (done.outcome, len(outside.seen)) == (DONE, 1)
    again = await client.result("wipe", {"n": 1}, KEY, run_id="run-a", approval=token)
    assert (again.outcome, again.replayed, len(outside.seen)) == (DONE, True, 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": "globex"}, {"run_id": "run-b"}, {"key": "run-a/1/1"}, {"tool": "tidy"}, {"version": "2.0.0"},
        {"digest": digest(b'{"n":2}')},
    ],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
async def test_an_approval_of_anything_else_is_none(desk, identities, fields):
    outside, client = desk
    token = replace(approval_of("wipe", {"n": 1}), **fields).sign(minter(identities))
    refused = await client.result("wipe", {"n": 1}, KEY, run_id="run-a", approval=token)
    assert (refused.outcome, refused.error.code) == (FAILED, "policy.approval_rejected")
    assert not outside.seen


async def test_arguments_that_are_repaired_after_the_approval_are_not_those_that_were_approved(desk, identities):
    outside, client = desk
    token = approval_of("wipe", {"n": "1"}).sign(minter(identities))
    refused = await client.result("wipe", {"n": "1"}, KEY, run_id="run-a", approval=token)
    assert refused.error.code == "policy.approval_rejected"
    assert not outside.seen


async def test_a_signature_of_another_service_or_of_nobody_is_none(desk, identities):
    outside, client = desk
    approval = approval_of("wipe", {"n": 1})
    principal = identities.token(testing.principal_of())
    for token in (approval.sign(minter(identities, "gateway")), approval.sign(minter(identities))[:-8] + "AAAAAAAA", principal, "x"):
        refused = await client.result("wipe", {"n": 1}, KEY, run_id="run-a", approval=token)
        assert refused.error.code == "policy.approval_rejected"
    with mock.patch.object(_tokens, "LIFETIME", timedelta(seconds=1)):
        late = approval.sign(minter(identities))
    refused = await client.result("wipe", {"n": 1}, KEY, run_id="run-a", approval=late)
    assert refused.error.code == "policy.approval_expired"
    assert not outside.seen


async def test_rules_may_waive_what_annotations_ask_for_and_not_what_the_tool_demands(desk, identities):
    outside, client = desk
    waived = approval_of("wipe", {"n": 1}, approvers=()).sign(minter(identities))
    assert (await client.result("wipe", {"n": 1}, KEY, run_id="run-a", approval=waived)).outcome == DONE
    waived = replace(approval_of("fire", {"n": 1}, approvers=()), key="run-a/1/1").sign(minter(identities))
    refused = await client.result("fire", {"n": 1}, "run-a/1/1", run_id="run-a", approval=waived)
    assert (refused.error.code, len(outside.seen)) == ("policy.approval_rejected", 1)


async def test_a_call_of_unknown_outcome_is_made_again_once_for_each_time_that_a_person_says_so(desk, identities):
    outside, client = desk
    outside.answers["/once"] = [503, 503, {"number": 3}]
    assert (await client.result("once", {"n": 1}, KEY, run_id="run-a")).outcome == UNKNOWN
    assert (await client.result("once", {"n": 1}, KEY, run_id="run-a")).replayed
    first = approval_of("once", {"n": 1}, again=1).sign(minter(identities))
    for _ in range(2):
        assert (await client.result("once", {"n": 1}, KEY, run_id="run-a", approval=first)).outcome == UNKNOWN
    assert len(outside.seen) == 2
    second = approval_of("once", {"n": 1}, again=2).sign(minter(identities))
    for _ in range(2):
        assert (await client.result("once", {"n": 1}, KEY, run_id="run-a", approval=second)).outcome == DONE
    assert len(outside.seen) == 3
    assert len({seen.headers["Idempotency-Key"] for seen in outside.seen}) == 1


async def test_arguments_are_checked_without_running_anything(desk):
    outside, client = desk
    fine = await client.stub.CheckArguments(tools_pb2.CheckArgumentsRequest(name="wipe", arguments_json=b'{"n":"5"}'))
    assert (fine.arguments_json, list(fine.repaired_paths), fine.version) == (b'{"n":5}', ["/n"], "1.0.0")
    assert orjson.loads(fine.input_schema_json)["properties"] == {"n": {"type": "integer"}}
    wrong = await client.stub.CheckArguments(tools_pb2.CheckArgumentsRequest(name="wipe", arguments_json=b'{"n":"x","m":1}'))
    assert not wrong.arguments_json
    assert {violation.keyword for violation in wrong.violations} == {"type", "additionalProperties"}
    assert not outside.seen
