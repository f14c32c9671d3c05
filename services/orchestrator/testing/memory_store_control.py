"""What others ask of a run, in memory: the same steps as lua/control.lua."""

from collections.abc import Sequence

import orjson

from services.orchestrator.records import Command, Draft, Park, Posted, Terminal, Written
from services.orchestrator.testing.memory_store_log import LogSteps
from services.orchestrator.testing.memory_store_state import StoredRun

MOST_COMMANDS = 1000
PARKED_SCHEMA = 2
ACKNOWLEDGED = {"steer": "steer_received", "stop": "stop_received", "tool": "tool_cancel_received"}


class ControlSteps(LogSteps):
    """Steps on one run's inbox, and what ends or wakes it."""

    def post(self, kind: str, data: bytes, key: str, trace_id: str, events: Sequence[Draft]) -> Posted:
        """As post_command."""
        run, now = self.found, self._clock.now_ms
        nothing = Written(0, 0, now, "")
        if run is None:
            return Posted("none", 0, "", nothing)
        if key and key in run.posted:
            return Posted("again", run.posted[key], run.status, nothing, run.held == "2")
        if run.ended:
            return Posted("ended", 0, run.status, nothing)
        if kind in ACKNOWLEDGED and run.inbox >= MOST_COMMANDS:
            return Posted("full", 0, run.status, nothing)
        run.commands.append(Command(run.inbox + 1, kind, now, orjson.loads(data)))
        if key:
            run.posted[key] = run.inbox
        if kind in ACKNOWLEDGED:
            events = [Draft(ACKNOWLEDGED[kind], b'{"number":%d}' % run.inbox)]
            run.stopping = run.stopping or kind == "stop"
            run.steers += [run.inbox] if kind == "steer" else []
        first, last = self.append(run.attempt, trace_id, events)[:2] if events else (0, 0)
        woken = run.status == "waiting" or run.held == "2"
        if run.status == "waiting":
            run.status, run.held, run.queued_ms = "queued", "2", now
        return Posted("posted", run.inbox, run.status, Written(first, last, now, ""), woken)

    def park(self, run: StoredRun, park: Park) -> str:
        """Mode p of run_write; answers the run itself where it has to go on."""
        called = run.inbox > park.absorbed or run.cancel
        run.status, run.owner, run.lease_until, run.queued_ms = "queued" if called else "waiting", "", 0, self._clock.now_ms
        run.parked_until, run.schema_version, run.rested = park.until_ms, max(run.schema_version, PARKED_SCHEMA), run.attempt
        return self._ref.run_id if called else ""

    def unpark(self) -> bool:
        """As run_unpark."""
        run, now = self.found, self._clock.now_ms
        if run is None or run.status != "waiting":
            return False
        if not run.cancel and (not run.parked_until or run.parked_until > now):
            return False
        run.status, run.held, run.queued_ms = "queued", "" if run.cancel else "2", now
        return True

    def cancel(self, trace_id: str, data: bytes, reason: str, tombstone_ms: int) -> tuple[str, Written]:
        """As run_cancel."""
        run, now = self.found, self._clock.now_ms
        nothing = Written(0, 0, now, "")
        if run is None:
            self._thread.tombstones[self._ref.run_id] = now + tombstone_ms
            return "none", nothing
        if run.ended:
            return run.status, nothing
        if not run.cancel:
            run.cancel, run.cancel_reason = True, reason
        if run.status == "queued" and run.attempt == 0:
            last, following = self.terminate(run, trace_id, Terminal("cancelled", data, "run_cancelled", data))
            return "cancelled", Written(last, last, now, following)
        if run.status == "waiting":
            run.status, run.queued_ms = "queued", now
        if run.held:
            run.held, run.queued_ms = "", now
        return run.status, nothing
