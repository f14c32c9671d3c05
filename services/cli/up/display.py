"""What the user sees while `up` works: a table that fills on a terminal (live.py), plain lines elsewhere, lines of JSON for scripts."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TextIO

from services.cli.terminal import printable
from services.cli.up.supervisor import Display


class PlainDisplay:
    """One line an event, for pipes and CI logs. Intermediate states are left out."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def begin(self, labels: Sequence[str]) -> None:
        """Announces the processes."""
        self.say(f"starting {', '.join(labels)}")

    def state(self, label: str, text: str, *, ready: bool = False) -> None:
        """A line for each process that has become ready."""
        if ready:
            self.say(f"{label:<16} ready after {text}")

    def say(self, line: str) -> None:
        """A line, at once."""
        # A closed terminal or pipe must not keep the drain from going on.
        with suppress(OSError):
            print(printable(line), file=self._out, flush=True)

    def stage(self, stage: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """The lines."""
        for line in lines:
            self.say(line)

    def end(self) -> None:
        """Nothing is open."""


class JsonDisplay:
    """One JSON object a line, at once: `event` says which, `elapsed_s` when."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._began = time.monotonic()

    def begin(self, labels: Sequence[str]) -> None:
        """Announces the processes."""
        self._tell("starting", processes=list(labels))

    def state(self, label: str, text: str, *, ready: bool = False) -> None:
        """What a process is at, in words, and whether it is ready."""
        self._tell("process", process=label, ready=ready, state="ready" if ready else text)

    def say(self, line: str) -> None:
        """What is for people alone."""
        self._tell("message", text=line)

    def stage(self, stage: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """The facts."""
        self._tell(stage, **facts)

    def end(self) -> None:
        """Nothing is open."""

    def _tell(self, event: str, **more: Any) -> None:
        # As of PlainDisplay: who reads no more must not keep the drain from going on.
        with suppress(OSError):
            about = {"event": event, "elapsed_s": round(time.monotonic() - self._began, 3)}
            print(json.dumps({**about, **more}), file=self._out, flush=True)


def make_display(*, as_json: bool = False) -> Display:
    """Lines of JSON where that is asked for, a live table on a terminal, plain lines otherwise."""
    if as_json:
        return JsonDisplay(sys.stdout)
    if sys.stdout.isatty():
        # Imported here: where nobody watches, nobody waits for it.
        from services.cli.up.live import LiveDisplay, terminal

        console = terminal()
        if not console.is_dumb_terminal:
            return LiveDisplay(console)
    return PlainDisplay(sys.stdout)
