"""`bulkhead keys`: API keys, through the one package that reads and writes them. It needs the state store itself."""

import asyncio
import datetime
import json
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, TypeVar

from services.cli.failure import CommandFailure, Unreachable, UsageProblem
from services.cli.rendering import note, print_answer, print_json, print_json_lines, print_table
from services.cli.up.ports import LOOPBACK
from services.cli.up.workspace import Workspace
from services.common.accounts import NO_LIMITS, Accounts, KeyRecord, LimitSet, Period
from services.common.errors import BulkheadError, InvalidInput
from services.common.valkey import UNAVAILABLE, connect

T = TypeVar("T")
# What a product does for its user, and nothing of the tenant as a whole: not `admin`, nobody's erasure, no webhook, which hears of the
# runs of all users, and no document, which all of them find.
DEFAULT_SCOPES = (
    "threads:read", "threads:write", "runs:read", "runs:write", "approvals:read", "approvals:write", "schedules:read", "schedules:write",
    "memories:read", "memories:write", "blobs:read", "blobs:write", "documents:read", "tools:execute", "models:invoke",
)  # fmt: skip
TITLES = ("KEY", "NAME", "USER", "TIER", "SCOPES", "CREATED", "EXPIRES", "BUDGET", "LIMITS", "MODELS")
MICRO_PER_USD = 10**6
MOST_USD = 10**9


def create(
    data_dir: Path, *, tenant: str, user: str, tier: str, scopes: Sequence[str], name: str, days: int, limits: LimitSet = NO_LIMITS,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Makes a key and prints it, the only time that it is shown. Raises CommandFailure."""
    lifetime = datetime.timedelta(days=days) if days else None
    issued = _with_accounts(
        data_dir,
        lambda accounts: accounts.create_key(
            tenant=tenant, user=user, tier=tier, scopes=scopes, name=name, lifetime=lifetime, limits=limits
        ),
    )
    if as_json:
        print_json({**_about(issued.record), "secret": issued.secret})
        return
    note(f"{issued.record.key_id}: tier {tier}, scopes {' '.join(scopes)}; the key is not shown again")
    print(issued.secret)


def limits(
    *, max_budget: str | None, budget_period: str, rpm: int | None, tpm: int | None, parallel: int | None, models: Sequence[str]
) -> LimitSet:
    """Limits as the options name them; `max_budget` is in US dollars. Raises UsageProblem."""
    microusd = None
    if max_budget is not None:
        try:
            usd = Decimal(max_budget)
        except InvalidOperation:
            usd = Decimal("NaN")
        if not usd.is_finite() or not 0 <= usd <= MOST_USD or usd * MICRO_PER_USD % 1:
            raise UsageProblem(f"--max-budget must be US dollars from 0 to {MOST_USD}, to the millionth")
        microusd = int(usd * MICRO_PER_USD)
    if budget_period and max_budget is None:
        raise UsageProblem("--budget-period needs --max-budget")
    try:
        period = Period.parse(budget_period) if budget_period else None
    except ValueError as error:
        raise UsageProblem(f"--budget-period {error}") from None
    return LimitSet(
        max_budget_microusd=microusd,
        budget_period=f"{period.count}{period.unit}" if period else "",
        requests_per_minute=rpm,
        tokens_per_minute=tpm,
        max_parallel=parallel,
        models=tuple(models),
    )


def show(data_dir: Path, tenant: str, *, as_json: bool = False) -> None:
    """Lists the keys of a tenant, without their secrets. Raises CommandFailure."""
    records = _with_accounts(data_dir, lambda accounts: accounts.list_keys(tenant))
    if as_json:
        print_json_lines(map(_about, records))
    else:
        print_table(TITLES, map(_row, records), "no keys yet")


def revoke(data_dir: Path, tenant: str, key_id: str, *, as_json: bool = False) -> None:
    """Ends a key at once. Raises CommandFailure."""
    _with_accounts(data_dir, lambda accounts: accounts.revoke(tenant, key_id))
    print_answer({"key_id": key_id, "revoked": True}, f"{key_id} is revoked", as_json)


def _about(record: KeyRecord) -> dict[str, Any]:
    """A key as JSON, without its secret."""
    held = record.limits
    return {
        "key_id": record.key_id,
        "name": record.name,
        "tenant": record.tenant,
        "user": record.user,
        "tier": record.tier,
        "scopes": list(record.scopes),
        "created_at": _rfc3339(record.created_at),
        "expires_at": _rfc3339(record.expires_at) if record.expires_at else None,
        "blocked": record.blocked,
        "max_budget_microusd": held.max_budget_microusd,
        "budget_period": held.budget_period or None,
        "requests_per_minute": held.requests_per_minute,
        "tokens_per_minute": held.tokens_per_minute,
        "max_parallel": held.max_parallel,
        "models": list(held.models),
    }


def _row(record: KeyRecord) -> Sequence[str]:
    """A key as TITLES."""
    expires = "blocked" if record.blocked else _day(record.expires_at) if record.expires_at else "never"
    about = (record.key_id, record.name, record.user, record.tier, " ".join(record.scopes), _day(record.created_at), expires)
    return *about, *_limits_shown(record.limits)


def _rfc3339(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def _day(moment: float) -> str:
    return datetime.datetime.fromtimestamp(moment, datetime.UTC).date().isoformat()


def _limits_shown(held: LimitSet) -> tuple[str, str, str]:
    budget = "" if held.max_budget_microusd is None else f"${Decimal(held.max_budget_microusd) / MICRO_PER_USD:f}"
    if budget and held.budget_period:
        budget += f" each {held.budget_period}"
    counts = ((held.requests_per_minute, "rpm"), (held.tokens_per_minute, "tpm"), (held.max_parallel, "parallel"))
    return budget, ", ".join(f"{count} {unit}" for count, unit in counts if count is not None), " ".join(held.models)


def _with_accounts(data_dir: Path, work: Callable[[Accounts], Awaitable[T]]) -> T:
    url, replicas = _state_url(data_dir), _state_replicas()

    async def run() -> T:
        client = connect(url)
        try:
            return await work(Accounts(client, replicas))
        except InvalidInput as error:
            raise UsageProblem(error.message) from None
        except BulkheadError as error:
            raise CommandFailure(error.message) from None
        except UNAVAILABLE:
            raise Unreachable("the state store does not answer: start it with `make run`, or set BULKHEAD_STATE_URL") from None
        finally:
            await client.aclose()

    return asyncio.run(run())


def _state_replicas() -> int:
    """How many replicas must have a change of a key on disk, as for the services."""
    named = os.environ.get("BULKHEAD_STATE_REPLICAS") or "0"
    if not named.isdecimal():
        raise UsageProblem("BULKHEAD_STATE_REPLICAS must be a number")
    return int(named)


def _state_url(data_dir: Path) -> str:
    if url := os.environ.get("BULKHEAD_STATE_URL"):
        return url
    with suppress(OSError, ValueError, KeyError):
        port = json.loads(Workspace(data_dir).processes.read_text())["valkey_state-0"]["store"]
        return f"redis://{LOOPBACK}:{port}/0"
    raise Unreachable("no state store is known: start one with `make run`, or set BULKHEAD_STATE_URL")
