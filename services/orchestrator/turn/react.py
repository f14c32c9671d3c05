"""ReAct: model steps and tool steps in turn until the model answers. Source: Yao et al., arXiv:2210.03629."""

from services.orchestrator.ports import ToolDefinition, ToolOutcome
from services.orchestrator.records import Terminal
from services.orchestrator.turn import degradation, finish, guard, limits, steering, stopping
from services.orchestrator.turn.execute_tools import execute_tools
from services.orchestrator.turn.model_step import Asked, find_tools
from services.orchestrator.turn.plan_tools import plan, start_next, with_ids
from services.orchestrator.turn.prepare import prepare, start_step
from services.orchestrator.turn.state import PendingCall, Turn


class ReAct:
    """The tool loop. What a strategy like it adds are tools of its own and what the model is told of them."""

    async def advance(self, turn: Turn, *, resumed: bool) -> Terminal | None:
        """As Strategy.advance."""
        # Messages that were not worth a write of their own are made anew by whoever takes over.
        if turn.state.phase == "prepare" or not turn.messages:
            await prepare(turn)
        elif turn.state.phase == "tools":
            await execute_tools(turn, self.built_in, resumed=resumed)
        else:
            return await self._model(turn)
        return None

    def offered(self, turn: Turn) -> list[ToolDefinition]:
        """The tools that the model may call in the next step."""
        return turn.tools or []

    def told(self, turn: Turn) -> str:
        """What the model is told before the next step, beside its prompt."""
        return ""

    def built_in(self, turn: Turn, call: PendingCall) -> ToolOutcome | None:
        """As execute_tools.BuiltIn."""
        return None

    async def _model(self, turn: Turn) -> Terminal | None:
        limits.check(turn)
        start_step(turn)
        if not stopping.wanted(turn):
            # What was said is answered behind the stop, and not stopped with it.
            await steering.apply(turn)
        if turn.tools is None:
            turn.tools = await find_tools(turn)
        offered = self.offered(turn)
        # An agent without tools answers in any case.
        last = limits.last_step(turn) if offered else None
        if last is not None and last.reason in ("TOKEN_LIMIT", "COST_LIMIT"):
            degradation.warn(turn, "last_step", reason=last.reason)
        notes = [guard.note(turn), limits.note(turn, last)] if offered else []
        asked = Asked([] if last else offered, [text for text in (self.told(turn) if not last else "", *notes) if text])
        answer = with_ids(turn, await stopping.generate(turn, asked))
        state = turn.state
        if answer.finish_reason != stopping.STOPPED:
            for name, value in answer.usage.items():
                state.usage[name] += value
            state.usage["model_calls"] += 1
            state.spent = (answer.usage["input_tokens"] + answer.usage["output_tokens"], answer.usage["cost_microusd"])
            served = {"step": state.step + 1, "model": answer.model, "provider": answer.provider}
            turn.writer.emit("usage", {**served, **answer.usage})
        if not answer.message.tool_calls:
            state.step += 1
            return await steering.go_on(turn, answer) if steering.goes_on(turn) else finish.succeed(turn, answer)
        calls = plan(turn, answer, offered, last)
        state.step += 1
        state.phase, state.pending = "tools", calls
        turn.messages.append(answer.message)
        if answer.message.text:
            message_id = f"{turn.ref.run_id}/{state.step}"
            turn.writer.emit("message_completed", {"text": answer.message.text, "message_id": message_id})
        start_next(turn)
        turn.delivered = ""
        # Without recall the first messages were not worth a write of their own, and go with the first answer.
        await turn.writer.checkpoint(turn.snapshot(), turn.unstored())
        return None
