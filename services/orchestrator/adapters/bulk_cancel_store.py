"""How far operations on many runs are, in Valkey."""

from datetime import timedelta

from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import tenant_prefix

KEPT = timedelta(hours=24)


class ValkeyProgress(StoreBase):
    """ProgressStore on Valkey."""

    async def progress(self, tenant: str, name: str) -> bytes | None:
        """As ProgressStore.progress."""
        return await self._ask(self._client.get(_key(tenant, name)))

    async def keep_progress(self, tenant: str, name: str, progress: bytes) -> None:
        """As ProgressStore.keep_progress."""
        await self._ask(self._client.set(_key(tenant, name), progress, ex=KEPT))


def _key(tenant: str, name: str) -> str:
    return f"{tenant_prefix(tenant)}:cancel-runs:{name}"
