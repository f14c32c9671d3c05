"""A mutating call under its idempotency key: the same key and body give the first answer again."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from services.common.idempotency import IdempotencyStore, fingerprint
from services.common.identity import Principal

# A caller whose call died with its process waits this long before it may try again under the same key. The methods here are
# safe to run twice at once with the same body (ids are made of the key, content is compared), so it may be short.
LEASE_S = 5.0
AnswerT = TypeVar("AnswerT", bound=Message)


class Once:
    """Wraps calls with `IdempotencyStore`; keys of different users never meet."""

    def __init__(self, store: IdempotencyStore) -> None:
        self._store = store

    async def erase(self, tenant: str, user: str) -> int:
        """Deletes the stored answers of a user; answers how many. Raises Overloaded."""
        return await self._store.erase(tenant, user)

    async def __call__(
        self,
        principal: Principal,
        method: str,
        request: Message,
        answer_type: type[AnswerT],
        work: Callable[[], Awaitable[AnswerT]],
    ) -> AnswerT:
        """Runs `work` unless `request.idempotency_key` has an answer. Raises IdempotencyMismatch, Conflict or what `work` raises."""
        scope = f"{method}:{fingerprint(principal.user)[:16]}"
        print_ = fingerprint(request.SerializeToString(deterministic=True))
        # Where memory is full the work is refused, or it removes something and is not.
        claim = await self._store.begin(principal.tenant, scope, request.idempotency_key, print_, lease_s=LEASE_S, when_full=True)
        if claim.answer is not None:
            return answer_type.FromString(claim.answer)
        try:
            answer = await work()
        except BaseException:
            await self._store.abandon(claim)
            raise
        await self._store.finish(claim, answer.SerializeToString(), owner=principal.user)
        return answer
