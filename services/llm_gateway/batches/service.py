"""Batches as use cases: begin, look, cancel, erase. Who executes them is the runner."""

import asyncio
import time
import uuid
from collections.abc import Mapping
from typing import Any

import orjson

from services.common.errors import Conflict, InvalidInput, NotFound, Overloaded, Unauthenticated
from services.common.idempotency import check_key
from services.common.identity import Principal
from services.llm_gateway.batches.files import Files, derived_name
from services.llm_gateway.batches.ports import BatchRecords, KeyCheck, Page
from services.llm_gateway.batches.records import INPUT, BatchRecord, BatchSpec
from services.llm_gateway.batches.requests import Windows, wanted

MOST_LISTED = 100
# An erasure waits this long for the holders of batches that run to end them.
ERASED_WITHIN_S = 15.0


class Batches:
    """Batches of tenants. Everything raises Overloaded without a store."""

    def __init__(self, records: BatchRecords, files: Files, check_key: KeyCheck, windows: Windows = Windows()) -> None:
        self._records = records
        self._files = files
        self._check_key = check_key
        self._windows = windows

    async def create(
        self, principal: Principal, body: Mapping[str, Any], *, idempotency_key: str = "", own_key: bool = True
    ) -> BatchRecord:
        """Begins a batch over an uploaded file. The same key with the same body answers the first one.

        With `own_key` the principal came with an API key, which must stay valid; without it, one of an internal token need not be known
        here, and is checked only if it is. Raises InvalidInput, NotFound for a file that is not the tenant's, IdempotencyMismatch.
        """
        asked = wanted(body, self._windows)
        check_key(idempotency_key)
        file = await self._files.get(principal.tenant, asked.input_file_id)
        if file.purpose != INPUT:
            raise InvalidInput.field("input_file_id", f"must name a file of the purpose {INPUT}")
        spec = BatchSpec(
            asked.endpoint, asked.input_file_id, asked.completion_window, asked.window_s, principal,
            own_key or await self._known(principal), asked.metadata, asked.output_kept_s,
        )  # fmt: skip
        if idempotency_key:
            batch_id = derived_name("batch_", principal.tenant, principal.user, idempotency_key)
        else:
            batch_id = f"batch_{uuid.uuid4().hex}"
        told = {"endpoint": asked.endpoint, "input_file_id": asked.input_file_id, "window_s": asked.window_s, "metadata": asked.metadata}
        if asked.output_kept_s:
            told["output_kept_s"] = asked.output_kept_s
        fingerprint = derived_name("", orjson.dumps(told, option=orjson.OPT_SORT_KEYS).decode())
        return await self._records.create(principal.tenant, batch_id, spec, fingerprint)

    async def get(self, tenant: str, batch_id: str) -> BatchRecord:
        """A batch of the tenant. Raises NotFound."""
        record = await self._records.get(tenant, batch_id)
        if record is None or record.erased:
            raise _missing()
        return record

    async def list(self, tenant: str, *, after: str = "", limit: int = 20) -> Page:
        """Batches of the tenant, newest first. Raises InvalidInput."""
        if not 1 <= limit <= MOST_LISTED:
            raise InvalidInput.field("limit", f"must be from 1 to {MOST_LISTED}")
        return await self._records.list(tenant, after=after, limit=limit)

    async def cancel(self, tenant: str, batch_id: str) -> BatchRecord:
        """Ends a batch: lines in flight are finished, no other is begun. Doing it again is harmless.

        Raises NotFound, or Conflict for a batch that has ended.
        """
        found = await self._records.cancel(tenant, batch_id)
        if found is None:
            raise _missing()
        cancelling, record = found
        if not cancelling and record.status != "cancelled":
            raise Conflict(f"a batch that is {record.status} cannot be cancelled", reason="BATCH_ENDED")
        return record

    async def erase(self, tenant: str, user: str) -> tuple[str, int]:
        """Removes a user's batches and files; answers (batch_files, how many files).

        A batch that runs is ended by its holder at once. Raises Overloaded where that has not happened in time: the erasure must be
        repeated then.
        """
        live = [record.id for record in await self._records.of_user(tenant, user) if await self._records.erase(tenant, record.id)]
        removed = await self._files.erase(tenant, user)
        until = time.monotonic() + ERASED_WITHIN_S
        while live:
            live = [batch_id for batch_id in live if await self._records.get(tenant, batch_id) is not None]
            if not live:
                # What their holders had just finished when they were told.
                removed += await self._files.erase(tenant, user)
            elif time.monotonic() > until:
                raise Overloaded("batches of the user are still being ended", reason="ERASURE_UNFINISHED", retry_after_s=5.0)
            else:
                await asyncio.sleep(0.1)
        return "batch_files", removed

    async def _known(self, principal: Principal) -> bool:
        if not principal.key_id:
            return False
        try:
            await self._check_key(principal)
        except Unauthenticated:
            return False
        return True


def _missing() -> NotFound:
    return NotFound("no such batch", reason="BATCH_NOT_FOUND", metadata={"param": "batch_id"})
