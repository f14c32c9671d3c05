"""Tenant, user and key records: the one package that reads and writes them.

accounts = Accounts(valkey)
issued = await accounts.create_key(tenant="acme", user="ana", tier="pro", scopes=("runs:write",))
principal = await accounts.resolve(issued.secret)        # cached for at most 10 s; revocation is pushed
"""

from services.common.accounts._accounts import ACCOUNT_CACHE, Accounts, IssuedKey, KeyRecord
from services.common.accounts._limits import NO_LIMITS, LimitSet, Period, PrincipalLimits

__all__ = ["ACCOUNT_CACHE", "NO_LIMITS", "Accounts", "IssuedKey", "KeyRecord", "LimitSet", "Period", "PrincipalLimits"]
