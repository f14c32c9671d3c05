"""The verbs of control. Each is recorded first, in one step with its event, then told to the run's owner; asked again it does no more."""

from typing import Any

import orjson
from opentelemetry import trace

from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound
from services.common.idempotency import check_key
from services.common.identity import Principal
from services.orchestrator.accepting import Accepting, checked_id
from services.orchestrator.agents import AgentCatalog, AgentDefinition
from services.orchestrator.commanding import Commanding
from services.orchestrator.records import Posted, RunRecord, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.turn import orders, plan_execute, steering, stopping, supervisor
from services.orchestrator.watching import Watching

MOST_TEXT_BYTES = 64 * 1024


class Controlling:
    """The use cases."""

    def __init__(self, store: RunStore, commanding: Commanding, accepting: Accepting, watching: Watching, agents: AgentCatalog) -> None:
        self._store, self._commanding, self._accepting, self._watching = store, commanding, accepting, watching
        self._agents = agents

    async def cancel_run(self, principal: Principal, run_id: str, reason: str, *, wait: bool) -> RunRecord | None:
        """As Accepting.cancel_run; with `wait` it answers when the run has ended, or shortly before the call's deadline."""
        record = await self._accepting.cancel_run(principal, run_id, reason)
        if wait and record is not None and not record.ended:
            return await self._watching.wait(principal, run_id)
        return record

    async def stop(self, principal: Principal, run_id: str, key: str, *, wait: bool) -> tuple[RunRecord, int]:
        """Ends the model call under way, or the next one; answers the run and the number of the command.

        Raises InvalidInput, NotFound, Conflict (RUN_ENDED, RUN_NOT_STARTED, RUN_WAITING, RUN_IS_WORKFLOW), Overloaded.
        """
        ref, record = await self._at_work(principal, run_id, key)
        if (before := await self._before(ref, stopping.COMMAND, {}, key)) is not None:
            return await self._watching.wait(principal, run_id) if wait else record, before
        await self._conversing(record)
        _not_waiting(record)
        if record.status == "queued" and not record.attempt:
            raise Conflict("the run has not started, so there is nothing to stop; cancel it instead", reason="RUN_NOT_STARTED")
        posted = await self._post(ref, stopping.COMMAND, {}, key)
        if wait:
            return await self._watching.wait(principal, run_id), posted.number
        return await self._watching.record(ref), posted.number

    async def steer(self, principal: Principal, run_id: str, text: str, key: str) -> tuple[RunRecord, int]:
        """Puts a user message into a run that has not ended; answers the run and the number of the message.

        Raises InvalidInput, NotFound, Conflict (RUN_IS_WORKFLOW; RUN_ENDED, with the thread in the metadata for a new run), Overloaded.
        """
        ref, record = await self._at_work(principal, run_id, key)
        posted = await self._steer(ref, record, text, key)
        return await self._watching.record(ref), posted.number

    async def steer_at(self, ref: RunRef, text: str, key: str) -> Posted:
        """As `steer`, for a run that was found for its caller."""
        return await self._steer(ref, await self._watching.record(ref), text, key)

    async def _steer(self, ref: RunRef, record: RunRecord, text: str, key: str) -> Posted:
        if not text.strip():
            raise InvalidInput.field("text", "is required")
        if len(text.encode()) > MOST_TEXT_BYTES:
            raise InvalidInput.field("text", f"must be at most {MOST_TEXT_BYTES} bytes")
        await self._conversing(record)
        return await self._post(ref, steering.COMMAND, {"text": text}, key)

    async def update_plan(
        self, principal: Principal, run_id: str, steps: list[dict[str, str]], version: int, key: str
    ) -> tuple[RunRecord, int]:
        """Sends a run a plan in place of its own, of `version`; answers the run and the number of the command.

        Raises InvalidInput, NotFound, Conflict (RUN_ENDED, PLAN_CHANGED, RUN_HAS_NO_PLAN), Overloaded.
        """
        checked = plan_execute.checked_steps(steps)
        ref, record = await self._at_work(principal, run_id, key)
        data = {"steps": checked, "version": version}
        if (before := await self._before(ref, plan_execute.COMMAND, data, key)) is not None:
            return record, before
        if record.ended:
            raise _ended(ref, record.status)
        plan = record.state.get("plan")
        if not plan:
            raise Conflict("the run has no plan, or none yet", reason="RUN_HAS_NO_PLAN")
        if plan["version"] != version:
            about = {"version": str(plan["version"])}
            raise Conflict("the plan has another version by now", reason="PLAN_CHANGED", metadata=about)
        posted = await self._post(ref, plan_execute.COMMAND, data, key)
        return await self._watching.record(ref), posted.number

    async def cancel_call(self, principal: Principal, run_id: str, call_id: str, continuation: str, result: bytes, key: str) -> int:
        """Ends a tool call that is at work, or waits for its turn in its step; answers the number of the command.

        Raises InvalidInput, NotFound (run, or no such call at work), Conflict (RUN_ENDED, RUN_WAITING, TOOL_CALL_IS_RUN), Overloaded.
        """
        if continuation not in orders.CONTINUATIONS:
            raise InvalidInput.field("continuation", "is required")
        ref, record = await self._at_work(principal, run_id, key)
        data = {"call_id": call_id, "continuation": continuation}
        if continuation == orders.SUBSTITUTE:
            data["result"] = _json(result)
        elif result:
            raise InvalidInput.field("result_json", "goes with SUBSTITUTE only")
        if (before := await self._before(ref, orders.COMMAND, data, key)) is not None:
            return before
        if record.ended:
            raise _ended(ref, record.status)
        _not_a_run(record, call_id)
        _not_waiting(record)
        if all(pending[1] != call_id for pending in record.state.get("pending", ())):
            raise NotFound("no tool call of this id is at work in the run", reason="TOOL_CALL_NOT_FOUND")
        return (await self._post(ref, orders.COMMAND, data, key)).number

    async def _at_work(self, principal: Principal, run_id: str, key: str) -> tuple[RunRef, RunRecord]:
        check_key(key)
        ref = await self._commanding.locate(principal, checked_id("run_id", run_id))
        return ref, await self._watching.record(ref)

    async def _conversing(self, record: RunRecord) -> None:
        """Raises Conflict for a run in which nobody would hear what is said: a workflow goes where its definition says."""
        digest = record.spec.agent_digest
        agent = self._agents.agents.by_digest.get(digest)
        if agent is None and (raw := await self._store.definition(digest)) is not None:
            agent = AgentDefinition.decode(raw)
        if agent is not None and agent.strategy == "workflow" and not record.ended:
            raise Conflict("the run follows a workflow, which is neither stopped nor steered; cancel it instead", reason="RUN_IS_WORKFLOW")

    async def _post(self, ref: RunRef, kind: str, data: dict[str, Any], key: str) -> Posted:
        span = trace.get_current_span().get_span_context()
        trace_id = f"{span.trace_id:032x}" if span.is_valid else ""
        try:
            posted = await self._commanding.post(ref, kind, orjson.dumps(data), key=f"{kind}:{key}" if key else "", trace_id=trace_id)
        except Conflict as error:
            if error.reason == "RUN_ENDED":
                raise _ended(ref, error.metadata["run_status"]) from error
            raise
        if posted.verdict == "again":
            await self._same(ref, posted.number, data)
        return posted

    async def _before(self, ref: RunRef, kind: str, data: dict[str, Any], key: str) -> int | None:
        """The number that the same command was given before; it may have done its work by now."""
        if not key or not await self._store.posted(ref, f"{kind}:{key}"):
            return None
        # Sent again: whoever sent it first may not have heard from the replicas, and the store's answer to this waits for them.
        return (await self._post(ref, kind, data, key)).number

    async def _same(self, ref: RunRef, number: int, data: dict[str, Any]) -> None:
        found = next(iter(await self._store.commands(ref, number - 1)), None)
        if found is not None and dict(found.data) != data:
            raise IdempotencyMismatch("the idempotency key was used before with another body")


def _ended(ref: RunRef, status: str) -> Conflict:
    about = {"run_status": status, "run_id": ref.run_id, "thread_id": ref.thread_id, "offer": "CreateRun"}
    return Conflict("the run has ended; make a new one in its thread", reason="RUN_ENDED", metadata=about)


def _not_waiting(record: RunRecord) -> None:
    if record.status == "waiting":
        message = "nothing of the run is at work: it waits. Answer what it waits for, steer it, or cancel it"
        raise Conflict(message, reason="RUN_WAITING")


def _not_a_run(record: RunRecord, call_id: str) -> None:
    children = record.state.get("parts", {}).get(supervisor.PART, {})
    for number, known in ((str(pending[0]), pending[1]) for pending in record.state.get("pending", ())):
        if known == call_id and "status" not in (child := children.get(number, {"status": ""})):
            about = {"run_id": child["run_id"]}
            raise Conflict("another agent works for this call; cancel its run", reason="TOOL_CALL_IS_RUN", metadata=about)


def _json(result: bytes) -> str:
    if len(result) > MOST_TEXT_BYTES:
        raise InvalidInput.field("result_json", f"must be at most {MOST_TEXT_BYTES} bytes")
    try:
        return orjson.dumps(orjson.loads(result)).decode()
    except orjson.JSONDecodeError:
        raise InvalidInput.field("result_json", "is not valid JSON") from None
