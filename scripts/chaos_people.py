"""The people of `make chaos`: whoever answers what runs ask, through any replica, twice, against each other, or too late."""

import asyncio
import random
import uuid
from typing import Any

import orjson
from bulkhead.orchestrator.v1 import approvals_pb2 as pb
from bulkhead.orchestrator.v1 import orchestrator_pb2

from scripts.chaos_callers import together
from scripts.chaos_talks import REPEATED_SHARE, Talk
from scripts.chaos_wishes import asking, marked, wish
from services.common.errors import Conflict, NotFound
from services.orchestrator.testing.counting import ONCE
from services.orchestrator.testing.harness import ENDED, Client
from services.orchestrator.testing.oracle import Decided, Violation

# Two people decide the same question at the same time.
CONTESTED_SHARE = 0.2
# Of the questions whose time is short, those that nobody answers.
LEFT_SHARE = 0.5
# As no decision is refused for another reason: it was decided, its time has passed, or its run has ended.
REFUSALS = ("ALREADY_DECIDED", "APPROVAL_EXPIRED", "RUN_ENDED", "RUN_CANCELLED")
VERBS = {"approve": 5, "edit": 2, "reject": 3}


async def answered(talk: Talk, run_id: str) -> None:
    """Answers all that a run asks, until it has ended."""
    await _answer(talk, run_id, left=0.0)


async def answered_late(talk: Talk, run_id: str) -> None:
    """As `answered`, but for questions that nobody answers, and some that are answered when their time is all but over."""
    await _answer(talk, run_id, left=LEFT_SHARE)


async def _answer(talk: Talk, run_id: str, left: float) -> None:
    handled: set[str] = set()
    while True:
        await asyncio.sleep(random.uniform(0.05, 0.3))
        for approval in await talk.callers.anywhere(lambda client: _open(client, run_id)):
            if approval.approval_id in handled:
                continue
            handled.add(approval.approval_id)
            if random.random() < left:
                continue
            if left:
                await asyncio.sleep(random.choice((0.0, random.uniform(0.0, 2.0))))
            if not await _decide(talk, approval):
                # A promotion took it back, and it is asked anew.
                handled.discard(approval.approval_id)
        run = await talk.callers.anywhere(lambda client: client.runs.GetRun(orchestrator_pb2.GetRunRequest(run_id=run_id)))
        if run.run.status in ENDED:
            return


async def _open(client: Client, run_id: str) -> list[pb.Approval]:
    request = pb.ListApprovalsRequest(run_id=run_id, state=pb.APPROVAL_STATE_OPEN)
    return list((await client.approvals.ListApprovals(request)).approvals)


async def _decide(talk: Talk, approval: pb.Approval) -> bool:
    """One person decides, or two at the same time; False where there is no such question any more."""
    found: list[bool] = []

    async def one() -> None:
        found.append(await _choose(talk, approval))

    await together(*(one() for _ in range(2 if random.random() < CONTESTED_SHARE else 1)))
    return all(found)


async def _choose(talk: Talk, approval: pb.Approval) -> bool:
    key = uuid.uuid4().hex
    verb, nonce, choice = _choice(talk, approval, key)
    request = pb.DecideApprovalRequest(approval_id=approval.approval_id, reason=key, idempotency_key=key, **choice)
    try:
        refused = await _answer_to(talk, request)
    except NotFound:
        talk.callers.answered["questions that were gone"] += 1
        return False
    talk.decisions.append(Decided(approval.approval_id, key, verb, nonce, refused))
    talk.callers.answered[f"decisions: {refused or verb}"] += 1
    if random.random() < REPEATED_SHARE and bool(again := await _answer_to(talk, request)) != bool(refused):
        what = f"a decision on {approval.approval_id} was answered {refused or 'taken'!r}, and {again or 'taken'!r} when it was sent again"
        talk.callers.broken.append(Violation("A8", approval.run_id, what))
    return True


async def _answer_to(talk: Talk, request: pb.DecideApprovalRequest) -> str:
    """Why the decision is refused; '' where it is taken."""
    try:
        await talk.callers.anywhere(lambda client: client.approvals.DecideApproval(request))
    except Conflict as error:
        if error.reason not in REFUSALS:
            raise
        return error.reason
    return ""


def _choice(talk: Talk, approval: pb.Approval, key: str) -> tuple[str, str, dict[str, Any]]:
    """The verb, the nonce of the arguments that are approved ('': none), and the decision itself."""
    if approval.kind == pb.APPROVAL_KIND_TOOL_OUTCOME_UNKNOWN:
        done = any(
            effect.key == approval.approval_id.partition("/unknown")[0] for effect in talk.callers.behind.tools.effects[approval.run_id]
        )
        outcome = pb.Outcome(done_json=b"{}") if done else pb.Outcome(failed=True)
        return ("done" if done else "failed"), "", {"outcome": outcome}
    nonce = str(orjson.loads(approval.arguments_json).get("nonce", ""))
    # The question of a workflow's step has no arguments that could be changed.
    verbs = VERBS if nonce else {"approve": 7, "reject": 3}
    verb = random.choices(list(verbs), list(verbs.values()))[0]
    if verb == "edit":
        nonce = f"{nonce}.{key[:6]}"
        return verb, nonce, {"edit": pb.Edit(arguments_json=orjson.dumps({"nonce": nonce}))}
    if verb == "reject":
        return verb, "", {"reject": pb.Reject()}
    return verb, nonce, {"approve": pb.Approve()}


async def asked(talk: Talk) -> None:
    """A run that sends no mail without an approval; some have little time to get it."""
    run_id = marked()
    talk.guarded.add((run_id, ONCE))
    if random.random() < 0.6:
        await talk.run("careful", asking(run_id), run_id, answered)
    else:
        await talk.run("hasty", asking(run_id), run_id, answered_late)


async def followed(talk: Talk) -> None:
    """A run along a workflow, which asks a person before its end."""
    run_id = marked()
    await talk.run("flow", wish(run_id, steps=2), run_id, answered)
