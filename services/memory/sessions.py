"""Sessions: what was said lately in a thread. They belong to the tenant and the user who spoke first."""

from collections.abc import Sequence

from services.common.errors import NotFound
from services.common.idempotency import fingerprint
from services.common.identity import Principal
from services.memory.ports import Sessions, Turn
from services.memory.window import fit


class SessionWindows:
    """The use cases of SessionService but Recall."""

    def __init__(self, store: Sessions, window_tokens: int) -> None:
        self._store = store
        self._window_tokens = window_tokens

    async def append(self, principal: Principal, session_id: str, turns: Sequence[Turn], key: str) -> int:
        """Appends turns, each run once; answers the turns in the window. Raises NotFound for another user's session."""
        parts = [p for t in turns for p in (t.run_id, t.user_text, t.assistant_text, t.tool_calls_json)]
        print_ = fingerprint(session_id, *parts)
        return await self._store.append(principal.tenant, principal.user, session_id, turns, key, print_)

    async def get(self, principal: Principal, session_id: str) -> list[Turn]:
        """The window within its token bound, oldest first. Raises NotFound."""
        turns = await self._store.window(principal.tenant, principal.user, session_id)
        if turns is None:
            raise NotFound("no such session")
        return fit(turns, self._window_tokens)

    async def replace(self, principal: Principal, session_id: str, turns: Sequence[Turn], forgotten: Sequence[str], as_of: int = 0) -> int:
        """Makes `turns` the window, as Sessions.replace; answers the turns in it.

        Raises NotFound for another user's session, and for a deleted one."""
        return await self._store.replace(principal.tenant, principal.user, session_id, turns, forgotten, as_of)

    async def delete(self, principal: Principal, session_id: str) -> int:
        """Deletes the session, where it is there; answers how many turns. Raises NotFound for another user's."""
        count = await self._store.delete(principal.tenant, principal.user, session_id)
        if count is None:
            raise NotFound("no such session")
        return count

    async def reset(self, principal: Principal, session_id: str, ended_before_ms: int = 0) -> int:
        """Forgets the window, or what of it ended before that time; answers how many turns. Raises NotFound."""
        count = await self._store.reset(principal.tenant, principal.user, session_id, ended_before_ms)
        if count is None:
            raise NotFound("no such session")
        return count
