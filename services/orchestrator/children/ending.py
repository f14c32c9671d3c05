"""Telling a run what became of a child of its."""

from typing import Any

import orjson
import structlog

from services.orchestrator.children.naming import child_thread_id
from services.orchestrator.commanding import Commanding
from services.orchestrator.records import RunRecord, RunRef
from services.orchestrator.run_store import RunStore
from services.orchestrator.turn import lost

log = structlog.get_logger("bulkhead.children")


class ChildEnds:
    """Part of what follows each run's end; whoever does it again after a loss changes nothing."""

    def __init__(self, store: RunStore, commanding: Commanding) -> None:
        self._store, self._commanding = store, commanding

    async def tell(self, ref: RunRef) -> None:
        """Sends the result of an ended run to the run that made it, where one did. Raises Overloaded."""
        if ref.thread_id != child_thread_id(ref.run_id):
            # Known without asking the store: all but children pass here as well.
            return
        record = await self._store.run(ref)
        if record is None or not record.ended or not record.spec.child_of:
            return
        parent = RunRef.decode(record.spec.child_of["ref"])
        posted = await self._store.post(parent, "child", orjson.dumps(result_of(record)), key=f"child/{ref.run_id}")
        if posted.verdict in ("posted", "again"):
            await self._commanding.told(parent, posted)
        else:
            # The parent did not wait for it.
            log.info("child_result_unwanted", run_id=ref.run_id, parent=parent.run_id, verdict=posted.verdict)


def result_of(record: RunRecord) -> dict[str, Any]:
    """What a run is told of the end of a child of its."""
    result = record.result
    found: dict[str, Any] = {"run_id": record.run_id, "thread_id": record.spec.thread_id, "status": record.status}
    found["output_text"] = result.get("output_text", "")
    found["usage"] = result.get("usage") or {}
    found["active_ms"] = record.state.get("active_ms", 0)
    if lost.uncertain(record):
        found["uncertain"] = True
    found["started_ms"], found["ended_ms"] = record.started_ms, record.ended_ms
    return found | {name: result[name] for name in ("error", "finish_reason", "citations") if name in result}
