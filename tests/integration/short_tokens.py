"""Internal tokens that end within seconds, and the moment at which one that was minted now has."""

from datetime import timedelta
from typing import Any

from services.common import testing
from services.common.errors import Unauthenticated
from services.common.identity import Minter, _tokens
from services.common.identity._tokens import CLOCK_SKEW_S


def shorten(monkeypatch: Any, identities: testing.Identities) -> None:
    """From now on tokens live for seconds, and are sent for the first of them only: what a loaded machine holds up ends later.

    Those that `identities` kept for tests before this one live longer than a verifier now allows: it forgets them."""
    monkeypatch.setattr(_tokens, "LIFETIME", timedelta(seconds=CLOCK_SKEW_S + 6))
    monkeypatch.setattr(_tokens, "RENEW_BEFORE", timedelta(seconds=5))
    monkeypatch.setattr(identities, "_minter", Minter.from_file(identities.signing_key("test"), "test"))


async def ended(identities: testing.Identities) -> None:
    """Returns when a token that the gateway minted by now has ended."""
    token = Minter.from_file(identities.signing_key("gateway"), "gateway").mint(testing.principal_of())

    def over() -> bool:
        try:
            identities.verifier.verify(token)
        except Unauthenticated as error:
            return error.reason == "TOKEN_EXPIRED"
        return False

    await testing.eventually_async(over, "a token as old as that of the request has ended")
