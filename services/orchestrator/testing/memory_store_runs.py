"""What one thread's hash tag allows in one step, in memory: the same steps as lua/thread.lua, run.lua and outbox.lua."""

from collections.abc import Sequence
from dataclasses import replace

import orjson

from services.orchestrator.records import (
    UNSCHEDULED,
    Accepted,
    Claim,
    Draft,
    Event,
    Fenced,
    Heard,
    Inspected,
    Park,
    Reservation,
    RunSpec,
    Schedule,
    Terminal,
    Written,
)  # fmt: skip
from services.orchestrator.segments import no_longer_kept
from services.orchestrator.testing.memory_store_busy import BusySteps
from services.orchestrator.testing.memory_store_state import StoredRun


class ThreadSteps(BusySteps):
    """Steps on the thread of `ref`. Nothing in here waits: each call happens as a whole, as a Lua function does."""

    def open(self, user: str, metadata: bytes) -> bool:
        """Makes the thread unless it is there; False where it is another user's."""
        if self._thread.user is None:
            self._thread.user, self._thread.created_ms, self._thread.metadata = user, self._clock.now_ms, metadata
        return self._thread.user == user

    def accept(
        self, user: str, spec: RunSpec, track: str, reservation: Reservation, trace_id: str, events: tuple, owner: str, lease_ms: int
    ) -> Accepted:
        """As thread_accept; `owner` is '' where nobody is to have it yet."""
        thread, run_id, now = self._thread, self._ref.run_id, self._clock.now_ms
        if thread.user not in (None, user):
            return Accepted("foreign")
        known = thread.runs.get(run_id)
        if known is not None:
            return Accepted("existing", known.record(run_id), Written(0, 0, now, ""), [])
        if now > reservation.not_after_ms:
            return Accepted("late")
        if spec.answers and (refused := self.not_asked(spec)):
            return Accepted(refused)
        thread.answered_by = run_id if spec.answers else thread.answered_by
        self.open(user, b"{}")
        cancelled = thread.tombstones.pop(run_id, 0) > now or reservation.cancelled
        owned = bool(owner) and not reservation.held and not cancelled and not thread.pending
        first, last, _ = self.append(0, trace_id, [Draft("run_queued", events[0])])
        run = thread.runs[run_id] = StoredRun(
            orjson.dumps(spec.as_dict()), track, spec.append_only, "running" if owned else "queued", epoch=int(owned), attempt=int(owned),
            owner=owner if owned else "", lease_until=now + lease_ms if owned else 0, created_ms=now, queued_ms=now,
            started_ms=now if owned else 0, first_seq=first, cancel=cancelled, schedule=spec.schedule.encode(),
            held="1" if reservation.held else "", active_from=now if owned else 0, schema_version=spec.schema,
            carry=thread.carry if owned and thread.carry_open else b"{}",
        )  # fmt: skip
        if not run.held:
            thread.pending.append(run_id)
        if owned:
            _, last, _ = self.append(1, trace_id, [Draft("run_started", b"{}")])
        elif cancelled:
            last, _ = self.terminate(run, trace_id, Terminal("cancelled", events[1], "run_cancelled", events[1]))
        return Accepted("new", run.record(run_id), Written(first, last, now, ""), list(thread.outbox))

    def not_asked(self, spec: RunSpec) -> str:
        """As not_asked of lua/thread.lua."""
        thread = self._thread
        if not thread.carry_open or thread.carry_seq != spec.answers:
            return "unasked"
        other = thread.runs.get(thread.answered_by)
        return "answered" if other is not None and not other.ended else ""

    def claim(self, owner: str, lease_ms: int, crash_budget: int, suspect: bool = True) -> Claim:
        """As run_claim."""
        run, run_id, now = self._thread.runs.get(self._ref.run_id), self._ref.run_id, self._clock.now_ms
        if run is None:
            return Claim("gone")
        if run.ended:
            return Claim("ended")
        if run.status == "waiting":
            return Claim("parked")
        if run.held:
            return Claim("waiting")
        lost = run.status == "running"
        if lost and run.lease_until > now:
            return Claim("owned")
        if self._head != run_id:
            return Claim("waiting")
        if run.crashes + lost >= crash_budget * (2 if run.cancel else 1):
            return self._give_up(run)
        if 0 < run.crashes + lost == crash_budget - 1 and not suspect and not run.cancel:
            return Claim("suspect")
        lost_ms = max(0, run.lease_until - lease_ms - run.active_from) if lost else 0
        first, last = 0, 0
        rested = run.status == "queued" and 0 < run.rested == run.attempt
        run.rested = 0 if rested else run.rested
        run.attempt += not rested
        if run.attempt == 1 and not rested:
            first, last, _ = self.append(1, "", [Draft("run_started", b"{}")])
            run.started_ms, run.carry = now, self._thread.carry if self._thread.carry_open else b"{}"
        elif run.prov_from and not run.append_only and not run.cancel and not run.stopping:
            void = Draft("attempt_superseded", orjson.dumps({"from_seq": run.prov_from}))
            first, last, _ = self.append(run.attempt, "", [void])
            run.prov_from = 0
        run.status, run.owner, run.lease_until, run.number = "running", owner, now + lease_ms, 0
        run.epoch += 1
        run.crashes += lost
        run.losses += lost
        run.lost_ms += lost_ms
        run.active_from = now
        return Claim("claimed", run.record(run_id), list(run.messages), list(self._thread.outbox), Written(first, last, now, ""))

    def _give_up(self, run: StoredRun) -> Claim:
        run.crashes += run.status == "running"
        run.losses += run.status == "running"
        usage = orjson.loads(run.state or b"{}").get("usage") or {}
        message = f"The run was given up after its worker was lost {run.crashes} times in a row."
        result = orjson.dumps({"error": {"reason": "WORKER_LOST", "message": message, "retryable": True}, "usage": usage})
        terminal = Terminal("failed", result, "run_failed", result)
        if run.cancel:
            result = orjson.dumps({"output_text": "", "usage": usage, "given_up": True})
            terminal = Terminal("cancelled", result, "run_cancelled", result)
            if run.prov_from:
                self.append(run.attempt, "", [Draft("attempt_superseded", orjson.dumps({"from_seq": run.prov_from}))])
        run.epoch += 1
        last, following = self.terminate(run, "", terminal)
        return Claim("failed", None, [], [], Written(last, last, self._clock.now_ms, following))

    def write(
        self, epoch: int, number: int, trace_id: str, drafts: Sequence[Draft], mode: str, state: bytes, messages: Sequence[bytes],
        terminal: Terminal | None, park: Park | None = None,
    ) -> Written:  # fmt: skip
        """As run_write."""
        run = self.fence(epoch)
        if run.number == number and run.reply is not None:
            return replace(run.reply, cancel=run.cancel)
        if run.status != "running":
            raise Fenced(f"FENCED the run is {run.status}")
        run.messages.extend(messages)
        first, last, provisional, following = 0, 0, 0, ""
        if drafts:
            first, last, provisional = self.append(run.attempt, trace_id, drafts)
        if mode == "c":
            run.steers = run.steers[sum(draft.type == "steer_applied" for draft in drafts) :]
        if mode in ("c", "s", "p"):
            run.prov_from, run.stopping = 0, False
            run.crashes = run.crashes if mode == "s" else 0
            run.active_from = self._clock.now_ms if mode == "c" else run.active_from
        elif provisional and not run.prov_from and mode != "f":
            run.prov_from = provisional
        run.state = state or run.state
        if mode == "r":
            run.status, run.owner, run.lease_until, run.queued_ms = "queued", "", 0, self._clock.now_ms
        elif mode == "p" and park is not None:
            following = self.park(run, park)
        elif mode == "f" and terminal is not None:
            if terminal.outbox and run.cut != "rollback":
                self._thread.outbox[self._ref.run_id] = terminal.outbox
            last, following = self.terminate(run, trace_id, terminal)
            if terminal.carry and run.cut != "rollback":
                self._thread.carry, self._thread.carry_seq, self._thread.carry_open = terminal.carry, last, True
            first = first or last
        run.number, run.reply = number, Written(first, last, self._clock.now_ms, following, run.cancel)
        return run.reply

    def beat(self, epoch: int, lease_ms: int) -> Heard:
        """As run_beat. Raises Fenced."""
        run = self.fence(epoch)
        if run.status != "running":
            raise Fenced(f"FENCED the run is {run.status}")
        run.lease_until = self._clock.now_ms + lease_ms
        return Heard(run.cancel, run.inbox)

    def inspect(self) -> Inspected:
        """As run_inspect."""
        run, now = self._thread.runs.get(self._ref.run_id), self._clock.now_ms
        if run is None:
            return Inspected("none", 0, "", 0, 0, 0, self._head, 0)
        if run.ended:
            state = "outbox" if self._ref.run_id in self._thread.outbox else "ended"
        elif run.status == "waiting":
            left = max(0, run.parked_until - now) if run.parked_until else -1
            left = 0 if run.cancel else left
            return Inspected("parked", left, run.track, now - run.queued_ms, run.schema_version, run.created_ms, self._head, run.epoch)
        elif run.held:
            state = "held"
        elif run.status == "running" and run.lease_until > now:
            state = "owned"
        else:
            state = "free" if self._head == self._ref.run_id else "waiting"
        alone_since = run.lease_until if run.status == "running" else run.queued_ms
        left, alone_ms = run.lease_until - now, now - alone_since
        return Inspected(state, left, run.track, alone_ms, run.schema_version, run.created_ms, self._head, run.epoch)

    def schedule(self) -> tuple[str, int, Schedule]:
        """As run_schedule."""
        run = self._thread.runs.get(self._ref.run_id)
        return (run.track, 0 if run.attempt else run.created_ms, Schedule.decode(run.schedule)) if run is not None else ("", 0, UNSCHEDULED)

    def enter(self) -> str:
        """As run_enter."""
        run = self._thread.runs.get(self._ref.run_id)
        if run is None or run.ended:
            return "none" if run is None else "ended"
        if run.held:
            if run.held == "1":
                self._thread.pending.append(self._ref.run_id)
            run.held, run.queued_ms = "", self._clock.now_ms
        if run.status in ("running", "waiting"):
            return run.status
        return "free" if self._head == self._ref.run_id else "waiting"

    def outbox_leave(self, entry: bytes) -> bool:
        """As run_outbox_leave."""
        run, outbox = self.found, self._thread.outbox
        if run is None or not run.ended or run.cut == "rollback":
            return False
        if not run.left:
            outbox[self._ref.run_id] = entry
        run.left = True
        return self._ref.run_id in outbox

    def outbox_claim(self, lease_ms: int) -> tuple[bytes, int] | None:
        """As run_outbox_claim."""
        run, entry = self._thread.runs.get(self._ref.run_id), self._thread.outbox.get(self._ref.run_id)
        if run is None or entry is None or run.outbox_until > self._clock.now_ms:
            return None
        run.outbox_until = self._clock.now_ms + lease_ms
        run.outbox_attempts += 1
        return entry, run.outbox_attempts

    def outbox_done(self, delivered: bool) -> None:
        """As run_outbox_done."""
        run = self._thread.runs.get(self._ref.run_id)
        if run is not None:
            run.outbox_until = 0
        if delivered:
            self._thread.outbox.pop(self._ref.run_id, None)

    def read(self, after_seq: int, most: int, from_run: bool) -> tuple[int, int, int, list[Event]]:
        """As thread_read. Raises Gone."""
        run, log, oldest = self._thread.runs.get(self._ref.run_id), self._thread.log, self._thread.oldest_seq
        first, terminal = (run.first_seq, run.terminal_seq) if run is not None else (0, 0)
        if from_run and not first:
            return len(log), 0, 0, []
        after = max(after_seq, first - 1) if from_run else after_seq
        if after + 1 < oldest:
            raise no_longer_kept(oldest)
        return len(log), first, terminal, log[after : after + most] if after < len(log) else []

    def expire(self, age_ms: int) -> bool:
        """As thread_expire."""
        runs, in_order = self._thread.runs, sorted(self._thread.runs.values(), key=lambda run: run.first_seq)
        run = runs.get(self._ref.run_id)
        if run is None or run is not in_order[0] or not run.ended or self._ref.run_id in self._thread.outbox:
            return False
        if run.ended_ms + age_ms > self._clock.now_ms:
            return False
        self._thread.oldest_seq = in_order[1].first_seq if len(in_order) > 1 else len(self._thread.log) + 1
        del runs[self._ref.run_id]
        return True
