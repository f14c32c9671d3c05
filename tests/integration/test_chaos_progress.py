"""What `make chaos` says while it is at work, which may take more than an hour."""

import asyncio
from collections import Counter
from types import SimpleNamespace

import pytest

from scripts import chaos
from services.common import testing


@pytest.mark.parametrize(
    ("faults", "strikes"),
    [(chaos.FAULTS, "3 of 1000 strikes, 5 of all kinds"), ({"cut": 1, "blink": 1}, "5 of 1000 strikes")],
)
async def test_how_far_it_is_is_told_on_stderr_again_and_again(monkeypatch, capsys, faults, strikes):
    monkeypatch.setattr(chaos, "TOLD_EVERY_S", 0.01)
    load, told = SimpleNamespace(statuses=Counter(succeeded=7, failed=2), broken=["one"]), []
    mischief = chaos.Chaos([], load, None)
    mischief.faults.update({"kill": 3, "cut": 2})

    def heard(text):
        captured = capsys.readouterr()
        assert not captured.out, "where the result goes"
        told.extend(captured.err.splitlines())
        return any(text in line for line in told)

    telling = asyncio.create_task(mischief.keep_telling(1000, faults))
    await testing.eventually_async(lambda: heard(f"after 0.0 min: {strikes}; 9 runs judged; 1 promises broken"), "it is told")
    load.statuses["failed"] += 1
    await testing.eventually_async(lambda: heard("; 10 runs judged; "), "it is told as it is by then")
    telling.cancel()
