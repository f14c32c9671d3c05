"""What follows when a run was parked: its slot is another's meanwhile, and the sweeper need not look after it often."""

from services.orchestrator.records import RunRef
from services.orchestrator.run_store import RunStore

# A command or a cancel wakes a parked run at once; the sweeper looks after it for a process that was lost in between.
LOOK_S = 30.0
AWAKE_LOOK_S = 1.0


async def rest(store: RunStore, ref: RunRef, epoch: int, left_s: float) -> None:
    """Gives the slot back that the run had when it was parked in `epoch`, and has the sweeper look in `left_s` or before.

    Whoever wakes it meanwhile keeps what it got: a slot, and a sweeper that looks in time should the next owner be lost. Raises
    Overloaded; the sweeper does what this does not.
    """
    await store.release_slot(ref, epoch)
    await store.note(ref, min(left_s, LOOK_S))
    if (await store.inspect(ref))[0] != "parked":
        await store.note(ref, AWAKE_LOOK_S, sooner=True)
