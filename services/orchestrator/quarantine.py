"""Runs that lost so many owners that the next loss ends them: a process works on one of them at a time.

Whatever takes its process with it, an input that kills or memory that runs out, ends in this way without ending the others that were
lost with it: each of them is next to nobody else that could be to blame.
"""

from services.orchestrator.records import RunRef

# Those above are found by the sweeper alone.
MOST_WAITING = 1000
# A process whose place becomes free takes who was turned away there; the sweeper offers them to all others.
LOOK_S = 2.0


class Quarantine:
    """The one place of a process, and who was turned away while it was taken."""

    def __init__(self) -> None:
        self._inside: RunRef | None = None
        self._waiting: dict[RunRef, None] = {}

    def enter(self, ref: RunRef) -> bool:
        """Takes the place; False where it is taken, and `following` names this run later."""
        if self._inside is None:
            self._inside = ref
            self._waiting.pop(ref, None)
            return True
        if len(self._waiting) < MOST_WAITING:
            self._waiting[ref] = None
        return False

    def leave(self, ref: RunRef) -> bool:
        """Frees the place where it is this run's; answers whether it was."""
        if self._inside != ref:
            return False
        self._inside = None
        return True

    def following(self) -> RunRef | None:
        """The run that was turned away first, which is named once; None while the place is taken."""
        if self._inside is not None or not self._waiting:
            return None
        ref = next(iter(self._waiting))
        del self._waiting[ref]
        return ref
