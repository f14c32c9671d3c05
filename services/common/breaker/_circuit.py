"""One circuit as a pure state machine: what a replica goes by while the store cannot be asked.

The rules are those of breaker.lua, where the circuit of the whole fleet stands. Pattern: M. Nygard, "Release It!"; the window in
slices is that of resilience4j's time-based sliding window.
"""

from dataclasses import dataclass

SLICES = 12


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a circuit opens, and when it is tried again. Times in seconds.

    It opens after `failures_in_row` failures without a success, or when of at least `least_calls` calls within `window_s` the share
    `failure_rate` failed (0 turns this off). The first probe is made after `first_open_s`, which doubles up to `longest_open_s` while
    probes fail; a Retry-After, of at most `longest_retry_after_s`, is used in place of both. A probe whose process died is given up
    after `probe_lease_s`. A circuit that nobody touches for `kept_s` is forgotten.
    """

    failures_in_row: int = 5
    failure_rate: float = 0.5
    least_calls: int = 20
    window_s: float = 60.0
    first_open_s: float = 5.0
    longest_open_s: float = 60.0
    longest_retry_after_s: float = 3600.0
    probe_lease_s: float = 10.0
    kept_s: float = 3600.0

    def retry_after(self, given_s: float | None) -> float:
        """A provider's Retry-After within its bound, 0 where there is none."""
        return min(given_s, self.longest_retry_after_s) if given_s is not None and given_s > 0 else 0.0


class Circuit:
    """Closed, open, or half-open: open with its time over. `now` is any clock in seconds, always the same one."""

    __slots__ = ("_slices", "failed_probes", "held_until", "lease_until", "open", "open_until", "retry_at", "row", "token", "touched")

    def __init__(self) -> None:
        self.touched = 0.0
        self.close()

    def close(self) -> None:
        """Closed, with no memory."""
        self.open = False
        self.open_until = 0.0
        self.failed_probes = 0
        self.token = ""
        self.lease_until = 0.0
        self.held_until = 0.0
        self.row = 0
        self.retry_at = 0.0
        self._slices: dict[int, list[int]] = {}

    def force(self, open_until: float, failed_probes: int, lease_until: float) -> None:
        """Open, as the fleet has it."""
        self.open = True
        self.open_until = open_until
        self.failed_probes = failed_probes
        self.lease_until = lease_until
        self.row = 0
        self.retry_at = 0.0
        self._slices.clear()

    def due(self, now: float) -> bool:
        """Whether a probe may be tried."""
        return self.open_until <= now and self.lease_until <= now and self.held_until <= now

    def wait_s(self, now: float) -> float:
        """Seconds until a probe may be tried."""
        return max(self.open_until - now, self.lease_until - now, 0.0) if self.open else 0.0

    def failure_rate(self, now: float, policy: BreakerPolicy, more: int = 0) -> float:
        """Share of failures within the window, 0 to 1; `more` successes are not yet counted in it."""
        ok, failed = self._counted(now, policy)
        return failed / (ok + failed + more) if failed else 0.0

    def succeeded(self, count: int, now: float, policy: BreakerPolicy) -> None:
        """Calls that ended well; those that had begun before it opened say nothing about it now."""
        if self.open:
            return
        self.row = 0
        self.retry_at = 0.0
        self._count(count, 0, now, policy)

    def failed(self, now: float, policy: BreakerPolicy, retry_after_s: float = 0.0) -> None:
        """A call that failed."""
        if self.open:
            if retry_after_s:
                self.open_until = max(self.open_until, now + retry_after_s)
            return
        self.row += 1
        if retry_after_s:
            self.retry_at = max(self.retry_at, now + retry_after_s)
        self._count(0, 1, now, policy)
        ok, failed = self._counted(now, policy)
        often = policy.failure_rate > 0 and ok + failed >= policy.least_calls and failed >= policy.failure_rate * (ok + failed)
        if self.row >= policy.failures_in_row or often:
            self.force(self.retry_at if self.retry_at > now else now + policy.first_open_s, 0, 0.0)

    def take_probe(self, token: str, now: float, policy: BreakerPolicy) -> bool:
        """Whether the caller may make the probe; it holds it for the lease."""
        if not self.open or now < self.open_until or (self.lease_until > now and self.token != token):
            return False
        self.token = token
        self.lease_until = now + policy.probe_lease_s
        return True

    def end_probe(self, token: str, now: float, policy: BreakerPolicy, *, failed: bool | None, retry_after_s: float = 0.0) -> None:
        """What became of a probe; None when it told nothing, and the next may be made. One that lost its lease to another is ignored."""
        if not self.open or self.token != token:
            return
        if failed is None:
            self.token = ""
            self.lease_until = self.held_until = 0.0
        elif failed:
            probes = self.failed_probes + 1
            wait_s = retry_after_s or min(policy.longest_open_s, policy.first_open_s * 2 ** min(probes, 30))
            self.token = ""
            self.force(now + wait_s, probes, 0.0)
        else:
            self.close()

    def _count(self, ok: int, failed: int, now: float, policy: BreakerPolicy) -> None:
        number = int(now * SLICES // policy.window_s)
        found = self._slices.get(number)
        if found is None:
            found = self._slices[number] = [0, 0]
            for old in [n for n in self._slices if n <= number - SLICES]:
                del self._slices[old]
        found[0] += ok
        found[1] += failed

    def _counted(self, now: float, policy: BreakerPolicy) -> tuple[int, int]:
        oldest = int(now * SLICES // policy.window_s) - SLICES
        kept = [counts for number, counts in self._slices.items() if number > oldest]
        return sum(c[0] for c in kept), sum(c[1] for c in kept)
