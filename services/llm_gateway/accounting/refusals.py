"""The domain errors of a reserve that was refused."""

from datetime import UTC, datetime

from services.common.errors import BudgetExceeded, QuotaExceeded
from services.llm_gateway.accounting.plans import NANO_PER_MICRO, Holder

# Limits by their number on the Lua side.
QUOTAS = ("", "tokens_per_day", "requests_per_minute", "tokens_per_minute", "concurrency")


def budget_exceeded(holder: Holder, window: int, spent: int, reserved: int, limit: int, ends_s: int) -> BudgetExceeded:
    """Money in nano-USD; `ends_s` in Unix seconds, 0 for a budget without a period."""
    period = holder.period_of(window)
    metadata = {
        "scope": holder.scope,
        "scope_id": holder.id[:128],
        "period": period,
        "limit_microusd": str(limit // NANO_PER_MICRO),
        "spent_microusd": str(-(-spent // NANO_PER_MICRO)),
        "reserved_microusd": str(-(-reserved // NANO_PER_MICRO)),
    }
    when = ""
    if ends_s:
        metadata["resets_at"] = datetime.fromtimestamp(ends_s, UTC).isoformat().replace("+00:00", "Z")
        when = f"; it begins anew at {metadata['resets_at']}"
    return BudgetExceeded(f"the budget of the {holder.scope} is used up, or what is left does not cover this call{when}", metadata=metadata)


def quota_exceeded(holder: Holder, quota: int, limit: int, remaining: int, wait_ms: int) -> QuotaExceeded:
    """`wait_ms` is below 0 where the call is larger than the limit itself."""
    policy = QUOTAS[quota]
    metadata = {"policy": policy, "scope": holder.scope, "scope_id": holder.id[:128], "limit": str(limit), "remaining": str(remaining)}
    if wait_ms < 0:
        return QuotaExceeded(f"the call may need more than the whole limit {policy} of {limit}", metadata=metadata)
    return QuotaExceeded(
        f"the limit {policy} of {limit} of the {holder.scope} is used up", retry_after_s=max(wait_ms, 1) / 1000, metadata=metadata
    )
