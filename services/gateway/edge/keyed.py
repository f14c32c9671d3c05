"""Idempotency keys of routes behind which no service keeps them; what the other routes do under a key is kept where it is done.

A record says of a key that it was used, by whom and with what, and never what was answered: answers hold what is sealed elsewhere.
"""

import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress

import orjson
from starlette.responses import Response

from services.common.errors import Overloaded
from services.common.idempotency import IdempotencyStore, fingerprint
from services.common.rpc import context as call_context
from services.gateway.edge.exchange import Exchange

# Whoever's gateway died between the work and the record of it waits this long before the key can be used again. What these routes do is
# the same when it is done twice at once, so it may be short.
LEASE_S = 5.0
NO_CONTENT = 204
REPLAYED = "idempotent-replayed"


class Keys:
    """Claims of keys in the state store; keys of different users never meet."""

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store

    async def once(self, about: Exchange, key: str, route: str, print_: str, answer: Callable[[], Awaitable[Response]]) -> Response:
        """What `answer` answers, under `key`. When that was done before, `about.replayed` is set: the endpoint then answers with what
        stands and changes nothing; what had no content has none again.

        Raises IdempotencyMismatch, Conflict while another request with the key is at work, Overloaded, and what `answer` raises.
        """
        who = call_context.principal()
        # Where the store's memory is full, whoever does the work refuses what is new; cancels, answers and removals go on.
        claim = await self._store.begin(who.tenant, f"{route}:{fingerprint(who.user)[:16]}", key, print_, lease_s=LEASE_S, when_full=True)
        if claim.answer is not None:
            about.replayed = True
            about.answer(REPLAYED, "true")
            return Response(status_code=NO_CONTENT) if claim.answer == b"%d" % NO_CONTENT else await answer()
        try:
            response = await answer()
        except BaseException:
            # Also of a call whose end nobody knows: to ask for it again is harmless here.
            with suppress(Overloaded):
                await self._store.abandon(claim)
            raise
        await self._store.finish(claim, b"%d" % response.status_code)
        return response


def named_by(prefix: str, key: str) -> str:
    """An id that is the same for the same key of the same user, and nobody else's."""
    who = call_context.principal()
    digest = hashlib.sha256("\0".join((who.tenant, who.user, key)).encode()).hexdigest()
    return f"{prefix}_{digest[:32]}"


def request_print(path: str, content: bytes, parsed: object) -> str:
    """A digest of what is asked for: the resource and the body, however its JSON is spaced and ordered."""
    return fingerprint(path, content if parsed is None else orjson.dumps(parsed, option=orjson.OPT_SORT_KEYS))
