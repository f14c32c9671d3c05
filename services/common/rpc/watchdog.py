"""Measures how late the event loop is, exports it, and logs where it stands when it is held up."""

import asyncio
import faulthandler
import os
import tempfile
import threading
import time
from typing import BinaryIO

import structlog
from opentelemetry.metrics import get_meter

TICK_S = 0.05
ALARM_S = 0.2
# So many of the innermost frames are told.
FRAMES = 8
log = structlog.get_logger("bulkhead.watchdog")
_lag = get_meter("bulkhead.process").create_histogram(
    "bulkhead_event_loop_lag_seconds", unit="s", description="How late a timer of the event loop fired."
)


class Watchdog:
    """A timer in the loop and a thread that watches it: the thread can still look when the loop cannot."""

    def __init__(self) -> None:
        self._beat = time.monotonic()
        self._done = threading.Event()
        self._handle: asyncio.TimerHandle | None = None
        self._thread_id = 0

    def start(self) -> None:
        """Starts watching the running loop."""
        self._thread_id = threading.get_ident()
        self._beat = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(TICK_S, self._tick)
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Ends both."""
        self._done.set()
        if self._handle is not None:
            self._handle.cancel()

    def _tick(self) -> None:
        now = time.monotonic()
        _lag.record(max(0.0, now - self._beat - TICK_S))
        self._beat = now
        self._handle = self._loop.call_later(TICK_S, self._tick)

    def _watch(self) -> None:
        reported = 0.0
        while not self._done.wait(ALARM_S / 2):
            late = time.monotonic() - self._beat - TICK_S
            if late > ALARM_S and self._beat != reported:
                reported = self._beat
                stack = _stack_of(self._thread_id)
                # Not `stack`: structlog renders that name itself and wants one string.
                log.warning("event_loop_blocked", late_s=round(late, 3), frames=stack)


def _stack_of(thread_id: int) -> list[str]:
    """The innermost frames of another thread, outermost first: file, line and function of each."""
    # Frame objects of a thread at work, as sys._current_frames() makes them, can crash CPython 3.11; faulthandler makes none.
    with _unnamed_file() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        text = file.read().decode("utf-8", "replace")
    found = []
    inside = False
    for line in text.splitlines():
        if line.startswith("  File "):
            found += [line.strip()] if inside else []
        elif line.startswith(("Thread ", "Current thread ")):
            inside = f" 0x{thread_id:016x} " in line
    return found[:FRAMES][::-1]


def _unnamed_file() -> BinaryIO:
    # Where the file system is read-only there is memory still.
    return os.fdopen(os.memfd_create("stacks"), "w+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()
