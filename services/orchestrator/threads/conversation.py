"""What a thread's conversation is at a checkpoint: the turns of the runs that answered, and what of a run that is cut off there."""

from collections.abc import Collection, Mapping
from contextlib import aclosing
from typing import Any

import orjson

from services.common.errors import Conflict
from services.orchestrator.agents import AgentCatalog, AgentDefinition
from services.orchestrator.ports import Message
from services.orchestrator.records import ENDED, Event, RunRecord, RunRef
from services.orchestrator.results import lost
from services.orchestrator.run_store import RunStore
from services.orchestrator.threads.checkpoints import OF_THREAD, Position, log_of
from services.orchestrator.threads.ports import ThreadState, ThreadStore
from services.orchestrator.threads.rebuilding import Rebuilt, rebuild
from services.orchestrator.turn.carried import conversation, forgotten, joined
from services.orchestrator.turn.client_tools import logged_before, open_end
from services.orchestrator.turn.guarding import may_be_known
from services.orchestrator.turn.said import in_words, question_of

# More than the window of any session holds; what is older is not given to a model.
MOST_TURNS = 50
MOST_BYTES = 2 * 1024 * 1024
# Runs among which they are looked for: where hardly one of these was remembered, what lies before them is not of this day either.
MOST_LOOKED_AT = 400
# Memory takes no larger turn; it did not take it when its run ended either.
MOST_TURN_BYTES = 512 * 1024
RUNS_AT_ONCE = 100
# Up to here a log is read whose run has not ended.
LATEST = 1 << 62


class Conversation:
    """Reads it from run records and the log."""

    def __init__(self, store: RunStore, threads: ThreadStore, agents: AgentCatalog) -> None:
        self._store, self._threads, self._agents = store, threads, agents

    async def turns(self, ref: RunRef, at: Position) -> list[dict[str, Any]]:
        """The last turns that memory holds of the conversation up to `at`, oldest first, as ports.Memory.append_turn takes them."""
        found: list[dict[str, Any]] = []
        size, before, forgets_before_ms, looked = 0, at.seq + 1, 0, 0
        while before > 1 and looked < MOST_LOOKED_AT:
            members = await self._store.list_members("thread", ref.tenant, "", before, RUNS_AT_ONCE, ref.thread_id)
            if not members:
                break
            before, looked = members[-1][1], looked + len(members)
            for record in await self._store.runs([ref._replace(run_id=run_id) for run_id, _ in members]):
                if not answered(record, at.seq, ENDED):
                    continue
                remembered = await self._remembered(record)
                # A run that memory has no turn of may have had it forget those before it, where that was asked for.
                if not remembered and not record.spec.reset_memory:
                    continue
                rebuilt = await self.rebuilt(ref, record, record.terminal_seq)
                forgets_before_ms = max(forgets_before_ms, rebuilt.forgets_before_ms)
                if record.ended_ms < forgets_before_ms or not remembered or not await self._said(ref, record):
                    continue
                kept = {} if forgotten(record.carry, record.spec) else record.carry
                asked = joined(kept, in_words(record.spec.input, _question(record)), continues=record.spec.continues)
                answer = record.result.get("output_text", "")
                logged = [*logged_before(kept, record.spec.input), *rebuilt.tool_log]
                turn_bytes = sum(len(text) for text in (asked.encode(), answer.encode(), orjson.dumps(logged)))
                if turn_bytes > MOST_TURN_BYTES:
                    continue
                size += turn_bytes
                if len(found) == MOST_TURNS or (found and size > MOST_BYTES):
                    return found[::-1]
                found.append({
                    "run_id": record.run_id, "user_text": asked, "assistant_text": answer, "tool_calls": logged,
                    "ended_ms": record.ended_ms,
                })  # fmt: skip
        return found[::-1]

    def check_agent(self, name: str) -> None:
        """Raises NotFound (AGENT_NOT_FOUND) where no run can be made of an agent any more, and Conflict (RUN_IS_WORKFLOW) where one would
        begin anew: where a workflow stands is no part of what a checkpoint keeps, so that its steps would be made twice."""
        if self._agents.agents.get(name).strategy == "workflow":
            message = "a workflow begins at its first step again; fork without continue_run, and send an input"
            raise Conflict(message, reason="RUN_IS_WORKFLOW")

    async def _said(self, ref: RunRef, record: RunRecord) -> bool:
        """Whether memory got a turn of the run: also that of one which a next message interrupted, not of one that it replaced."""
        # What a run asked its client for is a part of the turn that goes on from the results.
        if record.status == "failed" or asks_client(record):
            return False
        cut = await self._store.cut_by(ref._replace(run_id=record.run_id))
        if record.status == "cancelled":
            return cut == "interrupt" and bool(record.result.get("output_text"))
        return cut != "rollback"

    async def _remembered(self, record: RunRecord) -> bool:
        definition = await self._definition(record)
        return definition is not None and definition.recall is not None

    async def child_threads(self, ref: RunRef, record: RunRecord) -> list[str]:
        """Threads of the runs that other agents made for this one, as far as its log is kept."""
        definition = await self._definition(record)
        if definition is None or definition.strategy != "supervisor":
            return []
        found = []
        async with aclosing(log_of(self._store, ref, record.first_seq - 1, record.terminal_seq or LATEST)) as pages:
            async for page in pages:
                started = (event for event in page if event.run_id == record.run_id and event.type == "child_run_started")
                found += [str(orjson.loads(event.data)["thread_id"]) for event in started]
        return found

    async def _definition(self, record: RunRecord) -> AgentDefinition | None:
        definition = self._agents.agents.by_digest.get(record.spec.agent_digest)
        if definition is not None:
            return definition
        raw = await self._store.definition(record.spec.agent_digest)
        return AgentDefinition.decode(raw) if raw is not None else None

    async def rebuilt(self, ref: RunRef, record: RunRecord, until_seq: int) -> Rebuilt:
        """A run of the thread as its events up to `until_seq` tell it. Raises Gone."""
        return await self._rebuilt(ref, record.run_id, record.first_seq - 1, until_seq)

    async def _rebuilt(self, ref: RunRef, run_id: str, after_seq: int, until_seq: int) -> Rebuilt:
        events = []
        async with aclosing(log_of(self._store, ref, after_seq, until_seq)) as pages:
            async for page in pages:
                events += [event for event in page if event.run_id == run_id and not event.provisional]
        return rebuild(events)

    async def carry(self, ref: RunRef, at: Position, state: ThreadState) -> Mapping[str, Any]:
        """What the next run is given of the one that is cut off at `at`; empty where none is, and where nothing of it is kept. As of
        turn/carried.py. Raises Gone where it is deleted meanwhile: not again with a newer `state`."""
        # Only what the newest fork or rollback gave is kept; what those before gave follows from what it was that they went back to.
        while at.seq >= state.oldest_seq:
            if at.run_id:
                record = await self._store.run(ref._replace(run_id=at.run_id))
                return await (self._cut(ref, record, at) if record is not None else self._cut_again(ref, at, state))
            newest = 0 < state.carry_seq <= at.seq
            if newest and (state.carry_open or not state.carry):
                return state.carry
            last = await self._last_given(ref, at.seq, max(state.oldest_seq, state.carry_seq if newest else 1))
            if last is not None and last.seq == state.carry_seq:
                return state.carry
            if last is not None and last.type == "run_finished":
                return await self._asked(ref, last)
            if last is None or last.type not in OF_THREAD:
                return {}
            data = orjson.loads(last.data)
            if last.type == "thread_forked":
                return (await self._threads.bases(ref)).get(data["forked_at_seq"], {})
            at = Position(data["to_seq"], data.get("run_id", ""), data.get("step", 0))
        return {}

    async def _last_given(self, ref: RunRef, until_seq: int, since_seq: int) -> Event | None:
        """The last event that gave something to the runs behind it, or of a run that answered and made that a part of its turn."""
        # Mostly that is the very one asked for. Else runs that did not answer lie between: so from the newest of them on.
        start = before = until_seq
        while until_seq >= since_seq:
            found: Event | None = None
            async with aclosing(log_of(self._store, ref, start - 1, until_seq)) as pages:
                async for page in pages:
                    found = next((event for event in reversed(page) if event.type in OF_THREAD or event.type == "run_finished"), found)
            if found is not None:
                return found
            until_seq = start - 1
            members = await self._store.list_members("thread", ref.tenant, "", before, 1, ref.thread_id)
            before = members[0][1] if members else since_seq
            start = max(since_seq, before)
        return None

    async def _asked(self, ref: RunRef, end: Event) -> dict[str, Any]:
        """What a run left that ended with calls for its client; empty for any other."""
        record = await self._store.run(ref._replace(run_id=end.run_id))
        if record is None or not asks_client(record):
            return {}
        rebuilt = await self.rebuilt(ref, record, end.seq)
        left = await self._cut(ref, record, Position(end.seq, record.run_id, rebuilt.step))
        messages = [Message.decode(raw.encode()) for raw in left["messages"]]
        return {**left, **open_end(messages, record.result["client_tool_calls"])}

    async def _cut_again(self, ref: RunRef, at: Position, state: ThreadState) -> dict[str, Any]:
        """As _cut, of a run that is none of this thread: a fork that it was cut off in took over its first steps and no record of it."""
        bases = await self._threads.bases(ref)
        seq, base = next(((seq, base) for seq, base in bases.items() if base["run_id"] == at.run_id and at.seq <= seq), (0, {}))
        if not base:
            return {}
        # What came before `at` need not be kept any more: what the base has of the run is cut by what came after.
        after = await self._rebuilt(ref, at.run_id, at.seq, seq)
        messages = base["messages"][: len(base["messages"]) - len(after.messages)]
        plan = base["plan"]
        if after.plan:
            plan = (await self._rebuilt(ref, at.run_id, state.oldest_seq - 1, at.seq)).plan
        return {**base, "step": at.step, "messages": messages, "plan": plan}

    async def _cut(self, ref: RunRef, record: RunRecord, at: Position) -> dict[str, Any]:
        rebuilt = await self.rebuilt(ref, record, at.seq)
        if rebuilt.lost:
            raise lost()
        spec, kept = record.spec, {} if forgotten(record.carry, record.spec) else record.carry
        said = joined(kept, in_words(spec.input, _question(record)), continues=spec.continues)
        found = {
            "run_id": record.run_id, "step": rebuilt.step, "agent": spec.agent, "input": [dict(m) for m in spec.input],
            "said": said, "messages": [m.encode().decode() for m in (*conversation(kept, spec), *rebuilt.messages)],
            "plan": rebuilt.plan or kept.get("plan", {}),
            "citations": {**kept.get("citations", {}), **_citations(record.state)},
        }  # fmt: skip
        if logged := [*logged_before(kept, spec.input), *(rebuilt.tool_log if rebuilt.asks else ())]:
            found["tool_log"] = logged
        # Whoever goes on with the same step asks for the same.
        asked = {name: getattr(spec, name) for name in ("client_tools", "tool_choice", "response_format") if getattr(spec, name)}
        return {**found, "terms": asked} if asked else found


def answered(record: RunRecord, at_seq: int, statuses: Collection[str] = ("succeeded",)) -> bool:
    """Whether a run had ended so by `at_seq` and was not taken out of the conversation by then."""
    taken_out = record.rolled_back and record.rolled_back <= at_seq
    return record.status in statuses and 0 < record.terminal_seq <= at_seq and not taken_out


def asks_client(record: RunRecord) -> bool:
    """Whether a run has ended with calls for its client to make."""
    return record.status == "succeeded" and bool(record.result.get("client_tool_calls"))


def _question(record: RunRecord) -> str:
    return may_be_known(record.state.get("parts", {}), question_of(record.spec.input))


def _citations(state: Mapping[str, Any]) -> Mapping[str, Any]:
    return state.get("citations", {})


def encoded(carry: Mapping[str, Any]) -> bytes:
    """As the store keeps it; empty where there is none."""
    return orjson.dumps(carry) if carry else b""
