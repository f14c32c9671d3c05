"""Personal data at rest: sealed with a key of its subject, which is wrapped by a key of the tenant, which a mounted root key wraps.

envelope = Envelope(valkey, RootKeys.from_file(settings.envelope_keys_file))
stored = await envelope.seal("acme", "ana", "event", b'{"text": "…"}')
plain = await envelope.open("acme", "event", stored)        # plain text of before is answered as it is
await envelope.erase("acme", "ana")                          # within MAX_AGE_S nobody opens it any more: `open` answers None
"""

from services.common.envelope._envelope import KEY_TABLES, MAX_AGE_S, Envelope, is_sealed
from services.common.envelope._roots import RootKeys
from services.common.envelope._start import opened_envelope

__all__ = ["KEY_TABLES", "MAX_AGE_S", "Envelope", "RootKeys", "is_sealed", "opened_envelope"]
