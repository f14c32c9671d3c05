"""`bulkhead test`: the conversations of test files, each on a new thread, and what differs."""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from services.cli.client import Api, segment, segments
from services.cli.connection import Connection
from services.cli.failure import FAILED, CommandFailure
from services.cli.following import follow
from services.cli.regression.form import Conversation, Decision, Turn, read
from services.cli.regression.judging import Outcome, differences
from services.cli.rendering import CLIENT_TOOLS, ENDINGS, brief, note, print_json
from services.cli.terminal import printable


@dataclass(frozen=True, slots=True)
class Options:
    """How tests are run. An empty agent is the one of each turn; `decide` answers approvals as the file says; `timeout_s` is for a turn."""

    agent: str = ""
    decide: bool = False
    keep: bool = False
    timeout_s: float = 300.0
    as_json: bool = False


def run_tests(connection: Connection, paths: Sequence[Path], options: Options) -> int:
    """Has every conversation and prints what differs; answers the exit status, 1 when something did. Raises CommandFailure: UsageProblem
    before anything was run where a file is wrong."""
    tests = [(path, read(path)) for path in paths]
    failed = asyncio.run(_run_all(connection, tests, options))
    if not options.as_json:
        count = len(tests)
        print(f"{count - failed} of {count} {'test' if count == 1 else 'tests'} passed")
    return FAILED if failed else 0


async def _run_all(connection: Connection, tests: Sequence[tuple[Path, Conversation]], options: Options) -> int:
    failed = 0
    async with Api(connection) as api:
        for path, test in tests:
            failed += not await _run(api, path, test, options)
    return failed


async def _run(api: Api, path: Path, test: Conversation, options: Options) -> bool:
    thread_id, passed = f"test-{secrets.token_hex(8)}", True
    console = Console(highlight=False, soft_wrap=True)
    if not options.as_json:
        console.print(Text(f"{path}: {printable(test.name)}"))
    try:
        for number, turn in enumerate(test.turns, 1):
            run_id = f"run_{secrets.token_hex(12)}"
            outcome = await _had(api, thread_id, run_id, turn, options)
            found = differences(outcome, turn.expect)
            passed = passed and not found
            _tell(console, {"file": str(path), "turn": number, "run_id": run_id, "thread_id": thread_id}, turn, outcome, found, options)
    finally:
        if not options.keep:
            await _forget(api, thread_id)
    return passed


def _tell(console: Console, about: Mapping[str, Any], turn: Turn, outcome: Outcome, found: Sequence[str], options: Options) -> None:
    cost_microusd = int(outcome.usage.get("cost_microusd") or 0)
    if options.as_json:
        more = {"duration_ms": outcome.duration_ms, "cost_microusd": cost_microusd, "answer": outcome.answer}
        print_json({**about, "passed": not found, "differences": list(found), **more})
        return
    mark = Text("  ✗ ", style="red") if found else Text("  ✓ ", style="green")
    said = turn.input if isinstance(turn.input, str) else turn.input[-1].content
    console.print(mark + Text(brief(said)) + Text(f" ({outcome.duration_ms / 1000:.1f} s)", style="dim"))
    for difference in found:
        console.print(Text(f"      {printable(difference)}", style="red"))
    if found and outcome.answer:
        console.print(Text(f"      answer: {brief(outcome.answer)}", style="dim"))


async def _had(api: Api, thread_id: str, run_id: str, turn: Turn, options: Options) -> Outcome:
    """What comes of one turn. A run that asks for more than the test may answer, or takes too long, is cancelled."""
    outcome, begun = Outcome(), time.monotonic()
    said = turn.input if isinstance(turn.input, str) else [message.model_dump() for message in turn.input]
    body: dict[str, Any] = {"input": said, "run_id": run_id, "stream": True}
    if agent := options.agent or turn.agent:
        body["agent"] = agent
    first = api.events("POST", f"/v1/threads/{segment(thread_id)}/runs", body=body)
    decisions = list(turn.approvals)
    try:
        async with asyncio.timeout(options.timeout_s), aclosing(follow(api, f"/v1/runs/{segment(run_id)}/events", first=first)) as events:
            async for event in events:
                outcome.take(event)
                if event.get("type") in ENDINGS:
                    break
                if event.get("type") == "interrupt_raised" and (event.get("data") or {}).get("kind") != CLIENT_TOOLS:
                    outcome.asked = await _answered(api, event.get("data") or {}, decisions, options.decide)
                    if outcome.asked:
                        await _cancelled(api, run_id)
                        break
    except asyncio.CancelledError:
        # Ctrl-C: nobody waits for what it would still do.
        await _cancelled(api, run_id, wait=False)
        raise
    except TimeoutError:
        outcome.asked = f"it did not end within {options.timeout_s:g} s"
        await _cancelled(api, run_id)
    outcome.duration_ms = int((time.monotonic() - begun) * 1000)
    return outcome


async def _answered(api: Api, question: Mapping[str, Any], decisions: list[Decision], may: bool) -> str:
    """Decides as the test says, and only about just the call that it names; answers why not, and nothing where it did."""
    tool, arguments = str(question.get("tool")), question.get("arguments")
    known = next((one for one in decisions if (one.tool, one.arguments) == (tool, arguments)), None)
    if known is None:
        return f"it asks for an approval that the test does not name: {tool} {brief(arguments)}"
    if not may:
        return f"it asks for an approval of {tool}: `--decide` answers as the test says ({known.verb})"
    decisions.remove(known)
    body: dict[str, Any] = {"verb": known.verb, "reason": known.reason or "bulkhead test"}
    if known.verb == "edit":
        body["arguments"] = known.edited or {}
    if digest := question.get("arguments_digest"):
        body["arguments_digest"] = digest
    await api.post(f"/v1/approvals/{segments(str(question.get('interrupt_id')))}/decision", body)
    return ""


async def _cancelled(api: Api, run_id: str, *, wait: bool = True) -> None:
    await api.post(f"/v1/runs/{segment(run_id)}/cancel", {"reason": "bulkhead test"}, wait="true" if wait else None)


async def _forget(api: Api, thread_id: str) -> None:
    """Deletes the thread of a test; that it cannot be is no failure of the agent."""
    try:
        await api.delete(f"/v1/threads/{segment(thread_id)}")
    except CommandFailure as failure:
        note(f"{thread_id} stays: {failure}")
