"""Of many that are due one cannot be looked at."""

import pytest
from structlog.testing import capture_logs

from services.common.errors import Overloaded
from services.orchestrator.results_tending import ResultTending
from services.orchestrator.segments_moving import SegmentMover
from services.orchestrator.testing.runs import new_ref


class Archive:
    """Three are due: one is broken, the store is away for another."""

    def __init__(self):
        self.broken, self.away, self.sound = self.refs = [new_ref() for _ in range(3)]
        self.seen = []

    async def ended_due(self, most, age_s, again_in_s):
        return self.refs

    async def results_due(self, most, again_in_s):
        return self.refs

    async def movable(self, ref, age_s, most):
        return "open", 0.0, []

    async def run(self, ref):
        return None

    async def taken_over(self, ref):
        return True

    async def ended_again(self, ref, age_s, again_in_s):
        if ref == self.broken:
            raise ValueError("a defect")
        if ref == self.away:
            raise Overloaded("the store is away", reason="STORE_UNAVAILABLE", retry_after_s=1.0)
        self.seen.append(ref)

    async def results_again(self, ref, again_in_s):
        await self.ended_again(ref, 0.0, again_in_s)


@pytest.mark.parametrize(
    ("what", "looking"),
    [
        ("segment", lambda archive: SegmentMover(archive, None, 0.0, lambda _: None)),
        ("results", lambda archive: ResultTending(archive, None, 0.0)),
    ],
)
async def test_the_others_are_looked_at_all_the_same_and_both_are_told_of(what, looking):
    archive = Archive()
    with capture_logs() as told:
        assert await looking(archive).turn() == 3
    assert archive.seen == [archive.sound]
    assert {(line["run_id"], line["event"], line["log_level"]) for line in told} == {
        (archive.broken.run_id, f"{what}_failed", "error"),
        (archive.away.run_id, f"{what}_postponed", "warning"),
    }
