"""Tenant, team, user and key records: the one package that reads and writes them.

accounts = Accounts(valkey)
issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=("runs:write",))
principal = await accounts.resolve(issued.secret)        # cached for at most 10 s; revocation is pushed
limits = await accounts.limits(principal)                # of its key, user, team and tenant; cached and pushed alike
await accounts.keys.update(issued.record.key_id, "acme", lambda key: replace(key, blocked=True))
rotated = await accounts.keys.rotate(issued.record.key_id, "acme", grace=timedelta(hours=1))
await accounts.teams.create(TeamRecord("acme", "blue", limits=LimitSet(max_budget_microusd=5_000_000, budget_period="1mo")), "blue")
"""

from services.common.accounts._accounts import ACCOUNT_CACHE, Accounts
from services.common.accounts._asked import MOST_KEYS, Asked, DoneBefore
from services.common.accounts._holders import Holders
from services.common.accounts._keys import ID_PREFIX, PREFIX, Keys, digest_of
from services.common.accounts._limits import NO_LIMITS, LimitSet, Period, PrincipalLimits
from services.common.accounts._records import IssuedKey, KeyRecord, TeamRecord, TenantRecord, UserRecord

__all__ = [
    "ACCOUNT_CACHE",
    "ID_PREFIX",
    "MOST_KEYS",
    "NO_LIMITS",
    "PREFIX",
    "Accounts",
    "Asked",
    "DoneBefore",
    "Holders",
    "IssuedKey",
    "KeyRecord",
    "Keys",
    "LimitSet",
    "Period",
    "PrincipalLimits",
    "TeamRecord",
    "TenantRecord",
    "UserRecord",
    "digest_of",
]
