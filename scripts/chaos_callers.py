"""Callers of several replicas, any of which may be lost at any moment, and what all of them know together."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from services.common.errors import BulkheadError
from services.orchestrator.testing.fakes import Fakes
from services.orchestrator.testing.harness import LOST, Client
from services.orchestrator.testing.oracle import Violation
from services.orchestrator.testing.replicas import Replica

# A call to a replica that stands still is given up after this.
CALL_S = 4.0
# What a caller that is in no hurry asks again after: a key whose first call was lost is held for half a minute.
AGAIN = frozenset({"IDEMPOTENCY_IN_FLIGHT", "CONFLICT"})


@dataclass
class Callers:
    """Whoever asks for something, and what became of it."""

    replicas: list[Replica]
    behind: Fakes
    active: dict[str, str] = field(default_factory=dict)
    # Of these, the runs that were acknowledged; and how many ever were.
    at_work: set[str] = field(default_factory=set)
    acknowledged: int = 0
    statuses: Counter = field(default_factory=Counter)
    # What was asked for beside runs, and answered.
    answered: Counter = field(default_factory=Counter)
    broken: list[Violation] = field(default_factory=list)

    def clients(self) -> list[Client]:
        """Every replica, in no order."""
        return [replica.client for replica in random.sample(self.replicas, len(self.replicas))]

    async def anywhere(self, ask: Callable[[Client], Awaitable[Any]]) -> Any:
        """The answer of the first replica that gives one, however long that takes."""
        while True:
            for client in self.clients():
                try:
                    with client.calling(timeout_s=CALL_S):
                        return await ask(client)
                except BulkheadError as error:
                    if error.code.name not in (*LOST, "RESOURCE_EXHAUSTED") and error.reason not in AGAIN:
                        raise
            await asyncio.sleep(0.1)


async def together(*doing: Coroutine[Any, Any, Any]) -> None:
    """Does all of it side by side; where one raises, the others end and this raises the same."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in doing:
                group.create_task(one)
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
