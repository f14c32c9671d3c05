"""What every step on a thread of the store in memory rests on: its log, its runs, and the end of one."""

from collections.abc import Sequence

from services.orchestrator.records import Draft, Event, Fenced, RunRef, Terminal
from services.orchestrator.testing.memory_store_state import Clock, StoredRun, StoredThread


class LogSteps:
    """Steps on the log of the thread of `ref`; the same as the local functions of lua/thread.lua."""

    def __init__(self, clock: Clock, thread: StoredThread, ref: RunRef) -> None:
        self._clock, self._thread, self._ref = clock, thread, ref

    @property
    def _head(self) -> str:
        return self._thread.pending[0] if self._thread.pending else ""

    def append(self, attempt: int, trace_id: str, drafts: Sequence[Draft]) -> tuple[int, int, int]:
        """Appends to the log; answers the first and the last number and that of the first provisional event (0: none)."""
        log, ref, before, provisional = self._thread.log, self._ref, len(self._thread.log), 0
        for draft in drafts:
            seq = len(log) + 1
            if draft.provisional and not provisional:
                provisional = seq
            log.append(
                Event(
                    seq, self._clock.now_ms, ref.thread_id, ref.run_id, attempt, draft.type, bytes(draft.data), draft.provisional, trace_id
                )
            )
        return before + 1, len(log), provisional

    def terminate(self, run: StoredRun, trace_id: str, terminal: Terminal) -> tuple[int, str]:
        """Terminal event and state; answers the event's number and the run that is next in the thread."""
        dropped = [Draft("steer_dropped", b'{"number":%d}' % number) for number in run.steers]
        _, last, _ = self.append(run.attempt, trace_id, [*dropped, Draft(terminal.event, terminal.data)])
        run.status, run.result, run.ended_ms, run.terminal_seq = terminal.status, terminal.result, self._clock.now_ms, last
        run.owner, run.lease_until, run.prov_from, run.messages = "", 0, 0, []
        self._thread.carry_open = self._thread.carry_open and terminal.status != "succeeded"
        first = self._head == self._ref.run_id
        if self._ref.run_id in self._thread.pending:
            self._thread.pending.remove(self._ref.run_id)
        following = self._thread.runs.get(self._head)
        if first and following is not None and following.status == "queued":
            following.queued_ms = self._clock.now_ms
        return last, self._head

    @property
    def found(self) -> StoredRun | None:
        """The run, where it is there."""
        return self._thread.runs.get(self._ref.run_id)

    def fence(self, epoch: int) -> StoredRun:
        """The run, for its owner in `epoch`. Raises Fenced to anybody else."""
        run = self.found
        if run is None or run.epoch != epoch:
            raise Fenced("FENCED the run has another owner")
        return run
