"""The data folder of one installation (`.bulkhead/`): what is where, and one `up` at a time."""

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

from services.cli.failure import CommandFailure

# What the keeper of a killed `up` needs at most to end its processes.
INHERITED_LOCK_S = 15.0
LOG_ROTATES_AT_BYTES = 64 * 1024 * 1024


class Workspace:
    """Paths in the data folder. `open()` makes them."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.run = self.root / "run"
        self.logs = self.root / "logs"
        self.keys = self.root / "keys"
        # Root keys of personal data: whoever loses the file loses what was encrypted.
        self.envelope_keys = self.keys / "envelope.json"
        self.config = self.root / "config"
        self.addresses = self.run / "addresses.json"
        self.processes = self.run / "processes.json"
        self.dev_env = self.root / "dev.env"
        self.lock = self.run / "up.lock"

    def open(self) -> None:
        """Makes the folders, for this user only. Raises CommandFailure when that is not possible."""
        try:
            for folder in (self.root, self.run, self.logs, self.keys):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK):
                raise PermissionError
        except OSError as error:
            raise CommandFailure(f"the data folder {self.root} cannot be written ({error.strerror or 'permission denied'})") from None

    def store(self, name: str) -> Path:
        """Data of one store, as `.bulkhead/valkey-state`."""
        folder = self.root / name.replace("_", "-")
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    def pid_file(self, label: str) -> Path:
        """Pid file of one process."""
        return self.run / f"{label}.pid"

    def log_file(self, label: str) -> Path:
        """Log of one process."""
        return self.logs / f"{label}.jsonl"

    def sweep(self) -> None:
        """Removes what a killed `up` left, and moves long logs aside."""
        for stale in self.run.glob("*.pid"):
            stale.unlink(missing_ok=True)
        for log in self.logs.glob("*.jsonl"):
            if log.stat().st_size > LOG_ROTATES_AT_BYTES:
                log.replace(log.with_name(log.name + ".1"))


def write_private(path: Path, text: str) -> None:
    """Replaces a file in one step, readable by this user only."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    fresh.replace(path)


class Lock:
    """Held by the one `up` of a data folder, and by its keeper until the last process is gone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.descriptor = -1

    def acquire(self) -> None:
        """Raises CommandFailure naming the running `up`. When that was killed, waits until its processes have ended."""
        self.descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        end = time.monotonic() + INHERITED_LOCK_S
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                owner = self._owner()
                if _alive(owner) or time.monotonic() > end:
                    who = f"process {owner}" if owner else "another process"
                    folder = self._path.parent.parent
                    way_out = "end it with Ctrl-C there, or use another --data-dir and --port-base"
                    raise CommandFailure(f"bulkhead is already running on {folder} ({who}): {way_out}") from None
                time.sleep(0.1)
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, str(os.getpid()).encode(), 0)

    def release(self) -> None:
        """Gives the folder free."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _owner(self) -> int:
        with suppress(OSError, ValueError):
            return int(self._path.read_text())
        return 0


def _alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def running_owner(path: Path) -> int:
    """Pid of the `up` that holds the lock file, 0 when nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with suppress(ValueError):
            return int(os.read(descriptor, 32) or b"0")
        return 0
    else:
        return 0
    finally:
        os.close(descriptor)
