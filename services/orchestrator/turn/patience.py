"""Waiting for a store that is away, in what a turn asks of it beside what it writes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.common.errors import Overloaded
from services.orchestrator.turn.state import Turn

AWAY_TRIES, AWAY_WAIT_S = 32, 0.25
T = TypeVar("T")


async def patiently(turn: Turn, ask: Callable[[], Awaitable[T]]) -> T:
    """The answer to `ask`, which is asked again while the store is away, and must do nothing twice.

    Raises Overloaded where the store stays away for AWAY_TRIES times AWAY_WAIT_S, RunStopped when the run's time is used up.
    """
    tries = 0
    while True:
        try:
            return await ask()
        except Overloaded:
            tries += 1
            if tries >= AWAY_TRIES:
                raise
        turn.check_time()
        await asyncio.sleep(AWAY_WAIT_S)
