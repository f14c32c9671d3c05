"""The table that fills while processes start."""

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from services.cli.terminal import printable


def terminal() -> Console:
    """stdout."""
    return Console(highlight=False)


class LiveDisplay:
    """A row a process with a spinner until it is ready, and a bar over all of them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, tuple[str, bool]] = {}
        self._spinner = Spinner("dots")
        self._began = time.monotonic()
        self._live: Live | None = None

    def begin(self, labels: Sequence[str]) -> None:
        """Shows the table."""
        self._rows = dict.fromkeys(labels, ("starting", False))
        self._began = time.monotonic()
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=12, transient=True)
        self._live.start()

    def state(self, label: str, text: str, *, ready: bool = False) -> None:
        """Changes one row."""
        self._rows[label] = (text, ready)

    def say(self, line: str) -> None:
        """A line above the table."""
        with suppress(OSError):
            # Never broken at the terminal's width: commands are copied from here.
            self._console.print(Text(printable(line)), soft_wrap=True)

    def stage(self, stage: str, facts: Mapping[str, Any], lines: Sequence[str]) -> None:
        """The lines."""
        for line in lines:
            self.say(line)

    def end(self) -> None:
        """Takes the table away."""
        if self._live is not None:
            with suppress(OSError):
                self._live.stop()
            self._live = None

    def _render(self) -> Table:
        table = Table.grid(padding=(0, 2))
        done = sum(ready for _, ready in self._rows.values())
        elapsed = Text(f"{done}/{len(self._rows)} ready  {time.monotonic() - self._began:.1f} s", style="bold")
        table.add_row("", ProgressBar(total=len(self._rows), completed=done, width=20), elapsed)
        for label, (text, ready) in self._rows.items():
            mark = Text("✓", style="green") if ready else self._spinner
            table.add_row(mark, Text(label), Text(text, style="green" if ready else "dim"))
        return table
