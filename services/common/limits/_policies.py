"""policies.yaml: what each tier may do, in named sets that the environment's preset picks from."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Limit = Annotated[int, Field(ge=1)]


class TierPolicy(BaseModel):
    """Limits of one tier; a limit that is absent does not hold."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    requests_per_minute: Limit | None = None
    requests_per_day: Limit | None = None
    tool_calls_per_minute: Limit | None = None
    concurrent_runs: Limit | None = None
    task_seconds: Annotated[float, Field(gt=0)] | None = None
    max_steps: Limit | None = None
    max_tool_calls: Limit | None = None


class Policies(BaseModel):
    """The file: `sets.<name>.<tier>.<limit>`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    sets: Mapping[str, Mapping[str, TierPolicy]]

    def tier(self, policy_set: str, tier: str) -> TierPolicy:
        """Limits of `tier`; an unknown tier gets those of `free`, never none by accident."""
        tiers = self.sets.get(policy_set, {})
        return tiers.get(tier) or tiers.get("free") or TierPolicy()


def parse_policies(data: object) -> Policies:
    """Validates the content of policies.yaml. Raises pydantic.ValidationError."""
    return Policies.model_validate(data)
