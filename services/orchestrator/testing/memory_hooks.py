"""Hooks in memory: what the contract of HookStore says, and nothing else."""

from dataclasses import replace

from services.orchestrator.erasure_records import being_erased
from services.orchestrator.hooks.records import Hook


class MemoryHooks:
    """HookStore. `at_ms` is its clock; users of `erasing`, (tenant, user), make no hooks."""

    def __init__(self, at_ms: int = 1_800_000_000_000) -> None:
        self.at_ms = at_ms
        self.erasing: set[tuple[str, str]] = set()
        self.kept: dict[str, tuple[str, bytes]] = {}

    async def now_ms(self) -> int:
        """As HookStore.now_ms."""
        return self.at_ms

    async def add(self, tenant: str, hook: Hook, most: int) -> str:
        """As HookStore.add."""
        if hook.hook_id in self.kept:
            return "existing"
        if (tenant, hook.owner.user) in self.erasing:
            raise being_erased()
        if len(await self.of_tenant(tenant)) >= most:
            return "full"
        self.kept[hook.hook_id] = (tenant, hook.encode())
        return "new"

    async def find(self, hook_id: str) -> Hook | None:
        """As HookStore.find."""
        _, raw = self.kept.get(hook_id, ("", b""))
        return replace(Hook.decode(raw), raw=raw) if raw else None

    async def get(self, tenant: str, hook_id: str) -> Hook | None:
        """As HookStore.get."""
        return await self.find(hook_id) if self.kept.get(hook_id, ("",))[0] == tenant else None

    async def of_tenant(self, tenant: str) -> list[Hook]:
        """As HookStore.of_tenant."""
        mine = [hook for hook_id in self.kept if (hook := await self.get(tenant, hook_id)) is not None]
        return sorted(mine, key=lambda hook: (hook.created_ms, hook.hook_id))

    async def replace(self, tenant: str, before: Hook, after: Hook) -> bool:
        """As HookStore.replace."""
        if self.kept.get(before.hook_id) != (tenant, before.raw):
            return False
        self.kept[before.hook_id] = (tenant, after.encode())
        return True

    async def remove(self, tenant: str, hook_id: str) -> bool:
        """As HookStore.remove."""
        return await self.get(tenant, hook_id) is not None and self.kept.pop(hook_id, None) is not None

    async def remove_of(self, tenant: str, user: str) -> int:
        """As HookStore.remove_of."""
        theirs = [hook.hook_id for hook in await self.of_tenant(tenant) if hook.owner.user == user]
        return sum([await self.remove(tenant, hook_id) for hook_id in theirs])
