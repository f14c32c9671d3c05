"""Hooks in Valkey. Functions of a library of their own; one call is one atomic step under one hash tag."""

from dataclasses import replace

import redis.asyncio as redis

from services.orchestrator.adapters.decode import text
from services.orchestrator.adapters.sealing import Sealing
from services.orchestrator.adapters.store_due import DueStore
from services.orchestrator.adapters.store_keys import erasing_key, tenant_prefix
from services.orchestrator.erasure_records import being_erased
from services.orchestrator.hooks.records import Hook
from services.orchestrator.records import RunRef

HOOK = "hook"
# Looked for where a hook's id leads nowhere: no tenant has this name, and asking for it costs what asking for another does.
_NO_TENANT = ""


class ValkeyHooks(DueStore):
    """HookStore on Valkey. Records are sealed with the key of their hook's maker: where that is destroyed, so is the hook."""

    def __init__(self, client: redis.Redis, instance: str, replicas: int = 0, sealing: Sealing | None = None) -> None:
        """As StoreBase; `sealing` as of Store."""
        super().__init__(client, instance, replicas, ("hook",))
        self.sealing = sealing or Sealing()

    async def add(self, tenant: str, hook: Hook, most: int) -> str:
        """As HookStore.add."""
        user = hook.owner.user
        # First: a hook that nothing leads to would never answer.
        await self._durable("hook_point_v1", [_pointer_key(hook.hook_id)], [tenant])
        keys = [_hooks_key(tenant), erasing_key(tenant)]
        verdict = text(await self._durable("hook_add_v1", keys, [hook.hook_id, await self._packed(tenant, hook), user, most]))
        if verdict in ("erased", "full"):
            await self._durable("hook_unpoint_v1", [_pointer_key(hook.hook_id)], [])
        if verdict == "erased":
            raise being_erased()
        return verdict

    async def find(self, hook_id: str) -> Hook | None:
        """As HookStore.find."""
        tenant = await self._ask(self._client.hget(_pointer_key(hook_id), "tenant"))
        return await self.get(text(tenant) if tenant else _NO_TENANT, hook_id)

    async def get(self, tenant: str, hook_id: str) -> Hook | None:
        """As HookStore.get."""
        raw = await self._ask(self._client.hget(_hooks_key(tenant), hook_id))
        return await self._hook(tenant, raw) if raw else None

    async def of_tenant(self, tenant: str) -> list[Hook]:
        """As HookStore.of_tenant."""
        read = [await self._hook(tenant, raw) for raw in await self._ask(self._client.hvals(_hooks_key(tenant)))]
        return sorted((hook for hook in read if hook is not None), key=lambda hook: (hook.created_ms, hook.hook_id))

    async def replace(self, tenant: str, before: Hook, after: Hook) -> bool:
        """As HookStore.replace."""
        args = [before.hook_id, before.raw, await self._packed(tenant, after)]
        return bool(await self._durable("hook_replace_v1", [_hooks_key(tenant)], args))

    async def remove(self, tenant: str, hook_id: str) -> bool:
        """As HookStore.remove."""
        if not await self._ask(self._client.hexists(_hooks_key(tenant), hook_id)):
            return False
        # First what leads to it: whoever is lost in between leaves a hook that is listed still, and is removed by whoever comes next.
        await self._durable("hook_unpoint_v1", [_pointer_key(hook_id)], [])
        return bool(await self._durable("hook_remove_v1", [_hooks_key(tenant)], [hook_id]))

    async def remove_of(self, tenant: str, user: str) -> int:
        """As HookStore.remove_of."""
        count = 0
        for hook_id, raw in (await self._ask(self._client.hgetall(_hooks_key(tenant)))).items():
            hook = await self._hook(tenant, raw)
            if hook is None or hook.owner.user == user:
                count += await self.remove(tenant, text(hook_id))
        return count

    async def _packed(self, tenant: str, hook: Hook) -> bytes:
        (packed,) = await self.sealing.seal(RunRef(tenant, "-", "-"), [(HOOK, hook.encode())], hook.owner.user)
        return packed

    async def _hook(self, tenant: str, stored: bytes) -> Hook | None:
        """A hook as it was stored; None where nobody can read it any more."""
        opened = await self.sealing.open(tenant, HOOK, stored)
        return None if opened is None else replace(Hook.decode(opened), raw=stored)


def _hooks_key(tenant: str) -> str:
    return f"{tenant_prefix(tenant)}:hooks-in"


def _pointer_key(hook_id: str) -> str:
    return f"hook:{{{hook_id}}}"
