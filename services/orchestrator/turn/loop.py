"""The agent loop: model steps and tool steps in turn until there is an answer (the strategy known as ReAct)."""

from collections.abc import Callable

from services.orchestrator.records import Terminal
from services.orchestrator.turn import finish
from services.orchestrator.turn.model_step import model_step
from services.orchestrator.turn.prepare import prepare
from services.orchestrator.turn.state import RunStopped, Turn
from services.orchestrator.turn.tool_step import plan, started, tool_step, with_ids


async def run_turn(turn: Turn, should_hand_over: Callable[[], bool]) -> Terminal | None:
    """Works from the checkpoint to the end; None when it stops at a step's end because the process is going away."""
    resumed = turn.state.phase == "tools"
    try:
        while True:
            if should_hand_over():
                return None
            turn.check_time()
            # Messages that were not worth a write of their own are made anew by whoever takes over.
            if turn.state.phase == "prepare" or not turn.messages:
                await prepare(turn)
            elif turn.state.phase == "tools":
                await tool_step(turn, resumed=resumed)
                resumed = False
            else:
                terminal = await _model(turn)
                if terminal is not None:
                    return terminal
    except RunStopped as stopped:
        return finish.fail(turn, stopped)


async def _model(turn: Turn) -> Terminal | None:
    answer = with_ids(turn, await model_step(turn))
    state = turn.state
    for name, value in answer.usage.items():
        state.usage[name] += value
    state.usage["model_calls"] += 1
    served = {"step": state.step + 1, "model": answer.model, "provider": answer.provider}
    turn.writer.emit("usage", {**served, **answer.usage})
    if not answer.message.tool_calls:
        state.step += 1
        return finish.succeed(turn, answer)
    calls = plan(turn, answer)
    state.step += 1
    state.usage["tool_calls"] += len(calls)
    state.phase, state.pending = "tools", calls
    turn.messages.append(answer.message)
    if answer.message.text:
        turn.writer.emit("message_completed", {"text": answer.message.text, "message_id": f"{turn.ref.run_id}/{state.step}"})
    for call in calls:
        started(turn, call)
    turn.delivered = ""
    messages = [answer.message]
    if state.step == 1 and turn.agent.recall is None:
        # Without recall the first messages were not worth a write of their own.
        messages = turn.messages
    await turn.writer.checkpoint(turn.snapshot(), [m.encode() for m in messages])
    return None
