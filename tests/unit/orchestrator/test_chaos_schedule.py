"""What `make chaos` judges of a schedule: every tick since the first, of which the service keeps the last 500."""

from types import SimpleNamespace

import pytest
from bulkhead.orchestrator.v1 import schedules_pb2 as pb

from scripts.chaos_beside import INTERVAL_MS, Clock
from services.common import testing

KEPT, ALL, FIRST_MS = 500, 1_200, 1_800_000_000_000


class Schedules:
    """A schedule of which every reading finds a hundred ticks more; `left_out` was never decided, `twice` was decided twice."""

    def __init__(self, left_out=-1, twice=-1):
        numbers = [n for n in range(ALL) if n != left_out] + [n for n in range(ALL) if n == twice]
        self.ticks, self.there = [tick(n) for n in sorted(numbers)], 0

    async def CreateSchedule(self, request):
        made = pb.Schedule(schedule_id="sch_1")
        made.next_tick_at.FromMilliseconds(FIRST_MS)
        return pb.CreateScheduleResponse(schedule=made)

    async def PauseSchedule(self, request):
        return pb.PauseScheduleResponse()

    async def ListScheduleTicks(self, request):
        self.there = min(self.there + 100, len(self.ticks))
        return pb.ListScheduleTicksResponse(ticks=self.ticks[: self.there][-KEPT:][::-1])


def tick(number):
    made = pb.ScheduleTick(result=pb.TICK_RESULT_SKIPPED)
    made.tick_at.FromMilliseconds(FIRST_MS + number * INTERVAL_MS)
    return made


async def judged(schedules, every_s=0.0):
    """What is found to be broken once all ticks are there, and how many were judged."""

    async def anywhere(ask):
        return await ask(SimpleNamespace(schedules=schedules))

    load = SimpleNamespace(anywhere=anywhere, broken=[], answered={})
    clock = Clock(load, every_s)
    await clock.begin()
    if not every_s:
        await testing.eventually_async(lambda: schedules.there == len(schedules.ticks), "all ticks were read")
    schedules.there = len(schedules.ticks)
    await clock.end()
    await clock.judge()
    return [violation.what for violation in load.broken], load.answered["ticks of a schedule"]


async def test_every_tick_is_judged_however_many_are_kept():
    assert await judged(Schedules()) == ([], ALL)


@pytest.mark.parametrize(
    ("wrong", "told"), [({"left_out": 10}, f"{2 * INTERVAL_MS} ms lie between two ticks"), ({"twice": 10}, "0 ms lie between two ticks")]
)
async def test_what_was_broken_long_ago_is_found(wrong, told):
    found, _ = await judged(Schedules(**wrong))
    assert found == [told]


async def test_ticks_that_nobody_read_are_told():
    found, count = await judged(Schedules(), every_s=3_600.0)
    assert "the oldest tick that was read is not the first" in found
    assert count < ALL
