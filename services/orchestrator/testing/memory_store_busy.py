"""A run for a thread in which others have not ended, in memory: the same steps as lua/busy.lua."""

from collections.abc import Callable

from services.orchestrator.records import Accepted, Cut, Reservation
from services.orchestrator.testing.memory_store_control import ControlSteps


class BusySteps(ControlSteps):
    """What a run that is to be accepted does to those before it."""

    def at_work(self, user: str) -> str:
        """As thread_busy."""
        line = self._thread.pending
        return line[0] if line and self._thread.user == user else ""

    def line(self) -> tuple[int, int, str, str]:
        """As thread_line."""
        line, run_id = self._thread.pending, self._ref.run_id
        if not line:
            return -1, 0, "", ""
        head = self._thread.runs.get(line[0])
        return line.index(run_id) if run_id in line else -1, len(line), line[0], head.status if head is not None else ""

    def accept_busy(
        self,
        policy: str,
        user: str,
        reservation: Reservation,
        trace_id: str,
        cancelled: bytes,
        refused: str,
        accept: Callable[[], Accepted],
    ) -> Accepted:
        """As thread_accept_busy."""
        thread, run_id, now = self._thread, self._ref.run_id, self._clock.now_ms
        line = list(thread.pending)
        known = run_id in thread.runs or thread.tombstones.get(run_id, 0) > now or reservation.cancelled
        if not line or thread.user != user or known or now > reservation.not_after_ms:
            return accept()
        if policy in ("reject", "steer"):
            return Accepted("busy", at_work=line[0])
        if refused:
            return Accepted(refused)
        cut = []
        for other in line:
            thread.runs[other].cut = policy
            status, written = type(self)(self._clock, thread, self._ref._replace(run_id=other)).cancel(trace_id, cancelled, policy, 0)
            cut.append(Cut(other, status, written.last_seq))
        accepted = accept()
        return Accepted(accepted.verdict, accepted.record, accepted.written, accepted.undelivered, cut=cut)
