"""What is left to do for a run that was given up: the store wrote its end without an owner, and cannot read its state."""

from services.common.identity import Principal
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.turn import forgetting
from services.orchestrator.turn.state import Services
from services.orchestrator.turn.supervisor import at_work_of

WORKER_LOST = "WORKER_LOST"


async def wind_up(store: RunStore, services: Services, ref: RunRef) -> bool:
    """Asks for the end of the children that nobody waits for any more, and leaves the outbox what memory is to be told; whoever does it
    again changes nothing. True where the outbox has an entry to deliver. Raises Overloaded."""
    record = await store.run(ref)
    if record is None or not _given_up(record):
        return False
    for run_id in at_work_of(record.state):
        if services.children is not None:
            await services.children.cancel(run_id, Principal.from_dict(dict(record.spec.principal)))
    entry = forgetting.entry(record.spec, forgetting.left_by(record.state))
    return bool(entry) and await store.outbox_leave(ref, entry)


def _given_up(record: RunRecord) -> bool:
    if record.status == "cancelled":
        return bool(record.result.get("given_up"))
    return record.status == "failed" and (record.result.get("error") or {}).get("reason") == WORKER_LOST
