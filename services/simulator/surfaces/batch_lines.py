"""What the batches of all dialects share: the way through their lines, and the answer to one."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

import orjson

from services.simulator.dialects import Dialect
from services.simulator.fault_answers import error_answer
from services.simulator.fault_book import Subject
from services.simulator.faults import NO_FAULTS, Faults, count
from services.simulator.refusals import Refused
from services.simulator.served_log import Visit
from services.simulator.simulator import Simulator, labels_of
from services.simulator.surfaces import generation
from services.simulator.surfaces.exchange import Exchange
from services.simulator.surfaces.generation import Asked

COMPLETED, CANCELLED, EXPIRED = "completed", "cancelled", "expired"
# Of the faults of an answer those that make sense where it is a line of a file.
_OF_USAGE = frozenset(("missing_usage", "usage_zero", "show_reasoning"))
LineT = TypeVar("LineT")


class Tasks:
    """The batches that run."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run one in a task of its own."""
        task = asyncio.create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    def stop(self) -> None:
        """End them: the process is to end."""
        for task in self._running:
            task.cancel()


async def asked_faults(
    simulator: Simulator,
    exchange: Exchange,
    dialect: Dialect,
    key: str,
    batch_id: str,
    told: Faults = NO_FAULTS,
    labels: Sequence[str] = (),
) -> Faults | None:
    """The faults of a new batch; None where one of them has answered. `told` are such as the batch itself names. Raises Refused."""
    subject = Subject("batch", "", "", labels_of(exchange.headers, *labels))
    asked = simulator.faults_for(subject, exchange.headers, told)
    simulator.check_key(key, asked)
    error = error_answer(asked)
    if error is None:
        return asked
    status, refusal, headers = dialect.refusal(error.refused, batch_id)
    await exchange.respond(status, refusal, (*error.headers, *headers))
    return None


async def through(lines: Sequence[LineT], asked: Faults, cancelled: asyncio.Event, answer: Callable[[LineT], None]) -> str:
    """Answer one line after the other; how it ended."""
    await pause(cancelled, asked, "batch_delay")
    ends_after = count(asked, "batch_expires_after")
    for done, line in enumerate(lines):
        if ends_after is not None and done >= ends_after:
            return EXPIRED
        if cancelled.is_set():
            return CANCELLED
        answer(line)
        await pause(cancelled, asked, "batch_line_delay")
    return CANCELLED if cancelled.is_set() else COMPLETED


async def pause(cancelled: asyncio.Event, asked: Faults, name: str) -> None:
    """Wait as the fault says, or until the batch is cancelled; at least let others have a turn."""
    await asyncio.sleep(0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout((count(asked, name) or 0) / 1000):
            await cancelled.wait()


@contextlib.contextmanager
def visiting(simulator: Simulator, dialect: Dialect, batch_id: str) -> Iterator[Visit]:
    """The log's line of one request of a batch; a refusal is noted in it and goes on."""
    visit = Visit(dialect.id_prefix + simulator.next_id(), "batch", {}, time.time(), time.monotonic(), batch_id=batch_id)
    simulator.log.begin(visit)
    try:
        yield visit
        visit.status = 200
    except Refused as refused:
        visit.status = refused.status
        visit.error_code = refused.code or refused.type
        raise
    finally:
        simulator.log.end(visit)


def generated(simulator: Simulator, visit: Visit, dialect: Dialect, asked: Asked, key: str) -> Any:
    """The body of a whole answer; raises Refused."""
    if asked.chat.stream:
        raise Refused("A request of a batch cannot be streamed.", param="stream")
    made = generation.prepare(simulator, visit, dialect, asked, {}, key)
    blocked = dialect.blocks_in_answer and "content_policy" in made.faults
    if not blocked:
        raise_fault(made.faults)
    wanted = {name: made.faults[name] for name in made.faults if name in _OF_USAGE or (blocked and name == "content_policy")}
    plan = dialect.whole_body(made.replies, made.head, wanted)
    generation.account(simulator, visit, made)
    if blocked:
        visit.completion_tokens = visit.reasoning_tokens = visit.tool_calls = 0
    visit.billed = True
    visit.usage_sent = plan.usage_sent
    visit.finish_reason = plan.finish_reason
    return orjson.loads(plan.body)


def raise_fault(asked: Faults) -> None:
    """Raise the error that the faults ask for."""
    error = error_answer(asked)
    if error is not None:
        raise error.refused
