"""Tokens of outside issuers (OIDC): who their holders are here.

issuers = ConfigFile(settings.config_dir / "oidc.yaml", parse_issuers, absent=Issuers)   # which issuers, for whom
tokens = Tokens(issuers)
principal = await tokens.principal(bearer)      # Unauthenticated for what is no token of theirs, Overloaded while keys cannot be had
"""

from services.gateway.oidc._config import Issuers, parse_issuers
from services.gateway.oidc._tokens import Tokens, is_token

__all__ = ["Issuers", "Tokens", "is_token", "parse_issuers"]
