"""Ends what `bulkhead up` started when `up` itself was killed. A process of its own, standard library only.

It reads lines from its standard input, which `up` holds open: `+ <group> <stage> <signal>` for a started process group,
`- <group>` for an ended one. When the input ends, the groups that are left get their signal stage by stage (0 services,
1 stores) and SIGKILL when they do not end. It also holds the lock of the data folder, so that a next `up` waits for it. With nothing
left it just ends.
"""

import os
import signal
import sys
import time
from contextlib import suppress

STAGE_S = {0: 8.0, 1: 2.0}


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # macOS answers this for a group of zombies only.
        return False
    return True


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    started: dict[int, tuple[int, int]] = {}
    for line in sys.stdin:
        mark, group, *how = line.split()
        if mark == "+":
            started[int(group)] = (int(how[0]), int(how[1]))
        else:
            started.pop(int(group), None)
    for stage, patience_s in STAGE_S.items():
        groups = [group for group, (its, _) in started.items() if its == stage]
        for group in groups:
            # A stopped process would never hear of it.
            _signal(group, signal.SIGCONT)
            _signal(group, started[group][1])
        end = time.monotonic() + patience_s
        while time.monotonic() < end and any(_alive(group) for group in groups):
            time.sleep(0.05)
        for group in groups:
            _signal(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
