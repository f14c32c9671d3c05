"""How many threads the mover of logs looks at together."""

import asyncio

import pytest

from services.orchestrator.segments_moving import BEHIND_PARALLEL, MOST_AT_ONCE, MOST_PARALLEL, SegmentMover
from services.orchestrator.testing.runs import new_ref


@pytest.mark.parametrize(("due", "at_once"), [(20, MOST_PARALLEL), (MOST_AT_ONCE, BEHIND_PARALLEL)])
async def test_more_threads_are_looked_at_together_where_more_is_due_than_a_turn_takes(due, at_once):
    open_, most = 0, 0

    class Archive:
        async def ended_due(self, most, age_s, again_in_s):
            return [new_ref() for _ in range(min(due, most))]

        async def movable(self, ref, age_s, most):
            nonlocal open_
            open_ += 1
            note()
            await asyncio.sleep(0.01)
            open_ -= 1
            return "open", 0.0, []

        async def ended_again(self, ref, age_s, again_in_s):
            return None

    def note():
        nonlocal most
        most = max(most, open_)

    assert await SegmentMover(Archive(), None, 0.0, lambda _: None).turn() == due
    assert most == at_once
