"""Approvals over HTTP: before an orchestrator in memory, and before a real one with a real tool executor behind it."""

import hashlib

import orjson
import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as pb

from services.common import testing
from tests.integration.approvals import call, desk
from tests.integration.real_gateway import answered, gateway_before

MODULE = pytest.mark.asyncio(loop_scope="module")
# More digits than a double has; its digest is over these.
ARGUMENTS = b'{"n":12345678901234567890123,"to":"bob"}'


DIGEST = hashlib.sha256(ARGUMENTS).hexdigest()


def asks(front, run_id, *, kind=pb.APPROVAL_KIND_TOOL_CALL, call_id="0", **fields):
    """A run that asks; the id of the approval."""
    approval = pb.Approval(
        approval_id=f"{run_id}/1/{call_id}", kind=kind, state=pb.APPROVAL_STATE_OPEN, run_id=run_id, thread_id=f"t-{run_id}",
        requester="ana", call_id="c0", tool="send_mail", tool_version="1.0.0", arguments_json=ARGUMENTS,
        arguments_digest=hashlib.sha256(ARGUMENTS).hexdigest(), input_schema_json=b'{"type":"object"}', reason="by_tool",
        on_expiry="reject", approvers=pb.Approvers(users=["bo"], requester=True), decidable=True, **fields,
    )  # fmt: skip
    front.log.desk.raise_approval("acme", approval)
    return approval.approval_id


@MODULE
async def test_an_approval_is_read_with_the_very_arguments_that_its_digest_is_over(ana, front):
    approval_id = asks(front, "run-read")
    for path in (approval_id, approval_id.replace("/", "%2F")):
        async with ana.get(f"/v1/approvals/{path}") as response:
            raw = await response.read()
            assert response.status == 200, raw
        told = orjson.loads(raw)
        assert b'"arguments":' + ARGUMENTS in raw
        assert told["arguments_digest"] == hashlib.sha256(ARGUMENTS).hexdigest()
        assert (told["approval_id"], told["kind"], told["state"], told["tool"]) == (approval_id, "tool_call", "open", "send_mail")
        assert told["approvers"] == {"users": ["bo"], "scopes": [], "requester": True, "delegated_by": []}
        assert (told["decidable"], told["decisions"], told["input_schema"]) == (True, [], {"type": "object"})
        assert told["expires_at"] > told["created_at"]


@MODULE
async def test_approvals_are_listed_by_run_thread_state_and_page(ana, front):
    ids = [asks(front, f"run-list-{n}") for n in range(3)]
    asks(front, "run-list-1", call_id="1")
    await answered(ana.post(f"/v1/approvals/{ids[2]}/decision", json={"verb": "reject"}), 200)

    async def listed(query):
        return [a["approval_id"] for a in (await answered(ana.get(f"/v1/approvals?{query}"), 200))["data"]]

    assert await listed("run_id=run-list-1") == ["run-list-1/1/1", "run-list-1/1/0"]
    assert await listed("thread_id=t-run-list-0") == [ids[0]]
    assert ids[2] in await listed("state=rejected")
    assert ids[2] not in await listed("decidable=true")
    assert ids[0] in await listed("decidable=true&state=open")
    seen, path = [], "/v1/approvals?limit=1&run_id=run-list-1"
    while path:
        async with ana.get(path) as response:
            seen += [a["approval_id"] for a in (await response.json())["data"]]
            link = response.links.get("next")
            path = str(link["url"].relative()) if link else None
    assert seen == ["run-list-1/1/1", "run-list-1/1/0"]


@MODULE
@pytest.mark.parametrize(
    ("body", "heard"),
    [
        ({"verb": "approve"}, {"approve": pb.Approve()}),
        ({"verb": "reject"}, {"reject": pb.Reject()}),
        ({"verb": "approve", "arguments_digest": None}, {"approve": pb.Approve()}),
        ({"verb": "approve", "arguments_digest": DIGEST}, {"approve": pb.Approve(), "arguments_digest": DIGEST}),
        ({"verb": "edit", "arguments": {"n": 2}}, {"edit": pb.Edit(arguments_json=b'{"n":2}')}),
        ({"verb": "delegate", "to": {"user": "cy"}}, {"delegate": pb.Delegate(user="cy")}),
        ({"verb": "delegate", "to": {"scope": "ops"}}, {"delegate": pb.Delegate(scope="ops")}),
        ({"verb": "done", "result": {"sent": True}}, {"outcome": pb.Outcome(done_json=b'{"sent":true}')}),
        ({"verb": "done", "result": None}, {"outcome": pb.Outcome(done_json=b"null")}),
        ({"verb": "failed"}, {"outcome": pb.Outcome(failed=True)}),
        ({"verb": "retry"}, {"outcome": pb.Outcome(retry=True)}),
        ({"verb": "cancel_run"}, {"outcome": pb.Outcome(cancel_run=True)}),
    ],
)
async def test_each_decision_is_what_the_orchestrator_hears(ana, front, body, heard):
    approval_id = asks(front, "run-heard")
    path = f"/v1/approvals/{approval_id}/decision"
    told = await answered(ana.post(path, json={**body, "reason": "because"}, headers={"idempotency-key": "k"}), 200)
    expected = pb.DecideApprovalRequest(approval_id=approval_id, reason="because", idempotency_key="k", **heard)
    assert front.log.desk.asked[-1] == expected
    assert (told["decisions"][0]["reason"], told["decisions"][0]["user"], told["decidable"]) == ("because", "ana", False)


@MODULE
async def test_a_second_decision_hears_of_the_first_and_arguments_that_do_not_fit_are_named(ana, front):
    path = f"/v1/approvals/{asks(front, 'run-twice')}/decision"
    wrong = await answered(ana.post(path, json={"verb": "edit", "arguments": {"wrong": 1}}), 400)
    assert (wrong["reason"], wrong["errors"][0]["field"]) == ("ARGUMENTS_INVALID", "arguments.wrong")
    other = await answered(ana.post(path, json={"verb": "approve", "arguments_digest": "0" * 64}), 409)
    assert (other["reason"], other["arguments_digest"]) == ("ARGUMENTS_CHANGED", DIGEST)
    await answered(ana.post(path, json={"verb": "approve"}), 200)
    second = await answered(ana.post(path, json={"verb": "reject"}), 409)
    assert (second["reason"], second["status"]) == ("ALREADY_DECIDED", 409)
    assert (second["verb"], second["decided_by"], second["decided_at_ms"], second["state"]) == ("approve", "bo", "1", "approved")
    assert second["decided_reason"] == "fine"


@MODULE
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"verb": "approve", "surprise": 1}, "surprise"),
        ({}, "verb"),
        ({"verb": "expire"}, "verb"),
        ({"verb": "approve", "arguments_digest": DIGEST.upper()}, "arguments_digest"),
        ({"verb": "edit"}, "arguments"),
        ({"verb": "edit", "arguments": None}, "arguments"),
        ({"verb": "edit", "arguments": [1]}, "arguments"),
        ({"verb": "approve", "arguments": {}}, "arguments"),
        ({"verb": "done"}, "result"),
        ({"verb": "retry", "result": 1}, "result"),
        ({"verb": "delegate"}, "to"),
        ({"verb": "reject", "to": {"user": "bo"}}, "to"),
        ({"verb": "delegate", "to": {}}, "to"),
        ({"verb": "delegate", "to": {"user": "bo", "scope": "ops"}}, "to"),
        ({"verb": "delegate", "to": {"user": ""}}, "to.user"),
        ({"verb": "delegate", "to": {"user": "bo", "surprise": 1}}, "to.surprise"),
        ({"verb": "reject", "reason": "x" * 1001}, "reason"),
    ],
)
async def test_decisions_that_are_none_name_the_field(ana, front, body, field):
    asked = len(front.log.desk.asked)
    problem = await answered(ana.post(f"/v1/approvals/{asks(front, 'run-bad')}/decision", json=body), 422)
    assert problem["errors"][0]["field"] == field
    assert len(front.log.desk.asked) == asked


@MODULE
async def test_ids_and_parameters_that_are_none_and_those_of_others(ana, front):
    approval_id = asks(front, "run-theirs")
    other = {"authorization": f"Bearer {await front.issue('globex')}"}
    for path in (approval_id, "run-nobody/1/0"):
        headers = other if path == approval_id else {}
        assert (await answered(ana.get(f"/v1/approvals/{path}", headers=headers), 404))["reason"] == "APPROVAL_NOT_FOUND"
        await answered(ana.post(f"/v1/approvals/{path}/decision", json={"verb": "approve"}, headers=headers), 404)
    assert (await answered(ana.get("/v1/approvals", headers=other), 200))["data"] == []
    for bad in ("run", "run/1", "a%20b/1/0", f"{'x' * 129}/1/0", f"run/1/0/unknown/{'9' * 65}"):
        problem = await answered(ana.get(f"/v1/approvals/{bad}"), 400)
        assert problem["errors"][0]["field"] == "approval_id", bad
        await answered(ana.post(f"/v1/approvals/{bad}/decision", json={"verb": "approve"}), 400)
    for query in ("state=maybe", "decidable=perhaps", "run_id=a%20b", "after=nonsense", "limit=0", "surprise=1"):
        await answered(ana.get(f"/v1/approvals?{query}"), 400)
    reader = {"authorization": f"Bearer {await front.issue(scopes=('approvals:read',))}"}
    await answered(ana.get(f"/v1/approvals/{approval_id}", headers=reader), 200)
    problem = await answered(ana.post(f"/v1/approvals/{approval_id}/decision", json={"verb": "approve"}, headers=reader), 403)
    assert problem["missing_scopes"] == "approvals:write"
    writer = {"authorization": f"Bearer {await front.issue(scopes=('approvals:write',))}"}
    for path in ("/v1/approvals", f"/v1/approvals/{approval_id}"):
        assert (await answered(ana.get(path, headers=writer), 403))["missing_scopes"] == "approvals:read"


# --- before a real orchestrator ---


@pytest.fixture
async def real(identities, state_url, tmp_path):
    async with desk(identities, state_url, tmp_path) as made, gateway_before(identities, state_url, made.settings.grpc_port) as people:
        yield made, people


async def asked(http, run_id):
    """The one approval that a run waits for, as the list shows it."""

    async def raised():
        return (await answered(http.get(f"/v1/approvals?run_id={run_id}&decidable=true"), 200))["data"]

    (one,) = await testing.eventually_async(raised, f"{run_id} asks")
    return one


async def begin(http, agent, arguments):
    body = {"input": call(("wipe", arguments)), "agent": agent}
    return (await answered(http.post(f"/v1/threads/t-{agent}/runs", json=body), 202))["run_id"]


async def test_a_real_call_is_made_with_the_arguments_that_somebody_edited(real):
    made, people = real
    http = await people.session()
    run_id = await begin(http, "careful", {"n": 1})
    one = await asked(http, run_id)
    path = f"/v1/approvals/{one['approval_id']}"
    assert (one["tool"], one["arguments"], one["requester"], made.sent()) == ("wipe", {"n": 1}, "ana", [])
    wrong = await answered(http.post(f"{path}/decision", json={"verb": "edit", "arguments": {"n": "x"}}), 400)
    assert (wrong["reason"], wrong["errors"][0]["field"]) == ("ARGUMENTS_INVALID", "arguments.n")
    none = await answered(http.post(f"{path}/decision", json={"verb": "retry"}), 400)
    assert none["errors"][0]["field"] == "verb"
    body, key = {"verb": "edit", "arguments": {"n": 2}, "reason": "two will do"}, {"idempotency-key": "d"}
    decided = await answered(http.post(f"{path}/decision", json=body, headers=key), 200)
    assert (decided["state"], decided["arguments"], decided["decidable"]) == ("approved", {"n": 2}, False)
    assert (await answered(http.post(f"{path}/decision", json=body, headers=key), 200))["state"] == "approved"
    await answered(http.post(f"{path}/decision", json={"verb": "reject"}, headers=key), 422)
    late = await answered(http.post(f"{path}/decision", json={"verb": "reject"}), 409)
    assert (late["reason"], late["verb"], late["decided_by"], late["status"]) == ("ALREADY_DECIDED", "edit", "ana", 409)
    assert late["decided_reason"] == "two will do"
    await made.client.wait(run_id)
    assert made.sent() == [{"n": 2}]
    assert (await answered(http.get(path), 200))["decisions"][0]["reason"] == "two will do"


async def test_a_real_approval_is_delegated_and_rejected_by_whom_it_went_to(real):
    made, people = real
    ana, bo, cy, eve = [await people.session(user) for user in ("ana", "bo", "cy", "eve")]
    run_id = await begin(ana, "led", {"n": 3})
    one = await asked(bo, run_id)
    path = f"/v1/approvals/{one['approval_id']}"
    assert (await answered(ana.get(path), 200))["decidable"] is False
    for outsider in (cy, eve):
        assert (await answered(outsider.get(path), 403))["reason"] == "NOT_AN_APPROVER"
    assert (await answered((await people.session(tenant="globex")).get(path), 404))["reason"] == "APPROVAL_NOT_FOUND"
    passed = await answered(bo.post(f"{path}/decision", json={"verb": "delegate", "to": {"user": "cy"}}), 200)
    assert (passed["state"], passed["decidable"], passed["approvers"]["delegated_by"]) == ("open", False, ["bo"])
    refused = await answered(bo.post(f"{path}/decision", json={"verb": "approve"}), 403)
    assert refused["reason"] == "NOT_AN_APPROVER"
    rejected = await answered(cy.post(f"{path}/decision", json={"verb": "reject", "reason": "not today"}), 200)
    assert [(d["verb"], d["user"], d["delegated_to"]) for d in rejected["decisions"]] == [
        ("delegate", "bo", "user:cy"), ("reject", "cy", None),
    ]  # fmt: skip
    ended = await made.client.wait(run_id)
    assert made.sent() == []
    assert "not today" in ended.output_text


async def test_a_real_call_of_unknown_outcome_is_told_by_a_person(real):
    made, people = real
    http = await people.session()
    made.outside.answers["/once"] = ["drop"]
    run = await made.client.start(call(("once", {"n": 1})), agent="careful")
    one = await asked(http, run.run_id)
    assert (one["kind"], one["approval_id"]) == ("outcome_unknown", f"{run.run_id}/1/0/unknown/1")
    path = f"/v1/approvals/{one['approval_id']}"
    decided = await answered(http.post(f"{path}/decision", json={"verb": "done", "result": {"number": 7}}), 200)
    assert (decided["state"], decided["decisions"][0]["verb"]) == ("answered", "done")
    assert '{"number":7}' in (await made.client.wait(run.run_id)).output_text
    assert len(made.sent("/once")) == 1
