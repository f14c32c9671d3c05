"""The watchdog of the event loop: it tells where a loop stands that is held up, once for each time."""

import gc
import time
from types import SimpleNamespace

import pytest

from services.common.rpc import watchdog
from services.common.rpc.watchdog import ALARM_S, Watchdog


@pytest.fixture
def told(monkeypatch):
    """What was logged: event and fields."""
    found = []
    monkeypatch.setattr(watchdog, "log", SimpleNamespace(warning=lambda event, **about: found.append((event, about))))
    return found


@pytest.fixture
async def watched():
    made = Watchdog()
    made.start()
    yield
    made.stop()


def held_up_here(until):
    while not until():
        time.sleep(0.01)


def collecting_here(until):
    while not until():
        gc.collect()


@pytest.mark.parametrize("hold", [held_up_here, collecting_here])
async def test_where_a_loop_is_held_up_is_told_once(told, watched, hold):
    hold(lambda: told)
    # The same time is not told again, however long it lasts.
    end = time.monotonic() + 3 * ALARM_S
    hold(lambda: time.monotonic() > end)
    ((event, about),) = told
    assert event == "event_loop_blocked"
    assert about["late_s"] > ALARM_S
    frames = about["frames"]
    assert len(frames) <= watchdog.FRAMES
    assert any(f"in {hold.__name__}" in frame and "test_watchdog.py" in frame for frame in frames)
    # The innermost comes last, and the frames are of this thread alone.
    assert hold.__name__ in " ".join(frames[-2:])
    assert not any(frame.endswith("in _watch") for frame in frames)
