"""Waiting in memory: a tenant's slots and the queue for them, as lua/tenant.lua, and the fair queue of a track, as lua/work.lua."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from services.orchestrator.records import Reservation, RunRef, Schedule

# What one step of priority outweighs: any date in milliseconds.
PRIORITY_STEP = 1e14
Standing = tuple[bool, int, int]
NOWHERE: Standing = (False, 0, 0)


@dataclass(slots=True)
class Lookup:
    """Where a run of a tenant is; without a thread it is the tombstone of a cancel, kept until `expires_ms`."""

    user: str
    thread_id: str = ""
    at_ms: int = 0
    cancel: bool = False
    expires_ms: float = float("inf")


@dataclass(slots=True)
class IdempotencyKey:
    """What the first request with a key asked for, and what came of it."""

    print_: str
    run_id: str
    thread_id: str
    cancel: bool
    expires_ms: int


@dataclass(slots=True)
class StoredTenant:
    """All under one tenant's hash tag. Slots map a run to when it was given one, lists a member to its position,
    and the queue "<thread>/<run>" to its rank."""

    lookups: dict[str, Lookup] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    keys: dict[tuple[str, str], IdempotencyKey] = field(default_factory=dict)
    lists: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    counter: int = 0
    queue: dict[str, float] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    delayed: set[str] = field(default_factory=set)
    epochs: dict[str, int] = field(default_factory=dict)
    released_ms: int | None = None
    average_ms: float | None = None

    @property
    def pace_ms(self) -> int:
        """Expected time from one place in the queue to the next; 0 where it is not known."""
        return int(self.average_ms or 0)

    def lookup(self, run_id: str, now_ms: int) -> Lookup | None:
        """Where a run is, unless it is a tombstone that is too old."""
        found = self.lookups.get(run_id)
        return found if found is not None and found.expires_ms > now_ms else None

    def _in_order(self) -> list[str]:
        return sorted(self.queue, key=lambda member: (self.queue[member], member))

    def standing(self, member: str) -> Standing:
        """(held, place in the queue from 1, expected ms from one place to the next)."""
        if member in self.delayed:
            return True, 0, 0
        return (True, self._in_order().index(member) + 1, self.pace_ms) if member in self.queue else NOWHERE

    def line_up(self, member: str, schedule: Schedule, limit: int, now_ms: int) -> None:
        """Puts a run into the queue; once there it keeps its rank."""
        self.queue.setdefault(member, now_ms - schedule.priority * PRIORITY_STEP)
        self.limits[member] = limit

    def promote(self, now_ms: int) -> list[str]:
        """Gives slots to those who wait, in their order, as long as there is room; answers who got one."""
        got: list[str] = []
        for member in self._in_order():
            limit = self.limits.get(member, 0)
            if 0 < limit <= len(self.slots):
                break
            del self.queue[member]
            self.limits.pop(member, None)
            self.slots[member.partition("/")[2]] = now_ms
            got.append(member)
        return got

    def place_for(self, slots: int, queued: int, delayed: int, schedule: Schedule, now_ms: int) -> str:
        """Where a new run goes: slot, queue or delayed; or why it goes nowhere: quota, full, too_many_delayed."""
        if schedule.start_ms > now_ms:
            return "too_many_delayed" if len(self.delayed) >= delayed else "delayed"
        room = len(self.slots) < slots
        if not slots or (room and not (queued and self.queue)):
            return "slot"
        if not queued:
            return "quota"
        return "full" if len(self.queue) >= queued else "queue"

    def existing(self, user: str, key: str, print_: str, slots: int, not_after_ms: int, now_ms: int) -> Reservation | None:
        """What a key that was used before leads to."""
        seen = self.keys.get((user, key))
        if seen is None or seen.expires_ms <= now_ms:
            return None
        if seen.print_ != print_:
            return Reservation("mismatch", "", "", False, not_after_ms)
        # What led to a run that was refused is never taken away here, but it would be later.
        lookup = self.lookups[seen.run_id]
        lookup.at_ms, cancelled = now_ms, lookup.cancel or seen.cancel
        standing = self.standing(f"{seen.thread_id}/{seen.run_id}")
        if not standing[0] and slots and seen.run_id not in self.slots:
            standing = True, 0, 0
        return Reservation("existing", seen.run_id, seen.thread_id, cancelled, not_after_ms, *standing)

    def release(self, ref: RunRef, now_ms: int, parked_in: int = 0) -> list[str]:
        """Gives back the slot of a run, or its place, unless it was given since it was parked in that epoch; answers who got one by it."""
        if parked_in and self.epochs.get(ref.run_id, 0) >= parked_in:
            return []
        self.epochs.pop(ref.run_id, None)
        member, had_slot = f"{ref.thread_id}/{ref.run_id}", self.slots.pop(ref.run_id, None) is not None
        if not had_slot:
            self.delayed.discard(member)
            self.queue.pop(member, None)
            self.limits.pop(member, None)
        if not self.queue:
            self.released_ms = self.average_ms = None
            return []
        if had_slot:
            if self.released_ms is not None:
                gap = float(now_ms - self.released_ms)
                self.average_ms = gap if self.average_ms is None else self.average_ms * 0.8 + gap * 0.2
            self.released_ms = now_ms
        return self.promote(now_ms)

    def admit(self, ref: RunRef, schedule: Schedule, now_ms: int, parked_in: int = 0) -> tuple[bool, list[str]]:
        """A held run whose time has come: whether it has a slot, and who else got one."""
        member = f"{ref.thread_id}/{ref.run_id}"
        self.delayed.discard(member)
        if parked_in > self.epochs.get(ref.run_id, 0):
            self.epochs[ref.run_id] = parked_in
        if ref.run_id in self.slots or not schedule.slots:
            self.slots[ref.run_id] = now_ms
            return True, []
        self.line_up(member, schedule, schedule.slots, now_ms)
        promoted = self.promote(now_ms)
        return member in promoted, [other for other in promoted if other != member]


def refs_of(tenant: str, members: Sequence[str]) -> list[RunRef]:
    """Members of a tenant's queue as references."""
    return [RunRef(tenant, *member.split("/")) for member in members]


def rank_of(schedule: Schedule, since_ms: float) -> str:
    """The order within a tenant, as text that sorts like it."""
    return f"{10 - schedule.priority:02d}/{int(since_ms):013d}"


def _order_of(reference: str, rank: str) -> str:
    tenant, _, rest = reference.partition("/")
    return f"{tenant}/{rank}/{rest}"


@dataclass(slots=True)
class FairQueue:
    """Wake-ups of one track. `ready` maps a reference to its tenant's turn in virtual time, `order` sorts those of each tenant."""

    ready: dict[str, float] = field(default_factory=dict)
    order: set[str] = field(default_factory=set)
    turns: dict[str, float] = field(default_factory=dict)
    now: float = 0.0
    last: float = 0.0

    def wake(self, reference: str, rank: str, weight: int) -> None:
        """Offers a run."""
        tenant = reference.partition("/")[0]
        if not self.ready:
            self.now = self.last
            self.order.clear()
            self.turns.clear()
        else:
            self.now = max(self.now, min(self.ready.values()) - 1)
        self.order.add(_order_of(reference, rank))
        if reference not in self.ready:
            turn = max(self.now, self.turns.get(tenant, 0.0)) + 1 / weight
            self.turns = {name: at for name, at in self.turns.items() if at > self.now}
            self.turns[tenant] = self.ready[reference] = turn
            self.last = max(self.last, turn)

    def pop(self) -> tuple[str, float] | None:
        """The lowest turn, without regard to the order of its tenant."""
        if not self.ready:
            return None
        reference = min(self.ready, key=lambda each: (self.ready[each], each))
        return reference, self.ready.pop(reference)

    def following(self) -> str | None:
        """The reference whose turn it is."""
        popped = self.pop()
        if popped is None:
            self.order.clear()
            return None
        reference, turn = popped
        self.now = max(self.now, turn)
        tenant = reference.partition("/")[0]
        for member in sorted(self._of(tenant)):
            self.order.discard(member)
            best = f"{tenant}/{member.split('/', 3)[3]}"
            if best == reference:
                break
            if best in self.ready:
                self.ready[reference] = self.ready.pop(best)
                return best
        return reference

    def _of(self, tenant: str) -> list[str]:
        return [member for member in self.order if member.startswith(f"{tenant}/")]

    def place(self, reference: str, rank: str) -> tuple[int, int]:
        """(wake-ups of its tenant, those that go before it or -1 where it is not among them)."""
        of_tenant, own = self._of(reference.partition("/")[0]), _order_of(reference, rank)
        return len(of_tenant), sum(member < own for member in of_tenant) if reference in self.ready else -1
