"""Approvals from the outside: an orchestrator, a real tool executor behind it, and a server outside that counts what reaches it."""

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, PermissionDenied
from services.orchestrator.testing.harness import data_of, types
from tests.integration.approvals import APPROVE, REJECT, call, desk, edit, people

DONE, FAILED, CANCELLED = (
    orchestrator_pb2.RUN_STATUS_SUCCEEDED, orchestrator_pb2.RUN_STATUS_FAILED, orchestrator_pb2.RUN_STATUS_CANCELLED
)  # fmt: skip


@pytest.fixture
async def site(identities, state_url, tmp_path):
    async with desk(identities, state_url, tmp_path) as made:
        yield made


async def refused(doing, kind):
    with pytest.raises(kind) as caught:
        await doing
    return caught.value


async def events_of(site, run_id, *kinds):
    return [data_of(event) for event in await site.client.log(run_id) if event.type in kinds]


async def test_a_call_that_needs_an_approval_waits_for_it_while_others_go_on_and_runs_once(site):
    run = await site.client.start(call(("wipe", {"n": "5"}), ("look", {"n": 1})), agent="careful")
    (asked,) = await site.asked(run.run_id)
    assert (site.sent(), len(site.sent("/look"))) == ([], 1)
    assert (asked.approval_id, asked.tool, asked.tool_version) == (f"{run.run_id}/1/0", "wipe", "1.0.0")
    # As the tool is given them: repaired before anybody is asked.
    assert asked.arguments_json == b'{"n":5}'
    assert (asked.requester, asked.decidable, asked.reason) == ("ana", True, "by_tool")
    decided = await site.decide(asked.approval_id, **APPROVE)
    assert (decided.state, decided.decidable) == (pb.APPROVAL_STATE_APPROVED, False)
    ended = await site.client.wait(run.run_id)
    assert (ended.status, site.sent(), ended.usage.tool_calls) == (DONE, [{"n": 5}], 2)
    log = types(await site.client.log(run.run_id))
    assert log.index("interrupt_raised") < log.index("interrupt_resolved") < len(log) - 1
    assert (log.count("interrupt_raised"), log.count("interrupt_resolved"), log.count("tool_call_completed")) == (1, 1, 2)


async def test_edited_arguments_are_what_runs_and_those_that_do_not_fit_change_nothing(site):
    run = await site.client.start(call(("wipe", {"n": 1})), agent="careful")
    (asked,) = await site.asked(run.run_id)
    wrong = await refused(site.decide(asked.approval_id, **edit({"n": "x", "m": 2})), InvalidInput)
    assert wrong.reason == "ARGUMENTS_INVALID"
    assert {v.field for v in wrong.violations} == {"decision.edit.arguments_json/n", "decision.edit.arguments_json/m"}
    for bad in (b"{", b"[1]"):
        await refused(site.decide(asked.approval_id, edit=pb.Edit(arguments_json=bad)), InvalidInput)
    decided = await site.decide(asked.approval_id, **edit({"n": 2}))
    assert decided.arguments_json == b'{"n":2}'
    assert decided.arguments_digest != asked.arguments_digest
    ended = await site.client.wait(run.run_id)
    assert site.sent() == [{"n": 2}]
    assert 'changed the arguments of this call to {"n":2}' in ended.output_text


async def test_a_rejected_call_is_not_made_and_the_model_hears_why(site):
    run = await site.client.start(call(("wipe", {"n": 1})), agent="careful")
    (asked,) = await site.asked(run.run_id)
    await site.decide(asked.approval_id, reason="not on a Friday", **REJECT)
    ended = await site.client.wait(run.run_id)
    assert (ended.status, site.sent(), ended.usage.tool_calls) == (DONE, [], 0)
    assert "policy.approval_rejected" in ended.output_text
    assert "not on a Friday" in ended.output_text


async def test_a_second_decision_hears_of_the_first_and_the_same_key_is_the_same_decision(site):
    run = await site.client.start(call(("wipe", {"n": 1})), agent="careful")
    (asked,) = await site.asked(run.run_id)
    first = await site.decide(asked.approval_id, reason="fine", idempotency_key="k", **APPROVE)
    again = await site.decide(asked.approval_id, reason="fine", idempotency_key="k", **APPROVE)
    assert again == first
    await refused(site.decide(asked.approval_id, idempotency_key="k", **REJECT), IdempotencyMismatch)
    second = await refused(site.decide(asked.approval_id, **REJECT), Conflict)
    assert second.reason == "ALREADY_DECIDED"
    told = {name: second.metadata[name] for name in ("verb", "decided_by", "state", "decided_reason")}
    assert told == {"verb": "approve", "decided_by": "ana", "state": "approved", "decided_reason": "fine"}
    await site.client.wait(run.run_id)
    assert (await refused(site.decide(asked.approval_id, **REJECT), Conflict)).reason == "ALREADY_DECIDED"
    assert len(site.sent()) == 1


async def test_who_may_not_decide_is_refused_and_other_tenants_find_nothing(site):
    run = await site.client.start(call(("wipe", {"n": 1})), agent="led")
    (asked,) = await site.asked(run.run_id)
    eve, bo = people("eve", "bo")
    for who in (eve, None):
        assert (await refused(site.decide(asked.approval_id, who, **APPROVE), PermissionDenied)).reason == "NOT_AN_APPROVER"
    stranger = testing.principal_of("globex", "bo")
    assert (await refused(site.decide(asked.approval_id, stranger, **APPROVE), NotFound)).reason == "APPROVAL_NOT_FOUND"
    (reader,) = people("bo", scopes=("approvals:read",))
    assert (await refused(site.decide(asked.approval_id, reader, **APPROVE), PermissionDenied)).reason == "SCOPE_MISSING"
    for missing in (f"{run.run_id}/9/0", "nobody/1/0"):
        assert (await refused(site.decide(missing, bo, **APPROVE), NotFound)).reason == "APPROVAL_NOT_FOUND"
    for bad in ("", "x", "/" * 300):
        await refused(site.decide(bad, bo, **APPROVE), InvalidInput)
    await refused(site.decide(asked.approval_id, bo), InvalidInput)
    await refused(site.decide(asked.approval_id, bo, outcome=pb.Outcome(retry=True)), InvalidInput)
    assert not site.sent()
    await site.decide(asked.approval_id, bo, **APPROVE)
    assert (await site.client.wait(run.run_id)).status == DONE


async def test_four_eyes_are_two_people_and_never_the_user_of_the_run(site):
    bo, cy, dee = *people("bo", "cy"), *people("dee", scopes=("approvals:read", "approvals:write", "approvals:four"))
    run = await site.client.start(call(("wipe", {"n": 1})), agent="paired")
    (asked,) = await site.asked(run.run_id)
    assert not asked.decidable
    assert (await refused(site.decide(asked.approval_id, **APPROVE), PermissionDenied)).reason == "NOT_AN_APPROVER"
    assert (await site.decide(asked.approval_id, bo, **APPROVE)).state == pb.APPROVAL_STATE_OPEN
    assert (await refused(site.decide(asked.approval_id, bo, **APPROVE), Conflict)).reason == "ALREADY_DECIDED"
    # Other arguments are another matter: what bo approved is not what is asked now.
    changed = await site.decide(asked.approval_id, cy, **edit({"n": 2}))
    assert (changed.state, site.sent()) == (pb.APPROVAL_STATE_OPEN, [])
    approved = await site.decide(asked.approval_id, dee, arguments_digest=changed.arguments_digest, **APPROVE)
    assert approved.state == pb.APPROVAL_STATE_APPROVED
    await site.client.wait(run.run_id)
    assert site.sent() == [{"n": 2}]
    assert len(await events_of(site, run.run_id, "interrupt_updated")) == 2


async def test_nobody_approves_arguments_that_somebody_else_has_changed_meanwhile(site):
    bo, cy = people("bo", "cy")
    run = await site.client.start(call(("wipe", {"n": 1})), agent="paired")
    (asked,) = await site.asked(run.run_id)
    saw = {"arguments_digest": asked.arguments_digest}
    changed = await site.decide(asked.approval_id, cy, **edit({"n": 2}), **saw)
    for decision in (APPROVE, REJECT, edit({"n": 3}), {"delegate": pb.Delegate(user="eve")}):
        late = await refused(site.decide(asked.approval_id, bo, idempotency_key="k", **decision, **saw), Conflict)
        assert (late.reason, late.metadata["arguments_digest"]) == ("ARGUMENTS_CHANGED", changed.arguments_digest)
    assert (await refused(site.decide(asked.approval_id, bo, **APPROVE), Conflict)).reason == "ARGUMENTS_DIGEST_REQUIRED"
    for bad in ("x", asked.arguments_digest.upper(), asked.arguments_digest + "0"):
        wrong = await refused(site.decide(asked.approval_id, bo, arguments_digest=bad, **APPROVE), InvalidInput)
        assert [v.field for v in wrong.violations] == ["arguments_digest"]
    with testing.calling(site.client.identities, bo):
        found = (await site.stub.GetApproval(pb.GetApprovalRequest(approval_id=asked.approval_id))).approval
    # Nothing of what was refused is left, nor told.
    assert (list(found.decisions), found.decidable) == (list(changed.decisions), True)
    assert len(await events_of(site, run.run_id, "interrupt_updated")) == 1
    looked = {"arguments_digest": found.arguments_digest, "idempotency_key": "k"}
    approved = await site.decide(asked.approval_id, bo, **APPROVE, **looked)
    assert await site.decide(asked.approval_id, bo, **APPROVE, **looked) == approved
    await refused(site.decide(asked.approval_id, bo, idempotency_key="k", **APPROVE), IdempotencyMismatch)
    await site.client.wait(run.run_id)
    assert site.sent() == [{"n": 2}]


async def test_a_decision_sent_again_behind_an_edit_is_still_the_one_about_the_arguments_before(site):
    bo, cy = people("bo", "cy")
    run = await site.client.start(call(("wipe", {"n": 1})), agent="paired")
    (asked,) = await site.asked(run.run_id)
    first = {"arguments_digest": asked.arguments_digest, "idempotency_key": "k", **APPROVE}
    await site.decide(asked.approval_id, bo, **first)
    changed = await site.decide(asked.approval_id, cy, **edit({"n": 2}))
    again = await site.decide(asked.approval_id, bo, **first)
    assert (again.state, list(again.decisions), site.sent()) == (pb.APPROVAL_STATE_OPEN, list(changed.decisions), [])


async def test_a_decision_of_which_the_version_before_recorded_no_digest_is_the_same_when_it_is_sent_again(site):
    run = await site.client.start(call(("wipe", {"n": 1})), agent="careful")
    (asked,) = await site.asked(run.run_id)
    # What is recorded then: the field is not known there.
    before = await site.decide(asked.approval_id, idempotency_key="k", **APPROVE)
    looked = {"arguments_digest": asked.arguments_digest, "idempotency_key": "k"}
    assert await site.decide(asked.approval_id, **APPROVE, **looked) == before
    await refused(site.decide(asked.approval_id, **REJECT, **looked), IdempotencyMismatch)
    await site.client.wait(run.run_id)
    assert len(site.sent()) == 1


async def test_who_delegates_cannot_decide_any_more_and_the_other_can(site):
    eve, bo = people("eve", "bo")
    run = await site.client.start(call(("wipe", {"n": 1})), agent="led")
    (asked,) = await site.asked(run.run_id)
    await refused(site.decide(asked.approval_id, bo, delegate=pb.Delegate()), InvalidInput)
    await refused(site.decide(asked.approval_id, bo, delegate=pb.Delegate(user="bo")), InvalidInput)
    passed = await site.decide(asked.approval_id, bo, delegate=pb.Delegate(user="eve"), reason="away")
    assert (list(passed.approvers.users), list(passed.approvers.delegated_by), passed.state) == (["bo", "eve"], ["bo"], 1)
    assert (await refused(site.decide(asked.approval_id, bo, **APPROVE), PermissionDenied)).reason == "NOT_AN_APPROVER"
    assert (await site.decide(asked.approval_id, eve, **APPROVE)).state == pb.APPROVAL_STATE_APPROVED
    await site.client.wait(run.run_id)
    (told,) = await events_of(site, run.run_id, "interrupt_updated")
    assert (told["verb"], told["delegated_to"], told["by"]) == ("delegate", "user:eve", "bo")


async def test_a_run_goes_on_when_all_of_its_questions_are_answered_and_repeats_none(site):
    run = await site.client.start(call(("wipe", {"n": 1}), ("fire", {"n": 2}), ("look", {"n": 3})), agent="careful")
    first, second = await site.asked(run.run_id, 2)
    await site.decide(second.approval_id, **APPROVE)
    (left,) = await site.asked(run.run_id)
    assert left.approval_id == first.approval_id
    assert (site.sent(), site.sent("/fire"), len(site.sent("/look"))) == ([], [], 1)
    await site.decide(first.approval_id, **APPROVE)
    ended = await site.client.wait(run.run_id)
    assert (ended.status, [seen.path for seen in site.outside.seen]) == (DONE, ["/look", "/wipe", "/fire"])
    assert len(await events_of(site, run.run_id, "interrupt_raised")) == 2


@pytest.mark.parametrize(("agent", "status"), [("hasty", DONE), ("strict", FAILED)])
async def test_what_nobody_decides_in_time_has_the_outcome_that_was_declared(site, agent, status):
    run = await site.client.start(call(("wipe", {"n": 1})), agent=agent)
    (asked,) = await site.asked(run.run_id)
    ended = await site.client.wait(run.run_id)
    assert (ended.status, site.sent()) == (status, [])
    assert ended.error.reason == "APPROVAL_EXPIRED" if status == FAILED else "policy.approval_expired" in ended.output_text
    assert (await refused(site.decide(asked.approval_id, **APPROVE), Conflict)).reason == "APPROVAL_EXPIRED"
    (told,) = await events_of(site, run.run_id, "interrupt_resolved")
    assert (told["outcome"], told["by"]) == ("expired", "")


async def test_a_cancel_ends_a_run_that_waits_and_its_questions_with_it(site):
    run = await site.client.start(call(("wipe", {"n": 1})), agent="careful")
    (asked,) = await site.asked(run.run_id)
    await site.client.cancel(run.run_id)
    assert (await site.client.wait(run.run_id)).status == CANCELLED
    late = await refused(site.decide(asked.approval_id, **APPROVE), Conflict)
    assert late.reason in ("RUN_ENDED", "RUN_CANCELLED")
    with site.client.calling():
        found = (await site.stub.GetApproval(pb.GetApprovalRequest(approval_id=asked.approval_id))).approval
        listed = (await site.stub.ListApprovals(pb.ListApprovalsRequest(state=pb.APPROVAL_STATE_OPEN))).approvals
    assert (found.state, list(listed), site.sent()) == (pb.APPROVAL_STATE_CANCELLED, [], [])
    assert [told["outcome"] for told in await events_of(site, run.run_id, "interrupt_resolved")] == ["cancelled"]


async def test_an_agent_that_cannot_ask_is_refused_and_one_whose_rules_waive_it_is_not(site):
    run = await site.client.start(call(("wipe", {"n": 1})), agent="alone")
    ended = await site.client.wait(run.run_id)
    assert (ended.status, site.sent()) == (DONE, [])
    assert "policy.approval_required" in ended.output_text
    run = await site.client.start(call(("wipe", {"n": "1"})), agent="trusted")
    assert (await site.client.wait(run.run_id)).status == DONE
    assert site.sent() == [{"n": 1}]
    run = await site.client.start(call(("fire", {"n": 1})), agent="trusted")
    await site.asked(run.run_id)
    assert not site.sent("/fire")


async def test_arguments_that_the_tool_would_refuse_are_asked_of_nobody(site):
    run = await site.client.start(call(("wipe", {"n": "x"})), agent="careful")
    ended = await site.client.wait(run.run_id)
    assert "input.invalid" in ended.output_text
    assert not await events_of(site, run.run_id, "interrupt_raised")


async def test_lists_hold_what_the_caller_may_decide_page_by_page(site):
    bo, eve = people("bo", "eve")
    runs = [await site.client.start(call(("wipe", {"n": n})), agent="led") for n in range(3)]
    asked = [(await site.asked(run.run_id))[0].approval_id for run in runs]

    async def listed(who, **fields):
        with testing.calling(site.client.identities, who):
            found = await site.stub.ListApprovals(pb.ListApprovalsRequest(**fields))
        return [approval.approval_id for approval in found.approvals], found.next_page_token

    first, token = await listed(bo, decidable=True, page_size=2)
    rest, end = await listed(bo, decidable=True, page_size=2, page_token=token)
    assert sorted([*first, *rest]) == sorted(asked)
    assert (len(first), end) == (2, "")
    assert await listed(eve) == ([], "")
    # The user of the runs sees them and may not decide.
    assert len((await listed(None))[0]) == 3
    assert await listed(None, decidable=True) == ([], "")
    assert (await listed(bo, thread_id=runs[1].thread_id))[0] == [asked[1]]
    await site.decide(asked[0], bo, **REJECT)
    assert sorted((await listed(bo, state=pb.APPROVAL_STATE_OPEN))[0]) == sorted(asked[1:])
    assert (await listed(bo, state=pb.APPROVAL_STATE_REJECTED))[0] == [asked[0]]


@pytest.mark.parametrize("answer", ["done", "failed", "retry", "cancel_run"])
async def test_of_a_call_of_unknown_outcome_a_person_says_what_became_of_it(site, answer):
    site.outside.answers["/once"] = ["drop", {"number": 2}]
    run = await site.client.start(call(("once", {"n": 1})), agent="careful")
    (asked,) = await site.asked(run.run_id)
    assert (asked.approval_id, asked.kind) == (f"{run.run_id}/1/0/unknown/1", pb.APPROVAL_KIND_TOOL_OUTCOME_UNKNOWN)
    await refused(site.decide(asked.approval_id, **APPROVE), InvalidInput)
    given = {"done": pb.Outcome(done_json=b'{"number":7}')}.get(answer) or pb.Outcome(**{answer: True})
    assert (await site.decide(asked.approval_id, outcome=given)).state == pb.APPROVAL_STATE_ANSWERED
    ended = await site.client.wait(run.run_id)
    assert ended.status == (CANCELLED if answer == "cancel_run" else DONE)
    assert len(site.sent("/once")) == (2 if answer == "retry" else 1)
    said = {"done": '{"number":7}', "failed": "outcome.failed", "retry": '{"number":2}', "cancel_run": ""}[answer]
    assert said in ended.output_text
    assert len({seen.headers["Idempotency-Key"] for seen in site.outside.seen}) == 1


async def test_a_decision_may_land_on_any_replica(identities, state_url, tmp_path):
    async with desk(identities, state_url, tmp_path, replicas=2) as site:
        run = await site.client.start(call(("wipe", {"n": 1})), agent="careful")
        (asked,) = await site.asked(run.run_id)
        await site.decide(asked.approval_id, at="second", **APPROVE)
        assert (await site.client.wait(run.run_id)).status == DONE
        assert len(site.sent()) == 1
