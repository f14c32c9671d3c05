"""What nobody may ask for, over HTTP and over gRPC, of a real gateway before a real orchestrator: a typed error that says what is wrong,
and a store in which nothing has changed."""

import pytest
from bulkhead.orchestrator.v1 import approvals_pb2, approvals_pb2_grpc, schedules_pb2, schedules_pb2_grpc, webhooks_pb2, webhooks_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.common.errors import BulkheadError, NotFound
from services.orchestrator.testing.harness import AGENTS, Client, served, settings_for, write_config
from tests.integration.real_gateway import gateway_before

pytestmark = pytest.mark.system
HOLLOW = f"""{AGENTS}
  hollow:
    current: "1"
    versions:
      "1": {{prompt: helper.md, model: m, tools: [nowhere_to_be_found]}}
"""
FAR = 10**9
RUNS, FOREIGN = "/v1/threads/new/runs", "/v1/threads/theirs/runs"
# (method, path, body, status, reason, field that is wrong); the ids are those of `prepare`.
OVER_HTTP = [
    *(
        ("POST", RUNS, {"input": "x", "limits": {name: 0}}, 422, "INVALID_INPUT", f"limits.{name}")
        for name in ("max_steps", "max_tool_calls", "max_total_tokens", "max_cost_microusd", "deadline_ms")
    ),
    ("POST", RUNS, {"input": "x", "agent": "nobody"}, 404, "AGENT_NOT_FOUND", ""),
    ("POST", RUNS, {"input": "x", "agent": "hollow"}, 409, "AGENT_TOOL_MISSING", ""),
    ("GET", "/v1/runs/nobody", None, 404, "RUN_NOT_FOUND", ""),
    ("GET", "/v1/runs/theirs", None, 404, "RUN_NOT_FOUND", ""),
    ("GET", "/v1/runs/theirs/events", None, 404, "RUN_NOT_FOUND", ""),
    ("GET", "/v1/threads/nothing", None, 404, "THREAD_NOT_FOUND", ""),
    ("GET", "/v1/threads/theirs", None, 404, "THREAD_NOT_FOUND", ""),
    ("POST", "/v1/runs/theirs/cancel", {}, 404, "RUN_NOT_FOUND", ""),
    ("POST", "/v1/runs/theirs/steer", {"text": "x"}, 404, "RUN_NOT_FOUND", ""),
    ("POST", "/v1/runs/theirs/stop", {}, 404, "RUN_NOT_FOUND", ""),
    ("PUT", "/v1/runs/theirs/plan", {"steps": [{"title": "x", "status": "pending"}], "version": 1}, 404, "RUN_NOT_FOUND", ""),
    ("POST", "/v1/runs/theirs/tool-calls/c/cancel", {"continuation": "skip"}, 404, "RUN_NOT_FOUND", ""),
    ("POST", "/v1/feedback", {"run_id": "theirs", "rating": 1}, 404, "RUN_NOT_FOUND", ""),
    ("POST", "/v1/runs/done/steer", {"text": "x"}, 409, "RUN_ENDED", ""),
    ("GET", f"/v1/runs/done/events?after={FAR}", None, 400, "INVALID_INPUT", "after"),
    ("GET", f"/v1/threads/mine/events?after={FAR}", None, 400, "INVALID_INPUT", "after"),
    ("POST", "/v1/threads/mine/fork", {"at": {"seq": FAR}}, 400, "SEQ_FROM_THE_FUTURE", ""),
    ("POST", "/v1/threads/mine/rollback", {"to": {"seq": FAR}}, 400, "SEQ_FROM_THE_FUTURE", ""),
    ("POST", "/v1/threads/theirs/fork", {}, 404, "THREAD_NOT_FOUND", ""),
    ("POST", "/v1/threads/theirs/rollback", {"to": {"beginning": True}}, 404, "THREAD_NOT_FOUND", ""),
    ("DELETE", "/v1/threads/theirs", None, 404, "THREAD_NOT_FOUND", ""),
    ("GET", "/v1/approvals/foreign/1/0", None, 403, "NOT_AN_APPROVER", ""),
    ("POST", "/v1/approvals/foreign/1/0/decision", {"verb": "approve"}, 403, "NOT_AN_APPROVER", ""),
    ("POST", "/v1/approvals/asking/1/0/decision", {"verb": "edit", "arguments": {"wrong": 7}}, 400, "ARGUMENTS_INVALID", "arguments.wrong"),
    ("POST", "/v1/approvals/asking/1/0/decision", {"verb": "edit", "arguments": [1]}, 422, "INVALID_INPUT", "arguments"),
    ("POST", "/v1/approvals/asking/9/9/decision", {"verb": "approve"}, 404, "APPROVAL_NOT_FOUND", ""),
    ("POST", "/v1/approvals/done/1/0/decision", {"verb": "approve"}, 404, "APPROVAL_NOT_FOUND", ""),
    ("POST", "/v1/approvals/answered/1/0/decision", {"verb": "approve"}, 409, "ALREADY_DECIDED", ""),
    ("POST", "/v1/approvals/asking/1/0/decision", {"verb": "guess"}, 422, "INVALID_INPUT", "verb"),
    ("POST", "/v1/schedules", {"timing": {"cron": "0 0 31 2 *"}}, 400, "SCHEDULE_NEVER_FIRES", ""),
    ("POST", "/v1/schedules", {"timing": {"cron": "@daily", "end_at": "2001-01-01T00:00:00Z"}}, 400, "SCHEDULE_NEVER_FIRES", ""),
    ("POST", "/v1/schedules", {"timing": {"cron": "61 * * * *"}}, 400, "INVALID_INPUT", "timing.cron"),
    ("POST", "/v1/schedules", {"timing": {"interval_ms": 0}}, 422, "INVALID_INPUT", "timing.interval_ms"),
    ("POST", "/v1/schedules", {"timing": {"cron": "@daily"}, "agent": "nobody"}, 404, "AGENT_NOT_FOUND", ""),
    ("POST", "/v1/schedules", {"timing": {"cron": "@daily"}, "thread_id": "theirs"}, 404, "THREAD_NOT_FOUND", ""),
    *(
        ("POST", "/v1/webhooks", {"url": url, "event_types": ["run.failed"]}, 400, "INVALID_INPUT", "url")
        for url in ("https://127.0.0.1/x", "https://169.254.169.254/x", "https://[::1]/x", "http://example.com/")
    ),
]


def over_grpc(client):
    """(call, reason, field that is wrong)."""
    channel = client.channel
    schedules, webhooks = schedules_pb2_grpc.ScheduleServiceStub(channel), webhooks_pb2_grpc.WebhookServiceStub(channel)
    approvals = approvals_pb2_grpc.ApprovalServiceStub(channel)

    def run(agent="quick", **fields):
        return client.runs.CreateRun(pb.CreateRunRequest(agent=agent, input=[pb.InputMessage(role="user", text="x")], **fields))

    def schedule(agent="quick", one="", **timing):
        policy = schedules_pb2.THREAD_POLICY_ONE if one else schedules_pb2.THREAD_POLICY_NEW
        asked = schedules_pb2.ScheduleDefinition(
            timing=schedules_pb2.ScheduleTiming(**timing), agent=agent, input=[pb.InputMessage(role="user", text="x")],
            thread_policy=policy, thread_id=one,
        )  # fmt: skip
        return schedules.CreateSchedule(schedules_pb2.CreateScheduleRequest(definition=asked))

    def decide(approval_id, **decision):
        return approvals.DecideApproval(approvals_pb2.DecideApprovalRequest(approval_id=approval_id, **decision))

    approve = {"approve": approvals_pb2.Approve()}
    wrong = approvals_pb2.Edit(arguments_json=b'{"wrong":7}')
    far, plan = pb.Checkpoint(seq=FAR), pb.PlanStep(title="x", status="pending")
    return [
        (run(limits=pb.RunLimits(max_steps=0)), "INVALID_INPUT", "limits.max_steps"),
        (run(limits=pb.RunLimits(deadline=Duration())), "INVALID_INPUT", "limits.deadline"),
        (run("nobody"), "AGENT_NOT_FOUND", ""),
        (run("hollow"), "AGENT_TOOL_MISSING", ""),
        (client.runs.GetRun(pb.GetRunRequest(run_id="theirs")), "RUN_NOT_FOUND", ""),
        (client.runs.CancelRun(pb.CancelRunRequest(run_id="theirs")), "RUN_NOT_FOUND", ""),
        (anext(client.runs.StreamEvents(pb.StreamEventsRequest(run_id="done", after_seq=FAR))), "CURSOR_FROM_THE_FUTURE", ""),
        (client.threads.ForkThread(pb.ForkThreadRequest(thread_id="mine", at=far)), "SEQ_FROM_THE_FUTURE", ""),
        (client.threads.RollbackThread(pb.RollbackThreadRequest(thread_id="mine", to=far)), "SEQ_FROM_THE_FUTURE", ""),
        (client.threads.DeleteThread(pb.DeleteThreadRequest(thread_id="theirs")), "THREAD_NOT_FOUND", ""),
        (decide("asking/9/9", **approve), "APPROVAL_NOT_FOUND", ""),
        (decide("done/1/0", **approve), "APPROVAL_NOT_FOUND", ""),
        (decide("foreign/1/0", **approve), "NOT_AN_APPROVER", ""),
        (decide("asking/1/0", edit=wrong), "ARGUMENTS_INVALID", "decision.edit.arguments_json/wrong"),
        (decide("asking/1/0", edit=approvals_pb2.Edit(arguments_json=b'{"to"')), "INVALID_INPUT", "decision"),
        (client.runs.StopGeneration(pb.StopGenerationRequest(run_id="theirs")), "RUN_NOT_FOUND", ""),
        (client.runs.UpdatePlan(pb.UpdatePlanRequest(run_id="theirs", steps=[plan], version=1)), "RUN_NOT_FOUND", ""),
        (client.runs.CancelToolCall(pb.CancelToolCallRequest(run_id="theirs", call_id="c", continuation=1)), "RUN_NOT_FOUND", ""),
        (client.runs.RecordFeedback(pb.RecordFeedbackRequest(run_id="theirs", rating=1)), "RUN_NOT_FOUND", ""),
        (decide("answered/1/0", **approve), "ALREADY_DECIDED", ""),
        (schedule(cron="0 0 31 2 *", one="fresh"), "SCHEDULE_NEVER_FIRES", ""),
        (schedule(interval=Duration()), "INVALID_INPUT", "timing"),
        (schedule("nobody", cron="@daily", one="fresh"), "AGENT_NOT_FOUND", ""),
        (schedule(cron="@daily", one="theirs"), "THREAD_NOT_FOUND", ""),
        (
            webhooks.CreateWebhook(webhooks_pb2.CreateWebhookRequest(url="https://10.0.0.1/x", event_types=["run.failed"])),
            "INVALID_INPUT", "url",
        ),
    ]  # fmt: skip


async def prepare(client, other):
    """Runs that bad requests may be about, each at rest."""
    await client.wait((await client.start("say hi", thread_id="mine", run_id="done")).run_id)
    await other.wait((await other.start("say secret", thread_id="theirs", run_id="theirs")).run_id)
    for run_id in ("asking", "answered"):
        await client.start('tool send_mail {"to":"ana"}', agent="careful", thread_id=f"t-{run_id}", run_id=run_id)
        (question,) = await testing.eventually_async(lambda run_id=run_id: client.asked(run_id), "it asks")
    await other.start('tool send_mail {"to":"cy"}', agent="careful", thread_id="t-foreign", run_id="foreign")
    await testing.eventually_async(lambda: other.asked("foreign"), "it asks")
    await client.decide(question.approval_id, reject=approvals_pb2.Reject())
    await client.wait("answered")


async def held(valkey):
    """All that the orchestrator keeps, but for what idempotency keys lead to, how often a position was given, and a user's list of names
    of threads: those that are not the user's are passed over there."""
    keys = [key for pattern in ("t:*", "tn:*", "schedules:*") for key in await valkey.keys(pattern)]
    return {key: await valkey.dump(key) for key in keys if b":idem" not in key and b":threads:" not in key and not key.endswith(b":n")}


async def at_rest(valkey):
    """As `held`, once that does not change any more by itself."""
    seen = [None]

    async def still():
        before, seen[0] = seen[0], await held(valkey)
        return before == seen[0]

    await testing.eventually_async(still, "nothing is under way", every_s=0.3)
    return seen[0]


@pytest.fixture
async def before(identities, behind, state_url, tmp_path, impatient, valkey):
    """Callers over gRPC and HTTP, and what the store holds."""
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config", HOLLOW), segments_after_s=0.2)
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        async with testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as dialer:
            client.channel = dialer.channel("orchestrator")
            await prepare(client, Client(dialer, identities, testing.principal_of(user="bo")))
            yield client, await people.session(), await at_rest(valkey)


async def test_over_http_it_is_a_typed_error_and_changes_nothing(before, valkey):
    _, http, store = before
    for method, path, body, status, reason, field in OVER_HTTP:
        if path == "/v1/schedules":
            body = {"input": "x", "agent": "quick", "thread_policy": "one", **body}
        async with http.request(method, path, json=body) as response:
            told = await response.json(content_type=None)
        assert (response.status, told["reason"]) == (status, reason), (path, body, told)
        assert response.headers["content-type"] == "application/problem+json"
        assert not field or field in [error["field"] for error in told["errors"]], (path, body, told)
    assert await held(valkey) == store


async def test_over_grpc_it_is_a_typed_error_and_changes_nothing(before, valkey):
    client, _, store = before
    with client.calling():
        for call, reason, field in over_grpc(client):
            with pytest.raises(BulkheadError) as refused:
                await call
            assert refused.value.reason == reason, refused.value
            assert not field or field in [violation.field for violation in refused.value.violations]
    assert await held(valkey) == store


async def test_a_run_that_is_refused_in_anothers_thread_leaves_its_id_free(before, valkey):
    """Its tenant's slot is asked for first, which is another step of the store; what that led to goes soon after."""
    client, http, store = before
    async with http.post(FOREIGN, json={"input": "x"}) as response:
        assert (response.status, (await response.json(content_type=None))["reason"]) == (404, "THREAD_NOT_FOUND")
    with pytest.raises(NotFound):
        await client.start("say hi", thread_id="theirs", run_id="wanted")

    async def as_it_was():
        return await held(valkey) == store

    await testing.eventually_async(as_it_was, "nothing is left of it")
    with client.calling():
        listed = (await client.threads.ListThreads(pb.ListThreadsRequest())).threads
        assert "theirs" not in [thread.thread_id for thread in listed]
    assert (await client.wait((await client.start("say hi", thread_id="mine", run_id="wanted")).run_id)).output_text == "hi"
