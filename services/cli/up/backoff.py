"""How long a process that ended by itself waits before it is started again."""

FIRST_S = 0.2
CAP_S = 10.0
# A process that was up this long had recovered: its next crash is a new one.
RESET_AFTER_S = 30.0


class Backoff:
    """0.2 s, doubling to 10 s; from the beginning again after 30 s up."""

    def __init__(self) -> None:
        self._next_s = FIRST_S

    def after(self, uptime_s: float) -> float:
        """Seconds to wait, for a process that was up for `uptime_s`."""
        if uptime_s >= RESET_AFTER_S:
            self._next_s = FIRST_S
        delay_s, self._next_s = self._next_s, min(self._next_s * 2, CAP_S)
        return delay_s
