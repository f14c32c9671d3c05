"""Who calls the model port, and what an administrator may do: keys of the accounts, and the master key.

port_keys = PortKeys(accounts, master_key=settings.master_key, default_tenant="default")
principal = await port_keys.resolve(secret)     # in place of Accounts.resolve
"""

import hashlib
import hmac

from services.common.accounts import Accounts, KeyRecord
from services.common.errors import PermissionDenied
from services.common.identity import Principal

ADMIN = "admin"
# No key of an account has such an id: theirs begin with key_.
MASTER_KEY_ID = "master"
MASTER_USER = "default_user_id"


class PortKeys:
    """Resolves keys of accounts and the master key, which may do everything for every tenant. An empty master key is none."""

    def __init__(
        self,
        accounts: Accounts,
        *,
        master_key: str = "",
        default_tenant: str = "default",
        default_tier: str = "free",
        master_tier: str = "enterprise",
    ) -> None:
        self.accounts = accounts
        self.default_tenant = default_tenant
        self.default_tier = default_tier
        self.change_master(master_key)
        self._principal = Principal(default_tenant, MASTER_USER, MASTER_KEY_ID, "", ("*",), master_tier)

    def change_master(self, master_key: str) -> None:
        """Another master key holds from here on; the one before is none any more."""
        self._master = hashlib.sha256(master_key.encode()).digest() if master_key else None

    async def resolve(self, secret: str) -> Principal:
        """The principal of a key. Raises Unauthenticated, or Overloaded without a store; the master key needs none."""
        # Digests are compared, so that neither the time nor the length of a guess tells anything.
        if self._master is not None and hmac.compare_digest(hashlib.sha256(secret.encode()).digest(), self._master):
            return self._principal
        return await self.accounts.resolve(secret)

    @staticmethod
    def is_master(principal: Principal) -> bool:
        """Whether it is the master key that calls."""
        return principal.key_id == MASTER_KEY_ID

    def tenant(self, principal: Principal, asked: str | None) -> str:
        """The tenant that an administrator acts on: their own, or any with the master key. Raises PermissionDenied."""
        if self.is_master(principal):
            return asked or self.default_tenant
        if asked and asked != principal.tenant:
            raise PermissionDenied("only the master key acts on other tenants", reason="MASTER_KEY_REQUIRED")
        return principal.tenant

    def require_master(self, principal: Principal) -> None:
        """Raises PermissionDenied to everybody else."""
        if not self.is_master(principal):
            raise PermissionDenied("only the master key may do this", reason="MASTER_KEY_REQUIRED")

    def tier(self, principal: Principal, asked: str | None) -> str:
        """The tier of a new key. A tier lifts limits, so an administrator gives none but their own. Raises PermissionDenied."""
        if self.is_master(principal):
            return asked or self.default_tier
        if asked and asked != principal.tier:
            raise PermissionDenied("only the master key gives another tier than its own", reason="TIER_NOT_HELD")
        return principal.tier

    def require_reach(self, principal: Principal, record: KeyRecord) -> None:
        """A key that may more than the caller's is not the caller's to rotate, unblock or change. Raises PermissionDenied."""
        if self.is_master(principal):
            return
        principal.require(*record.scopes)
        if record.tier != principal.tier:
            raise PermissionDenied("only the master key changes keys of another tier", reason="TIER_NOT_HELD")
