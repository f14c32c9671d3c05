"""A model that follows a script, tools that count what they do, and gates that hold one run each: for tests of faults.

The user's text is the script, a JSON list of steps: `[{"say": "one moment", "calls": [["send_mail", {"nonce": "a"}]]}, {"say": "done"}]`.
A nonce names what is asked for, whatever key the call is made under, so that a repetition is seen even where the key is new.
"""

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from bulkhead.llm.v1 import llm_pb2
from bulkhead.tools.v1 import tools_pb2

from services.common.rpc import context as call_context
from services.orchestrator.testing.fakes import DONE, UNKNOWN, FakeTools, Gate, ToolCallSeen
from services.orchestrator.testing.oracle import Effect

REPEATABLE = "calculator"
ONCE = "send_mail"


def script(*steps: Any) -> str:
    """The text of a user who wants these steps; a string is a step that only says something."""
    return json.dumps([{"say": step} if isinstance(step, str) else step for step in steps])


def calls(*wanted: tuple[str, str], say: str = "") -> dict[str, Any]:
    """A step that calls tools: (name, nonce) each."""
    return {"say": say, "calls": [[name, {"nonce": nonce}] for name, nonce in wanted]}


def scripted(request: llm_pb2.CompletionInput) -> llm_pb2.Message:
    """The step that comes after those which are in the conversation already."""
    last = max(i for i, m in enumerate(request.messages) if m.role == "user")
    steps = json.loads(request.messages[last].text)
    number = sum(m.role == "assistant" for m in request.messages[last + 1 :])
    wanted: Sequence[Any] = steps[number].get("calls", ())
    return llm_pb2.Message(
        role="assistant",
        text=steps[number]["say"],
        tool_calls=[
            llm_pb2.ToolCall(tool_call_id=f"c{number}.{i}", name=name, arguments_json=json.dumps(arguments).encode())
            for i, (name, arguments) in enumerate(wanted)
        ],
    )


class RunGates(Gate):
    """A gate a run: whoever passes is known by the token of its call."""

    def __init__(self) -> None:
        super().__init__()
        self._gates: dict[str, Gate] = defaultdict(Gate)

    def of(self, run_id: str) -> Gate:
        """The gate of one run."""
        return self._gates[run_id]

    async def passed(self) -> None:
        """Returns when the gate of the calling run is open."""
        await self.of(call_context.principal().run_id).passed()


class CountingTools(FakeTools):
    """ToolService that counts effects: `calculator` may be done again under its key, `send_mail` may not and is not.

    As a real executor it takes up a key that it knows, and works on when its caller is gone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate: RunGates = RunGates()
        self.effects: dict[str, list[Effect]] = defaultdict(list)
        self.pause_s = 0.0
        self._work: dict[str, asyncio.Future] = {}

    async def ExecuteTool(self, request, context):
        """Once a key, apart from what may be repeated and is not known to have been done."""
        key = request.idempotency_key
        seen = self.calls.get(key)
        if seen is None:
            seen = self.calls[key] = ToolCallSeen(request.name, json.loads(request.arguments_json), context=call_context.current())
            self._begin(key, seen)
        elif self.forced.get(key) == UNKNOWN and seen.name == REPEATABLE:
            del self.forced[key]
            self._begin(key, seen)
        # What was refused before it was ever begun has no work.
        if (work := self._work.get(key)) is not None:
            await asyncio.shield(work)
        yield tools_pb2.ExecuteToolResponse(result=self._result(seen, self.forced.get(key)))

    def _begin(self, key: str, seen: ToolCallSeen) -> None:
        run_id = key.split("/")[0]
        nonce = str(seen.arguments.get("nonce", ""))
        now_ms = int(time.time() * 1000)
        self.effects[run_id].append(Effect(run_id, seen.name, nonce, key, now_ms, seen.name == REPEATABLE))
        seen.executions += 1
        self._work[key] = asyncio.ensure_future(self._do(seen))

    async def _do(self, seen: ToolCallSeen) -> None:
        await self.gate.passed()
        await asyncio.sleep(self.pause_s)
        seen.output = json.dumps({"did": seen.arguments.get("nonce", "")}).encode()
        seen.outcome = DONE

    def forget(self, run_id: str) -> None:
        """Drops what is known of a run that was judged."""
        self.effects.pop(run_id, None)
        for key in [key for key in self.calls if key.startswith(f"{run_id}/")]:
            del self.calls[key]
            self._work.pop(key, None)
