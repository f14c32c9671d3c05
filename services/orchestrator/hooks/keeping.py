"""What callers may do with hooks and their secrets."""

import secrets
import uuid
from dataclasses import dataclass, replace
from datetime import timedelta

import orjson

from services.common.errors import Conflict, FieldViolation, InvalidInput, NotFound, PermissionDenied, QuotaExceeded
from services.common.idempotency import Claim, IdempotencyStore, fingerprint, key_of, key_violations
from services.common.identity import Principal
from services.orchestrator.accepting import Accepting, checked_id
from services.orchestrator.agents import AgentCatalog
from services.orchestrator.hooks.ports import HookStore
from services.orchestrator.hooks.records import Hook
from services.orchestrator.webhooks.rotation import DEFAULT_OVERLAP, Secret, ending, made_by, mark_of, overlap_violations
from services.orchestrator.webhooks.signing import key_of as secret_key
from services.orchestrator.webhooks.signing import new_secret

ADMIN = "admin"
MOST_HOOKS = 50
MOST_INSTRUCTIONS_BYTES = 8 * 1024
MOST_DESCRIPTION = 256
LEAST_SECRET_BYTES, MOST_SECRET_BYTES = 24, 64
# A message is held against each of them.
MOST_SECRETS = 4


@dataclass(frozen=True, slots=True)
class HookRequest:
    """What a caller asks for; an empty secret is made by the service."""

    agent: str
    thread_id: str = ""
    instructions: str = ""
    description: str = ""
    secret: str = ""
    idempotency_key: str = ""

    def fingerprint(self) -> str:
        """Digest of all but the idempotency key."""
        return fingerprint("CreateHook", orjson.dumps([self.agent, self.thread_id, self.instructions, self.description, self.secret]))

    def violations(self) -> list[FieldViolation]:
        """All that is wrong with it, its agent and thread aside."""
        found = key_violations(self.idempotency_key)
        if len(self.instructions.encode()) > MOST_INSTRUCTIONS_BYTES:
            found.append(FieldViolation("instructions", f"must be at most {MOST_INSTRUCTIONS_BYTES} bytes"))
        if len(self.description) > MOST_DESCRIPTION:
            found.append(FieldViolation("description", f"must be at most {MOST_DESCRIPTION} characters"))
        if self.secret and not _usable(self.secret):
            least, most = LEAST_SECRET_BYTES, MOST_SECRET_BYTES
            found.append(FieldViolation("secret", f"must be whsec_ and {least} to {most} bytes in base64"))
        return found


class Hooks:
    """The use cases. Hooks are the tenant's: each of its callers with the scope sees them, and may remove them. Whoever has a secret acts
    as the hook's maker, so a new one is made for the maker alone, or for an administrator."""

    def __init__(self, store: HookStore, keys: IdempotencyStore, accepting: Accepting, agents: AgentCatalog) -> None:
        self._store, self._keys, self._accepting, self._agents = store, keys, accepting, agents

    async def create(self, principal: Principal, request: HookRequest) -> tuple[Hook, str]:
        """Makes a hook; answers it and its secret.

        Raises InvalidInput, NotFound (agent, thread), QuotaExceeded, IdempotencyMismatch, Conflict (also HOOK_SECRET_REPLACED: the key
        was used before, and what it made is taken no more), Overloaded.
        """
        if violations := request.violations():
            raise InvalidInput("the request is not valid", violations=violations)
        tenant = principal.tenant
        claim = await self._begin(principal, "CreateHook", request.idempotency_key, request.fingerprint())
        if claim.answer is not None:
            hook = await self.get(principal, claim.answer.decode())
            return hook, _secret_by(hook, hook.by, await self._store.now_ms())
        by = mark_of(claim, request.fingerprint())
        try:
            known = await self._store.of_tenant(tenant)
            # A process that died after it had made the hook and before it could say so leaves it where this one finds it.
            hook = next((one for one in known if by and one.by == by), None)
            if hook is None:
                if len(known) >= MOST_HOOKS:
                    # Before its thread is made.
                    raise _too_many()
                hook = await self._make(principal, request, by)
        except (Conflict, InvalidInput, NotFound, QuotaExceeded):
            await self._keys.abandon(claim)
            raise
        await self._keys.finish(claim, hook.hook_id.encode())
        return hook, _secret_by(hook, by, await self._store.now_ms())

    async def _make(self, principal: Principal, request: HookRequest, by: str) -> Hook:
        agent = self._agents.agents.get(request.agent)
        if request.thread_id:
            # A thread of another user must be refused now and not at each message.
            await self._accepting.open_thread(principal, checked_id("thread_id", request.thread_id), {})
        hook = Hook(
            f"hk_{uuid.uuid4().hex}", agent.name, replace(principal, run_id="").as_dict(),
            (Secret(request.secret or new_secret(), by=by),), await self._store.now_ms(), request.thread_id, request.instructions,
            request.description, by, secrets.token_hex(16),
        )  # fmt: skip
        if await self._store.add(principal.tenant, hook, MOST_HOOKS) == "full":
            raise _too_many()
        return hook

    async def get(self, principal: Principal, hook_id: str) -> Hook:
        """One hook of the tenant. Raises NotFound, Overloaded."""
        hook = await self._store.get(principal.tenant, hook_id)
        if hook is None:
            raise _not_found()
        return hook

    async def of_tenant(self, principal: Principal) -> list[Hook]:
        """All hooks of the tenant, oldest first."""
        return await self._store.of_tenant(principal.tenant)

    async def delete(self, principal: Principal, hook_id: str, key: str) -> None:
        """Removes a hook. Raises NotFound, InvalidInput, IdempotencyMismatch, Conflict, Overloaded."""
        if violations := key_violations(key):
            raise InvalidInput("the request is not valid", violations=violations)
        claim = await self._begin(principal, "DeleteHook", key, fingerprint(hook_id), when_full=True)
        if claim.answer is not None:
            return
        if not await self._store.remove(principal.tenant, hook_id):
            await self._keys.abandon(claim)
            raise _not_found()
        await self._keys.finish(claim, b"1")

    async def rotate(self, principal: Principal, hook_id: str, overlap: timedelta | None, key: str) -> tuple[Hook, str]:
        """Makes a new secret, beside which the ones until now are taken for `overlap`; answers the hook and the secret.

        Raises NotFound, PermissionDenied (another user's hook), InvalidInput, IdempotencyMismatch, Conflict (also HOOK_SECRETS_FULL: too
        many are taken already; HOOK_SECRET_REPLACED as in `create`), Overloaded.
        """
        if violations := [*key_violations(key), *overlap_violations(overlap)]:
            raise InvalidInput("the request is not valid", violations=violations)
        lasts = DEFAULT_OVERLAP if overlap is None else overlap
        _check_maker(principal, await self.get(principal, hook_id))
        print_ = fingerprint(hook_id, str(lasts.total_seconds()))
        claim = await self._begin(principal, "RotateHookSecret", key, print_)
        by = mark_of(claim, print_)
        try:
            while True:
                before, now_ms = await self.get(principal, hook_id), await self._store.now_ms()
                if claim.answer is not None or (by and any(one.by == by for one in before.secrets)):
                    # It was made before, maybe by a process that died before it could say so.
                    after = before
                    break
                after = _rotated(before, lasts, by, now_ms)
                if await self._store.replace(principal.tenant, before, after):
                    break
            secret = _secret_by(after, by, now_ms)
        except (Conflict, NotFound):
            if claim.answer is None:
                await self._keys.abandon(claim)
            raise
        if claim.answer is None:
            await self._keys.finish(claim, b"1")
        return after, secret

    async def _begin(self, principal: Principal, method: str, key: str, print_: str, *, when_full: bool = False) -> Claim:
        return await self._keys.begin(principal.tenant, method, key_of(principal.user, key), print_, when_full=when_full)


def _rotated(before: Hook, lasts: timedelta, by: str, now_ms: int) -> Hook:
    kept = ending(before.secrets, lasts, now_ms)
    if len(kept) >= MOST_SECRETS:
        raise Conflict(
            f"{MOST_SECRETS} secrets are taken already; wait until one of them ends, or end them with an overlap of 0",
            reason="HOOK_SECRETS_FULL",
        )
    return replace(before, secrets=(Secret(new_secret(), by=by), *kept))


def _secret_by(hook: Hook, by: str, now_ms: int) -> str:
    """The secret that was made under a key, or the newest. Raises Conflict where it was replaced since."""
    secret = made_by(hook.secrets, by, now_ms)
    if secret is None:
        raise Conflict("the secret that was made under this idempotency key has ended since", reason="HOOK_SECRET_REPLACED")
    return secret


def _check_maker(principal: Principal, hook: Hook) -> None:
    if hook.owner.user != principal.user and principal.missing([ADMIN]):
        raise PermissionDenied("a new secret of a hook is for its maker", reason="HOOK_OF_ANOTHER_USER")


def _usable(secret: str) -> bool:
    try:
        return LEAST_SECRET_BYTES <= len(secret_key(secret)) <= MOST_SECRET_BYTES
    except ValueError:
        return False


def _too_many() -> QuotaExceeded:
    return QuotaExceeded(f"the tenant has {MOST_HOOKS} hooks, which is the limit", metadata={"policy": "hooks", "limit": str(MOST_HOOKS)})


def _not_found() -> NotFound:
    return NotFound("there is no such hook", reason="HOOK_NOT_FOUND")
