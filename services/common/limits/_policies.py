"""policies.yaml: what each tier may do, in named sets that the environment's preset picks from."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from services.common.config import ConfigProblem

Limit = Annotated[int, Field(ge=1)]
# A decimal number in the file stays what it says: 0.1 is no binary fraction. A billion dollars fits nano-USD of 64 bits.
Usd = Annotated[Decimal, Field(ge=0, le=10**9, allow_inf_nan=False)]
MICRO_PER_USD = 10**6


class TierPolicy(BaseModel):
    """Limits of one tier; a limit that is absent does not hold.

    Runs beyond `concurrent_runs` wait where `queued_runs` lets them, else they are refused; at most `delayed_runs` of a tenant have
    a start that lies ahead. `queue_weight` is the tenant's share of the workers while others wait, too.
    Calls of `approve_tools` always need the approval of a person, and from `approve_above_usd` of its run on so does every call that
    is neither read-only nor idempotent.
    Tokens, money and `model_parallel` (model calls in flight) are for each user, and kept by the LLM gateway. Runs and
    their events are deleted `retention_days` after their end, never where it is absent; a thread as a whole when it had no run for
    `thread_ttl_days`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    requests_per_minute: Limit | None = None
    requests_per_day: Limit | None = None
    tool_calls_per_minute: Limit | None = None
    concurrent_runs: Limit | None = None
    queued_runs: Annotated[int, Field(ge=0)] = 0
    delayed_runs: Annotated[int, Field(ge=0)] = 100
    queue_weight: Annotated[int, Field(ge=1, le=1000)] = 1
    task_seconds: Annotated[float, Field(gt=0)] | None = None
    max_steps: Limit | None = None
    max_tool_calls: Limit | None = None
    max_run_tokens: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = None
    money_per_day_usd: Usd | None = None
    model_parallel: Limit | None = None
    approve_tools: tuple[str, ...] = ()
    approve_above_usd: Usd | None = None
    # At least 3: idempotency keys are kept for 48 hours and must not outlive the run that they name, or it would be run again.
    retention_days: Annotated[int, Field(ge=3, le=36_500)] | None = None
    thread_ttl_days: Annotated[int, Field(ge=1, le=3_650)] | None = None

    @property
    def money_per_day_microusd(self) -> int | None:
        """The money of a day in micro-USD; what is finer is cut off."""
        return None if self.money_per_day_usd is None else int(self.money_per_day_usd * MICRO_PER_USD)

    @property
    def retention_s(self) -> float | None:
        """How long runs are kept, in seconds."""
        return None if self.retention_days is None else self.retention_days * 86_400.0


class Policies(BaseModel):
    """The file: `sets.<name>.<tier>.<limit>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sets: Mapping[str, Mapping[str, TierPolicy]]

    def tier(self, policy_set: str, tier: str) -> TierPolicy:
        """Limits of `tier`; an unknown tier gets those of `free`, never none by accident."""
        tiers = self.sets[policy_set]
        return tiers.get(tier, tiers["free"])


def parse_policies(data: object, *, policy_set: str = "") -> Policies:
    """Validates the content of policies.yaml; `policy_set` must be one of its sets. Raises pydantic.ValidationError or ConfigProblem.

    Each set needs the tier `free`, which an unknown tier falls to: a limit must not vanish with a misspelt name.
    """
    policies = Policies.model_validate(data)
    problems = [f"policies.yaml: sets.{name} lacks the tier free" for name, tiers in policies.sets.items() if "free" not in tiers]
    if policy_set and policy_set not in policies.sets:
        problems.append(f"policies.yaml: there is no set {policy_set} (BULKHEAD_POLICY_SET)")
    if problems:
        raise ConfigProblem(problems)
    return policies
