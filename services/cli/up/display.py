"""What the user sees while `up` works: a table that fills on a terminal (live.py), plain lines elsewhere."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TextIO

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

    def end(self) -> None:
        """Nothing is open."""


def make_display() -> Display:
    """A live table on a terminal, plain lines otherwise."""
    if sys.stdout.isatty():
        # Imported here: where nobody watches, nobody waits for it.
        from services.cli.up.live import LiveDisplay, terminal

        console = terminal()
        if not console.is_dumb_terminal:
            return LiveDisplay(console)
    return PlainDisplay(sys.stdout)
