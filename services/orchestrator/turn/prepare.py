"""Before the first model call: the prompt, what memory recalls, earlier turns, the input."""

from services.common.errors import BulkheadError
from services.orchestrator.agent_status import SEARCHING
from services.orchestrator.ports import Message, Recalled
from services.orchestrator.turn import carried, client_tools, degradation, forgetting, guarding
from services.orchestrator.turn.context import context_message, earlier_turns
from services.orchestrator.turn.intent import start_step
from services.orchestrator.turn.model_step import find_tools
from services.orchestrator.turn.said import in_words
from services.orchestrator.turn.state import Turn


async def prepare(turn: Turn) -> None:
    """Fills the messages. Memory that is down costs the turn its context and nothing else."""
    client_tools.check_waiting(turn)
    prompt = Message("system", turn.agent.prompt)
    said = await guarding.said(turn, carried.said(turn))
    carried.take_over(turn)
    # The client's own system messages belong to the instructions, before anything recalled.
    leading = 0
    while leading < len(said) and said[leading].role == "system":
        leading += 1
    instructions, said = [prompt, *said[:leading]], said[leading:]
    if turn.spec.reset_memory:
        await forgetting.as_asked(turn)
    if turn.agent.recall is None:
        turn.messages[:] = [*instructions, *said]
        turn.state.phase = "model"
        return
    turn.writer.tell_soon(SEARCHING)
    recalled = await guarding.recalled(turn, await _recall(turn))
    for part in recalled.parts:
        if part.kind == "document":
            turn.state.citations[part.citation["citation_id"]] = dict(part.citation)
    context = context_message(recalled.parts)
    given = [*([context] if context else []), *earlier_turns(recalled.parts)]
    degradation.recalled(turn, len(instructions), len(given))
    turn.messages[:] = [*instructions, *given, *said]
    kinds: dict[str, int] = {}
    for part in recalled.parts:
        kinds[part.kind] = kinds.get(part.kind, 0) + 1
    turn.writer.emit("memory_recalled", {"parts": len(recalled.parts), "kinds": kinds})
    for warning in recalled.warnings:
        degradation.relay(turn, warning)
    turn.state.phase = "model"
    if turn.intent is not None and turn.tools is None:
        # What will be asked can be told only with them.
        turn.tools = await find_tools(turn)
    start_step(turn)
    # The same context for whoever takes over: recalled twice, it might differ.
    await turn.writer.checkpoint(turn.snapshot(), turn.unstored())


def _query(turn: Turn) -> str:
    """What is recalled for: what the user said last, which stands before the calls where the run goes on from their results."""
    asked = in_words(turn.spec.input, guarding.question(turn))
    return asked or str(turn.carried.get("said", ""))


async def _recall(turn: Turn) -> Recalled:
    # What is forgotten need not be waited for.
    if turn.wait_for_memory is not None and not turn.spec.reset_memory and not await turn.wait_for_memory():
        degradation.warn(turn, "memory_behind", reason="not_stored_yet")
    turn.enter_call()
    recall = turn.agent.recall
    assert recall is not None
    try:
        recalled = await turn.services.memory.recall(
            turn.ref.thread_id, _query(turn), recall.token_budget, recall.documents, recall.memories, turn.ref.run_id
        )
        if turn.spec.reset_memory:
            # Memory that could not be told yet would still give them.
            return Recalled([part for part in recalled.parts if part.kind != "turn"], recalled.warnings)
        return recalled
    except BulkheadError as error:
        turn.check_time()
        degradation.warn(turn, "memory_unavailable", reason=error.reason)
        return Recalled([], [])
