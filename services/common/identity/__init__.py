"""Who is calling: the principal, and the internal tokens that carry it between services.

verifier = Verifier.from_file(path)          # JWKS of public keys, re-read when the file changes
minter = Minter.from_file(path, issuer=...)  # the private key of one issuer
principal = verifier.verify(minter.mint(principal))
"""

from services.common.identity._principal import Principal
from services.common.identity._tokens import Minter, Verifier, generate_keys

__all__ = ["Minter", "Principal", "Verifier", "generate_keys"]
