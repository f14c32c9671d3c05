"""`bulkhead approvals`, `webhooks` and `quota` at a gateway over fakes, as a user types them; and what the shell completes."""

import asyncio
import hashlib
import json
import subprocess

import pytest
from bulkhead.llm.v1 import llm_pb2
from bulkhead.orchestrator.v1 import admin_pb2, webhooks_pb2
from bulkhead.orchestrator.v1 import approvals_pb2 as pb

from services.common import testing
from tests.unit.cli.command_line import command, on_a_terminal

pytestmark = pytest.mark.asyncio(loop_scope="module")
DIGEST = hashlib.sha256(b'{"n":1}').hexdigest()


@pytest.fixture(autouse=True)
def _connected(front, monkeypatch):
    monkeypatch.setenv("BULKHEAD_URL", front.url)
    monkeypatch.setenv("BULKHEAD_API_KEY", front.key)


def asks(front, run_id, kind=pb.APPROVAL_KIND_TOOL_CALL, call="0", arguments=b'{"n":1}'):
    """A run that asks; the id of the approval."""
    approval = pb.Approval(
        approval_id=f"{run_id}/1/{call}", kind=kind, state=pb.APPROVAL_STATE_OPEN, run_id=run_id, thread_id=f"t-{run_id}", requester="ana",
        tool="wipe", arguments_json=arguments, arguments_digest=DIGEST, decidable=True,
    )  # fmt: skip
    front.log.desk.raise_approval("acme", approval)
    return approval.approval_id


async def test_approvals_are_listed_shown_approved_and_rejected(front):
    first, second = asks(front, "run-a"), asks(front, "run-b")
    table = (await command("approvals", "list", "--decidable")).out
    assert all(told in table for told in (first, second, "wipe", '{"n": 1}', "open"))
    assert json.loads((await command("approvals", "show", first)).out)["arguments_digest"] == DIGEST
    assert (await command("approvals", "approve", first, "--reason", "fine", "--digest", DIGEST)).out == f"{first}: approved\n"
    asked = front.log.desk.asked[-1]
    assert (asked.WhichOneof("decision"), asked.reason, asked.arguments_digest) == ("approve", "fine", DIGEST)
    (told,) = (await command("approvals", "reject", second, "--reason", "no", "--json")).json()
    assert (told["state"], told["decisions"][0]["reason"]) == ("rejected", "no")
    listed = (await command("approvals", "list", "--run", "run-b", "--state", "rejected", "--json")).json()
    assert [one["approval_id"] for one in listed] == [second]
    assert (await command("approvals", "list", "--thread", "t-run-a", "--state", "open")).out == "no approvals\n"
    waiting = [one["approval_id"] for one in (await command("approvals", "list", "--decidable", "--json")).json()]
    assert not {first, second} & set(waiting)
    twice = await command("approvals", "approve", first, status=6)
    assert "→ bo was first, with approve" in twice.err


async def test_a_decision_may_change_the_arguments_pass_on_the_right_or_tell_what_became_of_a_call(front):
    await command("approvals", "edit", asks(front, "run-e"), "--arguments", '{"n": 2}')
    assert json.loads(front.log.desk.asked[-1].edit.arguments_json) == {"n": 2}
    delegated = await command("approvals", "delegate", asks(front, "run-d"), "--user", "bo")
    assert (front.log.desk.asked[-1].delegate.user, "somebody else's now" in delegated.err) == ("bo", True)
    unknown = pb.APPROVAL_KIND_TOOL_OUTCOME_UNKNOWN
    await command("approvals", "answer", asks(front, "run-o", unknown), "done", "--result", '{"id": 7}')
    assert json.loads(front.log.desk.asked[-1].outcome.done_json) == {"id": 7}
    await command("approvals", "answer", asks(front, "run-r", unknown), "retry")
    assert front.log.desk.asked[-1].outcome.retry


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("approve", "run-nobody/1/0"), 1, "`bulkhead approvals list`"),
        (("approve", "nonsense"), 2, "approval_id"),
        (("show", "../../v1/runs"), 2, "is no id"),
        (("show", ""), 2, "is no id"),
        (("approve", "run-q/1/0", "--digest", "0" * 64), 6, "`bulkhead approvals show ID`"),
        (("approve", "run-q/1/0", "--digest", "short"), 2, "arguments_digest"),
        (("edit", "run-q/1/0", "--arguments", "{n: 2}"), 2, "--arguments is no JSON"),
        (("edit", "run-q/1/0", "--arguments", '{"wrong": 1}'), 2, "arguments.wrong"),
        (("delegate", "run-q/1/0"), 2, "--user and --scope"),
        (("answer", "run-q/1/0", "done"), 2, "--result goes with"),
        (("answer", "run-q/1/0", "maybe"), 2, "maybe"),
        (("list", "--state", "maybe"), 2, "--state"),
    ],
)
async def test_a_decision_that_is_none_is_one_line_and_decides_nothing(front, arguments, status, told):
    approval_id = asks(front, "run-q")
    done = await command("approvals", *arguments, status=status)
    assert (done.err.count("\n"), told in done.err, done.out) == (1, True, ""), done.err
    assert (await command("approvals", "show", approval_id, "--json")).json()[0]["state"] == "open"


@pytest.mark.system
async def test_whoever_sits_at_a_terminal_sees_what_is_approved_and_approves_just_that(front):
    approval_id = asks(front, "run-tty", arguments='{"n":1,"path":"a\u202etxt.exe\u200b"}'.encode())
    for typed, status, state in (("n\n", 1, pb.APPROVAL_STATE_OPEN), ("y\n", 0, pb.APPROVAL_STATE_APPROVED)):
        async with on_a_terminal("approvals", "approve", approval_id) as (written, process, types):

            async def asked(written=written):
                return b"approve? [y/N]" in written

            await testing.eventually_async(asked, "it asks")
            assert b"wipe for ana, in run-tty" in written
            assert all(shown in written for shown in (b'"n": 1', rb'"a\u202etxt.exe\u200b"'))
            types(typed)
            assert await process.wait() == status
        assert front.log.desk.approvals[("acme", approval_id)].state == state
    assert front.log.desk.asked[-1].arguments_digest == DIGEST


async def test_webhooks_are_made_rotated_looked_at_and_deleted_and_secrets_are_alone_on_stdout(front):
    made = await command("webhooks", "create", "https://example.com/hook", "--event", "run.failed", "--description", "d")
    assert made.out.startswith("whsec")
    assert made.out.strip() not in made.err
    (hook,) = [one for one in (await command("webhooks", "list", "--json")).json() if one["description"] == "d"]
    webhook_id = hook["webhook_id"]
    assert hook["event_types"] == ["run.failed"]
    assert webhook_id in (await command("webhooks", "list")).out
    assert json.loads((await command("webhooks", "show", webhook_id)).out)["url"] == "https://example.com/hook"
    rotated = await command("webhooks", "rotate", webhook_id, "--overlap-hours", "1.5")
    assert rotated.out.startswith("whsec")
    assert front.log.records.asked[-1].overlap.seconds == 5400
    assert "nothing was sent yet" in (await command("webhooks", "deliveries", webhook_id)).out
    delivery = webhooks_pb2.Delivery(
        delivery_id="dlv_1", webhook_id=webhook_id, event_type="run.failed", run_id="run-x", status=webhooks_pb2.DELIVERY_STATUS_FAILED,
        attempt_count=2, attempts=[webhooks_pb2.DeliveryAttempt(response_code=503)],
    )  # fmt: skip
    front.log.records.deliveries[("acme", "dlv_1")] = delivery
    shown = (await command("webhooks", "deliveries", webhook_id)).out
    assert all(told in shown for told in ("dlv_1", "failed", "run-x", "503"))
    assert (await command("webhooks", "redeliver", "dlv_1")).out == "dlv_1: pending\n"
    assert "--yes" in (await command("webhooks", "delete", webhook_id, status=2)).err
    assert (await command("webhooks", "delete", webhook_id, "--yes")).out == f"{webhook_id}: deleted\n"
    assert "`bulkhead webhooks list`" in (await command("webhooks", "show", webhook_id, status=1)).err
    assert "url" in (await command("webhooks", "create", "http://example.com", status=2)).err


async def test_the_quota_is_a_row_for_each_limit(front, monkeypatch):
    quota = admin_pb2.GetQuotaResponse(tier="pro", concurrent_runs=admin_pb2.Allowance(used=3, limit=4))
    quota.task_time.FromSeconds(90)
    budget = llm_pb2.BudgetState(scope="user", scope_id="ana", period="7d", limit_microusd=2_000_000, spent_microusd=500_000)
    rate = llm_pb2.RateLimitState(scope="key", scope_id="k1", kind="tokens", limit=100, remaining=40)
    monkeypatch.setattr(front.log.records, "quota", quota)
    monkeypatch.setattr(front.log.records, "budget", llm_pb2.GetBudgetResponse(budgets=[budget], limits=[rate]))
    told = (await command("quota")).out
    for row in ("tier pro", "3 of 4", "0, without a limit", "at most 90 s", "$0.5000 of $2.00 each 7d", "60 of 100"):
        assert row in told, row
    assert (await command("quota", "--json")).json()[0]["tier"] == "pro"
    monkeypatch.setattr(front.log.records, "budget", None)
    away = await command("quota", status=5)
    assert "→ try again" in away.err


def completed(*words, env):
    """What bash would be offered for the last word."""
    line = " ".join(("bulkhead", *words))
    asked = {**env, "_BULKHEAD_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words)), "PATH": "/usr/bin"}
    done = subprocess.run(testing.python("-m", "services.cli"), env=asked, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


async def test_the_shell_completes_commands_and_ids_and_is_not_disturbed_when_it_cannot(front, tmp_path):
    approval_id = asks(front, "run-complete")
    env = {"BULKHEAD_URL": front.url, "BULKHEAD_API_KEY": front.key, "HOME": str(tmp_path)}

    async def offered(*words, **other):
        return await asyncio.to_thread(completed, *words, env={**env, **other})

    assert await offered("appr") == ["approvals"]
    assert approval_id in await offered("approvals", "approve", "run-comp")
    schedule_id = (await command("schedules", "create", "What is new?", "--cron", "@daily")).out.strip()
    assert schedule_id in await offered("schedules", "pause", "sch")
    memory_id = (await command("memories", "add", "My boat is called Nebelkraehe.")).out.strip()
    assert memory_id in await offered("memories", "delete", "mem")
    assert await offered("approvals", "approve", "nothing") == []
    assert await offered("approvals", "approve", "run-comp", BULKHEAD_URL=f"http://127.0.0.1:{testing.free_port()}") == []
