"""Idempotency keys, kept in the state store for at least 24 hours, scoped by tenant and method.

claim = await store.begin(tenant, "AddMemories", key, fingerprint)
if claim.answer is not None: return claim.answer      # same key and body: the first answer again
...work...
await store.finish(claim, answer)                     # or abandon(claim) when nothing was done
"""

from services.common.idempotency._keys import MOST_KEY_CHARS, check_key, key_of, key_violations
from services.common.idempotency._store import KEPT, Claim, IdempotencyStore, fingerprint

__all__ = ["KEPT", "MOST_KEY_CHARS", "Claim", "IdempotencyStore", "check_key", "fingerprint", "key_of", "key_violations"]
