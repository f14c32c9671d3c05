"""Tells whoever changed a configuration file that the services have refused the change: they alone would keep it to themselves."""

import time
from collections.abc import Callable
from pathlib import Path

from services.cli.up.workspace import Workspace

# A service looks at its files every second; what it has not refused by then it has taken.
LOOK_FOR_S = 6.0


class ConfigNews:
    """Asks the processes for a while after each change of a file of `config_dir`."""

    def __init__(self, workspace: Workspace, config_dir: Path, say: Callable[[str], None]) -> None:
        self._workspace = workspace
        self._config_dir = config_dir
        self._say = say
        self._seen = self._stamps()
        self._until = 0.0
        self._told: frozenset[str] = frozenset()

    async def look(self) -> None:
        """Called again and again. Raises OSError."""
        now, stamps = time.monotonic(), self._stamps()
        if stamps != self._seen:
            self._seen, self._until = stamps, now + LOOK_FOR_S
        if now > self._until:
            return
        # Imported here: nobody waits for it at the start.
        from services.cli.doctor import config_rows

        found = frozenset(f"{row.found}: {row.way_out}" for row in await config_rows(self._workspace) if not row.good)
        for line in sorted(found - self._told):
            self._say(line)
        if self._told and not found:
            self._say("the configuration in force is the newest again")
        self._told = found

    def _stamps(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self._config_dir.iterdir():
            if path.is_file():
                state = path.stat()
                found[path.name] = (state.st_mtime_ns, state.st_size)
        return found
