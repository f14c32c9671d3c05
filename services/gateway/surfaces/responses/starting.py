"""Which run a response becomes: one of its own, the next of a conversation, the one behind another response, or one that goes on."""

from collections.abc import Sequence

from bulkhead.orchestrator.v1 import approvals_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import Conflict, InvalidInput, NotFound
from services.common.rpc import context as call_context
from services.gateway.adapters.backends import Backends
from services.gateway.inputs import input_of
from services.gateway.surfaces.openai.models import create_run
from services.gateway.surfaces.responses import ids
from services.gateway.surfaces.responses.input import Decision
from services.gateway.surfaces.responses.request import ResponseRequest

# How long a response that is not to be stored stays without anything new behind it: a client that was cut off can still get it.
NOT_STORED_S = 86_400
# Characters of a reason that the refusal of another decision tells.
SHOWN_REASON = 256
# Fields of a run as this route has them.
_NAMES = {
    r"client_tools(\[\d+\])\.parameters_json": r"tools\1.parameters", r"client_tools": "tools", r"tool_choice_json": "tool_choice",
    r"response_format_json\.json_schema": "text.format", r"response_format_json": "text.format",
    ".tool_call_id": ".call_id",
}  # fmt: skip


class Starting:
    """Starts runs for responses. Calls raise the domain errors of what refuses them."""

    def __init__(self, backends: Backends) -> None:
        self._threads, self._runs, self._approvals = backends.threads, backends.runs, backends.approvals
        self._blobs = backends.blobs

    async def start(self, asked: ResponseRequest, key: str) -> pb.CreateRunResponse:
        """The run that answers a request; the same one for the same idempotency key and request."""
        if asked.input.decisions:
            return pb.CreateRunResponse(run=await self._decided(asked, key), created=True)
        if asked.previous_run:
            return await self._behind(asked, key)
        if asked.thread_id:
            await self._check_conversation(asked.thread_id)
            return await self._create(asked, await self._told(asked, key, asked.thread_id), asked.thread_id, key)
        thread_id = ids.OWN_THREAD + ids.new_id(key, "thread")
        if not asked.store:
            made = pb.CreateThreadRequest(thread_id=thread_id)
            made.ttl.FromSeconds(NOT_STORED_S)
            await self._threads.CreateThread(made)
        return await self._create(asked, await self._told(asked, key), thread_id, key)

    async def _told(self, asked: ResponseRequest, key: str, thread_id: str = "") -> list[pb.InputMessage]:
        return await input_of(self._blobs, asked.said, key, thread_id)

    async def _previous(self, run_id: str) -> pb.Run:
        """The run behind which another one is asked for. Raises InvalidInput where it is not there."""
        try:
            return (await self._runs.GetRun(pb.GetRunRequest(run_id=run_id))).run
        except NotFound:
            raise ids.no_previous() from None

    async def _create(
        self, asked: ResponseRequest, told: Sequence[pb.InputMessage], thread_id: str, key: str, run_id: str = ""
    ) -> pb.CreateRunResponse:
        return await create_run(self._runs, asked.create_run(told, thread_id, key, run_id), _NAMES, asked.said)

    async def _check_conversation(self, thread_id: str) -> None:
        try:
            await self._threads.GetThread(pb.GetThreadRequest(thread_id=thread_id))
        except NotFound:
            raise ids.not_found("conversation") from None

    async def _behind(self, asked: ResponseRequest, key: str) -> pb.CreateRunResponse:
        """The thread goes on where the previous response is its last one, else it branches off there."""
        previous = await self._previous(asked.previous_run)
        told = await self._told(asked, key, previous.thread_id)
        branch = ids.new_id(key, "branch")
        if asked.store and await self._is_last(previous, key, branch):
            try:
                # The id is taken by whoever comes first, so of two at once only one sees the previous response as the last one.
                return await self._create(asked, told, previous.thread_id, key, ids.next_run_id(previous.run_id))
            except Conflict as error:
                if error.reason != "RUN_EXISTS":
                    raise
        thread_id = ids.OWN_THREAD + branch
        fork = pb.ForkThreadRequest(
            thread_id=previous.thread_id, at=pb.Checkpoint(run_id=previous.run_id), new_thread_id=thread_id, idempotency_key=key
        )
        if not asked.store:
            fork.ttl.FromSeconds(NOT_STORED_S)
        await self._threads.ForkThread(fork)
        return await self._create(asked, told, thread_id, key, f"run_{branch}")

    async def _is_last(self, previous: pb.Run, key: str, branch: str) -> bool:
        if key:
            # The same request may have been here before, and must then be made the same.
            if await self._is_there(f"run_{branch}"):
                return False
            if await self._is_there(ids.next_run_id(previous.run_id)):
                return True
        newest = (await self._runs.ListRuns(pb.ListRunsRequest(thread_id=previous.thread_id, page_size=1))).runs
        return not previous.rolled_back_seq and bool(newest) and newest[0].run_id == previous.run_id

    async def _is_there(self, run_id: str) -> bool:
        try:
            await self._runs.GetRun(pb.GetRunRequest(run_id=run_id))
        except NotFound:
            return False
        return True

    async def _decided(self, asked: ResponseRequest, key: str) -> pb.Run:
        """The run that asked, after what it asked was answered. It is the same response that goes on."""
        run = await self._previous(asked.previous_run)
        if asked.model != run.agent:
            raise InvalidInput.field("model", f"the response that goes on is one of {run.agent}")
        for decision in asked.input.decisions:
            if not decision.approval_id.startswith(f"{run.run_id}/"):
                raise InvalidInput.field("input", "approval_request_id is not one of the previous response")
        for decision in asked.input.decisions:
            await self._decide(decision, ids.new_id(key, decision.approval_id) if key else "")
        return run

    async def _decide(self, decision: Decision, key: str) -> None:
        request = approvals_pb2.DecideApprovalRequest(approval_id=decision.approval_id, reason=decision.reason, idempotency_key=key)
        if decision.approve:
            request.approve.SetInParent()
        else:
            request.reject.SetInParent()
        try:
            await self._approvals.DecideApproval(request)
        except Conflict as error:
            # SDKs ask again, and without a key, where a connection broke off: to say the same again changes nothing.
            first = (call_context.principal().user, request.WhichOneof("decision"), decision.reason[:SHOWN_REASON])
            known = tuple(error.metadata.get(name, "") for name in ("decided_by", "verb", "decided_reason"))
            if error.reason != "ALREADY_DECIDED" or known != first:
                raise
