"""Parts of the service that are made of several objects each, and that start and stop together."""

import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

import redis.asyncio as redis
import structlog

from services.common import valkey
from services.common.accounts import Accounts, LimitSet, PrincipalLimits
from services.common.breaker import Breakers
from services.common.config import ConfigFile
from services.common.idempotency import IdempotencyStore
from services.common.identity import Principal
from services.common.limits import Policies, TierPolicy, parse_policies
from services.common.rpc import context as call_context
from services.llm_gateway.accounting.plans import Plans
from services.llm_gateway.adapters.answer_cache import AnswerCache
from services.llm_gateway.adapters.deployment_limits import ValkeyDeploymentLimits
from services.llm_gateway.adapters.disk_cache import DiskCache
from services.llm_gateway.adapters.ledger import Ledger, Subjects
from services.llm_gateway.adapters.ledger_archive import LedgerArchive
from services.llm_gateway.adapters.purse import LedgerBounds, ValkeyPurse
from services.llm_gateway.auto_calls import AutoRouted
from services.llm_gateway.caching import Caches
from services.llm_gateway.caching_levels import Levels
from services.llm_gateway.caching_memory import MemoryCache
from services.llm_gateway.caching_rules import CachePolicy
from services.llm_gateway.completions import Completions
from services.llm_gateway.gate import DeploymentGate, GateSettings
from services.llm_gateway.registry import CacheConfig, Registry
from services.llm_gateway.replay import Replay
from services.llm_gateway.results import ModelCalls
from services.llm_gateway.semantic import SIMILARITY, SemanticCache, SemanticTerms
from services.llm_gateway.settings import Settings
from services.llm_gateway.single_flight import SingleFlight

log = structlog.get_logger("bulkhead.llm")
POLICIES_FILE = "policies.yaml"
# Breakers and limits of deployments decide by what they know when the store does not answer at once.
SHARED_STATE_TIMEOUT_S = 0.25
DRAIN_S = 3.0
# A key whose holder died is free again after this; it is renewed three times as often.
KEY_LEASE_S = 9.0


class _Limits:
    """What the accounts know, with the budget that models.yaml gives to tenants that have none of their own.

    An alias or an `auto` model that somebody may ask stands for the groups behind it.
    """

    def __init__(self, accounts: Accounts, registry: Callable[[], Registry]) -> None:
        self._accounts = accounts
        self._registry = registry

    async def limits(self, principal: Principal) -> PrincipalLimits:
        """Raises Overloaded without a store."""
        found = await self._accounts.limits(principal)
        registry = self._registry()
        if registry.aliases or registry.autos:
            key, user, team, tenant = (_by_group(limits, registry) for limits in (found.key, found.user, found.team, found.tenant))
            found = PrincipalLimits(key, user, team, tenant)
        if registry.tenant_budget_microusd is None or found.tenant.max_budget_microusd is not None:
            return found
        tenant = LimitSet.from_dict(
            {
                **found.tenant.as_dict(),
                "max_budget_microusd": registry.tenant_budget_microusd,
                "budget_period": registry.tenant_budget_period,
            }
        )
        return PrincipalLimits(found.key, found.user, found.team, tenant)


def _by_group(limits: LimitSet, registry: Registry) -> LimitSet:
    if not limits.models and not limits.model_limits:
        return limits
    models = [name for named in limits.models for name in (registry.resolve_name(named), *registry.behind_auto(named))]
    by_group = {registry.resolve_name(name): limit for name, limit in limits.model_limits.items()}
    return replace(limits, models=tuple(dict.fromkeys(models)), model_limits=by_group)


class Money:
    """The purse, the ledger, and what they need."""

    def __init__(self, settings: Settings, state: redis.Redis, accounts: Accounts, registry: Callable[[], Registry]) -> None:
        """Raises StartRefused for a policies.yaml that cannot be used."""
        self._policies: ConfigFile[Policies | None] = ConfigFile(
            settings.config_dir / POLICIES_FILE, partial(parse_policies, policy_set=settings.policy_set), absent=lambda: None
        )
        if self._policies.current is None:
            log.warning("tier_limits_absent", file=POLICIES_FILE)
        self._policy_set = settings.policy_set
        self._registry = registry
        replicas = settings.state_replicas
        self._plans = plans = Plans(_Limits(accounts, registry), self._tier, Subjects(state, replicas))
        self.purse = ValkeyPurse(
            state,
            plans,
            replicas=replicas,
            timeout_s=settings.store_timeout_ms / 1000,
            bounds=LedgerBounds(lines=settings.ledger_lines),
        )
        self.ledger = Ledger(state, replicas)
        self._archive = LedgerArchive(state, settings.ledger_dir, replicas=replicas) if settings.ledger_dir else None

    async def admit(self, model: str) -> None:
        """Raises PermissionDenied for a model that the caller may not ask, also where no money is needed."""
        context = call_context.current()
        if context is not None and context.principal is not None:
            await self._plans.find(context.principal, self._registry().resolve_name(model))

    async def allows(self, principal: Principal, group: str) -> bool:
        """Whether the caller may ask the model group. Raises Overloaded without a store."""
        return await self._plans.allows(principal, group)

    @property
    def watched(self) -> list[ConfigFile]:
        """Files to look at again and again."""
        return [self._policies]

    def _tier(self, tier: str) -> TierPolicy | None:
        policies = self._policies.current
        return None if policies is None else policies.tier(self._policy_set, tier)

    async def start(self) -> None:
        """Begins the background work."""
        await self.purse.start()
        if self._archive is not None:
            await self._archive.start()

    async def stop(self) -> None:
        """Hands the store what is outstanding, and ends."""
        if left := await self.purse.drain(DRAIN_S):
            log.error("settlements_left", count=left)
        await self.purse.stop()
        if self._archive is not None:
            await self._archive.stop()

    async def erase(self, tenant: str, user: str) -> tuple[str, int]:
        """Takes the user's name out of the ledger."""
        self._plans.forget_user(tenant, user)
        return "ledger_lines", await self.ledger.erase_user(tenant, user)


class Doors:
    """The gate, with breakers and limits that replicas share."""

    def __init__(self, settings: Settings, chance: random.Random) -> None:
        self._client = valkey.connect(settings.state_url, timeout_s=SHARED_STATE_TIMEOUT_S)
        self._breakers = Breakers(self._client, key=lambda name: f"llm:{{d:{name}}}:breaker", channel="llm:breakers")
        self._limits = ValkeyDeploymentLimits(self._client, timeout_s=settings.store_timeout_ms / 1000)
        self.gate = DeploymentGate(
            self._breakers,
            self._limits,
            chance,
            GateSettings(
                most_wait_s=settings.queue_wait_s,
                queue_per_tenant=settings.queue_per_tenant,
                queue_total=settings.queue_length,
                tier_weights=settings.queue_tier_weights,
                connect_s=settings.model_connect_timeout_s,
                first_token_s=settings.model_first_token_timeout_s,
                reasoning_first_token_s=settings.model_reasoning_first_token_timeout_s,
            ),
        )

    def follow(self, registry: Registry) -> None:
        """Follows a new configuration."""
        self.gate.follow(registry)

    async def start(self) -> None:
        """Begins to share."""
        await self._breakers.start()
        await self._limits.start()

    async def stop(self) -> None:
        """Ends the sharing."""
        await self._limits.stop()
        await self._breakers.stop()
        await self._client.aclose()


class Layers:
    """What stands around the attempt loop, outermost first: replay, the choice of `auto` models, caches, single-flight."""

    def __init__(
        self, settings: Settings, state: redis.Redis, completions: Completions, purse: ValkeyPurse, admit: Callable[[str], Awaitable[None]]
    ) -> None:
        self._settings = settings
        self._completions = completions
        self._policies: dict[CacheConfig, CachePolicy] = {}
        flight = SingleFlight(completions, self._policy, admit=admit)
        self._shared: AnswerCache | None = None
        self._client: redis.Redis | None = None
        if settings.cache_url:
            self._client = valkey.connect(settings.cache_url, timeout_s=SHARED_STATE_TIMEOUT_S)
            self._shared = AnswerCache(self._client, timeout_s=settings.store_timeout_ms / 1000)
        self._disk = DiskCache(settings.cache_dir, max_bytes=settings.cache_disk_bytes) if settings.cache_dir else None
        self._semantic: SemanticCache | None = None
        if self._shared is not None:
            self._semantic = SemanticCache(flight, self._shared, self._semantic_terms, force_static=settings.cache_semantic_static)
        self._caches = Caches(
            flight,
            Levels(MemoryCache(settings.cache_l1_entries), self._shared, self._disk),
            self._policy,
            semantic=self._semantic,
            admit=admit,
        )
        once = IdempotencyStore(state, settings.state_replicas)
        self._replay = Replay(AutoRouted(self._caches, purse, admit), once, lease_s=KEY_LEASE_S, run_kept_s=settings.run_answers_kept_s)

    @property
    def calls(self) -> ModelCalls:
        """The outermost layer, which surfaces call."""
        return self._replay

    def follow(self, registry: Registry) -> None:
        """Says what a new configuration asks for in vain."""
        if registry.cache.semantic_model and self._semantic is None:
            log.warning("semantic_cache_off", embedding_model=registry.cache.semantic_model, reason="BULKHEAD_CACHE_URL is not set")

    def _semantic_terms(self) -> SemanticTerms:
        config = self._completions.registry.cache
        return SemanticTerms(
            config.semantic_model or self._settings.cache_semantic_model, SIMILARITY if config.similarity is None else config.similarity
        )

    def _policy(self) -> CachePolicy:
        config = self._completions.registry.cache
        policy = self._policies.get(config)
        if policy is None:
            settings = self._settings
            policy = CachePolicy(
                enabled=config.enabled and not config.opt_in,
                ttl_s=config.ttl_s or settings.cache_ttl_s,
                stale_s=settings.cache_stale_s,
                per_user=settings.cache_per_user,
                operations=config.operations,
            )
            self._policies = {config: policy}
        return policy

    async def start(self) -> None:
        """Begins the background work. Raises StartRefused for a cache of several shards."""
        if self._client is not None:
            await valkey.refuse_shards(self._client, "BULKHEAD_CACHE_URL")
        for part in (self._shared, self._disk):
            if part is not None:
                await part.start()

    async def stop(self) -> None:
        """Ends it; calls that go on without their caller are ended too."""
        await self._replay.stop()
        if self._semantic is not None:
            await self._semantic.stop()
        for part in (self._shared, self._disk):
            if part is not None:
                await part.stop()
        if self._client is not None:
            await self._client.aclose()

    async def erase_cached(self, tenant: str, user: str) -> tuple[str, int]:
        """Deletes what calls of the user have stored."""
        return "cached_answers", await self._caches.erase(tenant, user)

    async def erase_replayable(self, tenant: str, user: str) -> tuple[str, int]:
        """Deletes the answers that are kept under the user's idempotency keys."""
        return "replayable_answers", await self._replay.erase(tenant, user)
