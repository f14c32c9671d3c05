"""Records as LiteLLM's clients know them: dollars as floats, times as ISO 8601, never a secret."""

import datetime
from collections.abc import Sequence
from typing import Any

from services.common.accounts import KeyRecord, LimitSet, TeamRecord, TenantRecord, UserRecord
from services.llm_gateway.model_port.admin_book import NOTHING_SPENT, Spent

NANO_PER_USD = 10**9
MICRO_PER_USD = 10**6


def usd(nanousd: int) -> float:
    """Nano-USD as dollars."""
    return nanousd / NANO_PER_USD


def moment(unix_s: float) -> str | None:
    """A time, None for none."""
    return datetime.datetime.fromtimestamp(unix_s, datetime.UTC).isoformat() if unix_s else None


def spent_view(spent: Spent) -> dict[str, Any]:
    """`spend` is what counts against max_budget now."""
    return {"spend": usd(spent.now), "total_spend": usd(spent.total), "budget_reset_at": moment(spent.resets_at)}


def limits_view(limits: LimitSet) -> dict[str, Any]:
    """The fields that a request sets them with."""
    models = limits.model_limits
    return {
        "max_budget": _dollars(limits.max_budget_microusd),
        "soft_budget": _dollars(limits.soft_budget_microusd),
        "budget_duration": limits.budget_period or None,
        "tpm_limit": limits.tokens_per_minute,
        "rpm_limit": limits.requests_per_minute,
        "tpd_limit": limits.tokens_per_day,
        "max_parallel_requests": limits.max_parallel,
        "models": list(limits.models),
        "model_max_budget": {
            model: {"budget_limit": _dollars(inner.max_budget_microusd), "time_period": inner.budget_period or None}
            for model, inner in models.items()
            if inner.max_budget_microusd is not None
        },
        "model_rpm_limit": {model: i.requests_per_minute for model, i in models.items() if i.requests_per_minute is not None},
        "model_tpm_limit": {model: i.tokens_per_minute for model, i in models.items() if i.tokens_per_minute is not None},
    }


def key_view(record: KeyRecord, spent: Spent = NOTHING_SPENT) -> dict[str, Any]:
    """A key. `token` is its id, which every request takes in place of the secret."""
    return {
        "token": record.key_id,
        "token_id": record.key_id,
        "key_name": f"bh_...{record.hint}",
        "key_alias": record.name or None,
        **spent_view(spent),
        "expires": moment(record.expires_at),
        **limits_view(record.limits),
        "user_id": record.user,
        "team_id": record.team or None,
        "metadata": record.metadata,
        "blocked": record.blocked,
        "created_at": moment(record.created_at),
        "updated_at": moment(record.updated_at),
        "tenant": record.tenant,
        "tier": record.tier,
        "scopes": list(record.scopes),
    }


def team_view(record: TeamRecord, spent: Spent = NOTHING_SPENT) -> dict[str, Any]:
    """A team."""
    return {
        "team_id": record.team,
        "team_alias": record.name or None,
        "members_with_roles": [{"user_id": user, "role": role} for user, role in record.members.items()],
        "members": list(record.members),
        "admins": [user for user, role in record.members.items() if role == "admin"],
        **spent_view(spent),
        **limits_view(record.limits),
        "metadata": record.metadata,
        "blocked": record.blocked,
        "created_at": moment(record.created_at),
        "updated_at": moment(record.updated_at),
        "tenant": record.tenant,
    }


def user_view(record: UserRecord, spent: Spent = NOTHING_SPENT, teams: Sequence[str] = ()) -> dict[str, Any]:
    """A user."""
    return {
        "user_id": record.user,
        "user_alias": record.name or None,
        "user_email": record.email or None,
        "teams": list(teams),
        **spent_view(spent),
        **limits_view(record.limits),
        "metadata": record.metadata,
        "blocked": record.blocked,
        "created_at": moment(record.created_at),
        "updated_at": moment(record.updated_at),
        "tenant": record.tenant,
    }


def tenant_view(record: TenantRecord, spent: Spent = NOTHING_SPENT) -> dict[str, Any]:
    """A tenant."""
    return {
        "tenant": record.tenant,
        "tenant_alias": record.name or None,
        **spent_view(spent),
        **limits_view(record.limits),
        "metadata": record.metadata,
        "blocked": record.blocked,
        "created_at": moment(record.created_at),
        "updated_at": moment(record.updated_at),
    }


def _dollars(microusd: int | None) -> float | None:
    return None if microusd is None else microusd / MICRO_PER_USD
