"""The ports of hooks: their store, and what makes runs."""

from typing import Protocol

from services.common.identity import Principal
from services.orchestrator.accepting import RunRequest
from services.orchestrator.hooks.records import Hook
from services.orchestrator.records import RunRecord, RunRef


class HookStore(Protocol):
    """Raises Overloaded (STORE_UNAVAILABLE) while the store is away."""

    async def now_ms(self) -> int:
        """The store's clock, Unix ms."""
        ...

    async def add(self, tenant: str, hook: Hook, most: int) -> str:
        """Keeps a new hook durably. Answers new, existing (nothing changes) or full (the tenant has `most`).

        Raises Conflict (SUBJECT_BEING_ERASED) for a hook of a user whose erasure is under way."""
        ...

    async def find(self, hook_id: str) -> Hook | None:
        """A hook by its id alone, whose ever it is."""
        ...

    async def get(self, tenant: str, hook_id: str) -> Hook | None:
        """A hook of a tenant."""
        ...

    async def of_tenant(self, tenant: str) -> list[Hook]:
        """All hooks of a tenant, oldest first."""
        ...

    async def replace(self, tenant: str, before: Hook, after: Hook) -> bool:
        """Changes a hook durably, unless it is not `before` any more."""
        ...

    async def remove(self, tenant: str, hook_id: str) -> bool:
        """Removes a hook durably; False when there is none."""
        ...

    async def remove_of(self, tenant: str, user: str) -> int:
        """Removes all hooks of a user, and those that nobody can read any more; answers how many there were."""
        ...


class Runs(Protocol):
    """As Accepting."""

    async def create_run(self, principal: Principal, request: RunRequest) -> tuple[RunRecord, bool]:
        """As Accepting.create_run."""
        ...


class RunRecords(Protocol):
    """As RunStore."""

    async def run(self, ref: RunRef) -> RunRecord | None:
        """As RunStore.run."""
        ...
