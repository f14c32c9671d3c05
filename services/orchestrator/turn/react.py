"""ReAct: model steps and tool steps in turn until the model answers. Source: Yao et al., arXiv:2210.03629."""

from collections.abc import Mapping
from dataclasses import replace

from services.orchestrator.ports import ToolDefinition, ToolOutcome
from services.orchestrator.records import Terminal
from services.orchestrator.turn import (
    answer_format,
    client_tools,
    degradation,
    finish,
    guard,
    guarding,
    limits,
    lost,
    steering,
    stopping,
)
from services.orchestrator.turn.execute_tools import execute_tools
from services.orchestrator.turn.intent import start_step
from services.orchestrator.turn.model_step import Asked, count, find_tools, intended
from services.orchestrator.turn.plan_tools import plan, start_next, with_ids
from services.orchestrator.turn.prepare import prepare
from services.orchestrator.turn.state import PendingCall, Turn

_LAST_BUT_CLIENTS = "This is the last step of this run: answer now, or call the tools that are left, with which the run ends."


class ReAct:
    """The tool loop. What a strategy like it adds are tools of its own and what the model is told of them."""

    async def advance(self, turn: Turn, *, resumed: bool) -> Terminal | None:
        """As Strategy.advance."""
        turn.intent = self.intent
        # Messages that were not worth a write of their own are made anew by whoever takes over.
        if turn.state.phase == "prepare" or not turn.messages:
            await prepare(turn)
        elif turn.state.phase == "model" and client_tools.waiting(turn):
            return finish.ask_client(turn)
        elif turn.state.phase == "tools":
            await execute_tools(turn, self.built_in, resumed=resumed)
        else:
            return await self._model(turn)
        return None

    def offered(self, turn: Turn) -> list[ToolDefinition]:
        """The tools that the model may call in the next step."""
        return [*(turn.tools or []), *client_tools.definitions(turn.spec)]

    def told(self, turn: Turn) -> str:
        """What the model is told before the next step, beside its prompt."""
        return ""

    def built_in(self, turn: Turn, call: PendingCall) -> ToolOutcome | None:
        """As execute_tools.BuiltIn."""
        return None

    def intent(self, turn: Turn) -> Mapping[str, str] | None:
        """As Turn.intent: the next model call, as far as nobody says anything more before it."""
        if turn.tools is None or client_tools.waiting(turn):
            return None
        return intended(turn, self._asked(turn)[0])

    def _asked(self, turn: Turn) -> tuple[Asked, limits.Budget | None]:
        """What the model is asked next, and the limit for which that has to be the last time."""
        offered = self.offered(turn)
        # An agent without tools answers in any case.
        last = limits.last_step(turn) if offered else None
        # With a call of the client's the run ends as well.
        clients = [tool for tool in offered if tool.client]
        notes = [guard.note(turn), _LAST_BUT_CLIENTS if last and clients else limits.note(turn, last)] if offered else []
        return Asked(clients if last else offered, [text for text in (self.told(turn) if not last else "", *notes) if text]), last

    async def _model(self, turn: Turn) -> Terminal | None:
        limits.check(turn, lost.tokens(turn))
        if not stopping.wanted(turn):
            # What was said is answered behind the stop, and not stopped with it.
            await steering.apply(turn)
        if turn.tools is None:
            turn.tools = await find_tools(turn)
        start_step(turn)
        offered, (asked, last) = self.offered(turn), self._asked(turn)
        if last is not None and last.reason in ("TOKEN_LIMIT", "COST_LIMIT"):
            degradation.warn(turn, "last_step", reason=last.reason)
        answer = with_ids(turn, await stopping.generate(turn, asked))
        state = turn.state
        if answer.finish_reason != stopping.STOPPED:
            count(turn, answer)
            await lost.settle(turn)
        if not answer.message.tool_calls:
            state.step += 1
            if answer.misfits:
                return await answer_format.ask_again(turn, answer)
            if not steering.goes_on(turn):
                return finish.succeed(turn, answer)
            await steering.go_on(turn, answer)
            return None
        # Before anything is noted of them: whoever is interrupted here makes the step again.
        requests, unwanted = await guarding.asked(turn, answer.message.tool_calls)
        here, unwanted, clients = client_tools.divided(requests, offered, unwanted)
        calls = plan(turn, here, offered, last, unwanted) if here else []
        state.step += 1
        state.phase, state.pending = ("tools" if calls else "model"), calls
        turn.messages.append(replace(answer.message, tool_calls=tuple(requests)))
        if answer.message.text:
            message_id = f"{turn.ref.run_id}/{state.step}"
            turn.writer.emit("message_completed", {"text": answer.message.text, "message_id": message_id})
        if clients:
            client_tools.hold(turn, clients, answer.message.text, finish.tell_cited(turn, answer.message.text))
        turn.delivered = ""
        if not calls:
            turn.writer.emit("step_completed", {"step": state.step, "usage": state.usage})
            return finish.ask_client(turn)
        start_next(turn)
        # Without recall the first messages were not worth a write of their own, and go with the first answer.
        await turn.writer.checkpoint(turn.snapshot(), turn.unstored())
        return None
