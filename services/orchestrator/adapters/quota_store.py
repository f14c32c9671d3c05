"""What a tenant uses, from Valkey."""

from services.orchestrator.adapters.store_base import StoreBase
from services.orchestrator.adapters.store_keys import waiting_keys
from services.orchestrator.quota import Occupancy


class ValkeyQuota(StoreBase):
    """QuotaStore on Valkey."""

    async def occupancy(self, tenant: str) -> Occupancy:
        """As QuotaStore.occupancy."""
        slots, queue, _, delayed, *_ = waiting_keys(tenant)
        pipeline = self._client.pipeline(transaction=False)
        for key in (slots, queue, delayed):
            pipeline.zcard(key)
        return Occupancy(*map(int, await self._ask(pipeline.execute())))
