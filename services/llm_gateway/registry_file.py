"""From a validated models.yaml and its price table to the registry: secrets resolved, providers known, names checked."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from services.common.config import ConfigProblem
from services.llm_gateway.auto_route import AutoRoute
from services.llm_gateway.failures import FailureClass
from services.llm_gateway.model_config import RETRY_POLICY, STRATEGIES, ModelEntry, ModelsFile, merged
from services.llm_gateway.money import Prices
from services.llm_gateway.price_config import PriceKeys, parse_table, prices_of, zeroed
from services.llm_gateway.providers import LOCAL_EMBEDDERS, PROVIDERS, Provider, stream_usage
from services.llm_gateway.registry import (
    CacheConfig,
    Capabilities,
    Deployment,
    DeploymentLimits,
    Group,
    Mode,
    Registry,
    Timeouts,
    between,
)

REFERENCE = "os.environ/"
MICRO_PER_USD = 10**6
_MODES: Mapping[str, Mode] = {"embedding": "embedding", "rerank": "rerank"}


class RegistryParser:
    """A parser for ConfigFile: of models.yaml, and of the price table that lies beside it.

    `os.environ/NAME` values are looked up in `environment`. A content that would make a known price nothing is refused, and one of
    which `check` names problems.
    """

    def __init__(self, environment: Mapping[str, str], check: Callable[[Registry], list[str]] | None = None) -> None:
        self._environment = environment
        self._check = check
        self._last: Registry | None = None

    def __call__(self, data: Any, *beside: tuple[str, Any]) -> Registry:
        """The registry. `beside` are the other files that exist, as (name, content). Raises ConfigProblem or ValidationError."""
        table: dict[str, PriceKeys] = {}
        for name, content in beside:
            table.update(parse_table(content, name))
        started = self._last is not None
        registry = _Builder(ModelsFile.model_validate(data), self._environment, table, started=started).build()
        if self._check is not None and (problems := self._check(registry)):
            raise ConfigProblem(problems)
        free = {name for name, keys in table.items() if keys.free}
        if self._last is not None and (problems := zeroed(self._last, registry, free)):
            raise ConfigProblem(problems)
        self._last = registry
        return registry


def registry_parser(environment: Mapping[str, str], check: Callable[[Registry], list[str]] | None = None) -> Callable[..., Registry]:
    """A new parser."""
    return RegistryParser(environment, check)


class _Builder:
    def __init__(self, file: ModelsFile, environment: Mapping[str, str], table: Mapping[str, PriceKeys], *, started: bool) -> None:
        self._file = file
        self._started = started
        self._environment = environment
        self._table = table
        self._problems: list[str] = []
        self._unsupported = file.without_effect()

    def build(self) -> Registry:
        deployments: list[Deployment] = []
        for number, entry in enumerate(self._file.model_list):
            made = self._deployment(number, entry)
            if made is not None:
                deployments.append(made)
        declared = {entry.model_name for entry in self._file.model_list}
        groups = self._groups(deployments)
        if not groups and not self._problems:
            self._problems.append("models.yaml: model_list holds no model of a supported provider")
        registry = self._registry(groups, declared)
        if self._problems:
            raise ConfigProblem(self._problems)
        return registry

    def _groups(self, deployments: list[Deployment]) -> dict[str, Group]:
        for deployment_id, count in Counter(d.id for d in deployments).items():
            if count > 1:
                self._problems.append(f"models.yaml: {count} entries of model_list are the same deployment (id {deployment_id})")
        members: dict[str, list[Deployment]] = {}
        for deployment in deployments:
            members.setdefault(deployment.group, []).append(deployment)
        groups: dict[str, Group] = {}
        for index, (name, found) in enumerate(members.items()):
            if len({d.mode for d in found}) > 1:
                self._problems.append(f"models.yaml: the deployments of {name} differ in model_info.mode")
            groups[name] = Group(name, index, tuple(found))
        return groups

    def _registry(self, groups: dict[str, Group], declared: set[str]) -> Registry:
        router, litellm, general = self._file.router_settings, self._file.litellm_settings, self._file.general_settings
        aliases: dict[str, str] = {}
        for alias, target in router.model_group_alias.items():
            name = target if isinstance(target, str) else str(target.get("model", ""))
            if alias in declared:
                self._problems.append(f"models.yaml: router_settings.model_group_alias: {alias} is the name of a model")
            if self._known(name, declared, f"router_settings.model_group_alias.{alias}") and _served(name, groups):
                aliases[alias] = name
        names = declared | set(aliases)

        def table(key: str, found: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
            usable: dict[str, tuple[str, ...]] = {}
            for model, targets in found.items():
                if model not in declared:
                    self._known(model, names, key)
                kept = [t for t in targets if self._known(t, names, f"{key} of {model}") and (t in aliases or _served(t, groups))]
                usable[aliases.get(model, model)] = tuple(kept)
            return usable

        # LiteLLM's generic fallbacks are those of every model.
        fallbacks = merged([*router.fallbacks, *litellm.fallbacks])
        generic = () if "*" in declared else fallbacks.pop("*", ())
        defaults = (*generic, *router.default_fallbacks, *litellm.default_fallbacks)
        kept_defaults = tuple(t for t in defaults if self._known(t, names, "default_fallbacks") and (t in aliases or _served(t, groups)))
        cache = litellm.cache_params
        # Wildcards take up no place in the ring: they stand for names that callers choose.
        plain = {name: group for name, group in groups.items() if "*" not in name}
        return Registry(
            groups={name: Group(name, index, group.deployments) for index, (name, group) in enumerate(plain.items())},
            autos=self._autos(groups, names),
            wildcards=tuple(sorted((g for g in groups.values() if "*" in g.name), key=lambda g: -len(g.name))),
            aliases=aliases,
            fallbacks=table("fallbacks", fallbacks),
            default_fallbacks=kept_defaults,
            context_window_fallbacks=table(
                "context_window_fallbacks", merged([*router.context_window_fallbacks, *litellm.context_window_fallbacks])
            ),
            content_policy_fallbacks=table(
                "content_policy_fallbacks", merged([*router.content_policy_fallbacks, *litellm.content_policy_fallbacks])
            ),
            num_retries=router.num_retries if router.num_retries is not None else litellm.num_retries,
            retries_by_class={
                FailureClass(name): times for policy, times in router.retry_policy.items() for name in RETRY_POLICY.get(policy, ())
            },
            allowed_fails=router.allowed_fails if router.allowed_fails is not None else litellm.allowed_fails,
            cooldown_s=router.cooldown_time,
            drop_params=litellm.drop_params,
            max_fallbacks=router.max_fallbacks,
            routing_strategy=STRATEGIES.get(router.routing_strategy, "least-busy"),
            request_timeout_s=router.timeout or litellm.request_timeout,
            cache=CacheConfig(
                litellm.cache,
                cache.mode == "default_off",
                cache.ttl,
                cache.redis_semantic_cache_embedding_model or cache.qdrant_semantic_cache_embedding_model or "",
                cache.similarity_threshold,
                cache.operations(),
            ),
            master_key=self._resolved(general.master_key or "", "models.yaml: general_settings.master_key"),
            tenant_budget_microusd=None if litellm.max_budget is None else int(litellm.max_budget * MICRO_PER_USD),
            tenant_budget_period=litellm.budget_duration or "",
            price_table={name: prices_of([keys], output_needed=False) for name, keys in self._table.items()},
            unsupported=tuple(self._unsupported),
            unpriced=tuple(name for name, group in groups.items() if not all(d.prices.known for d in group.deployments)),
        )

    def _autos(self, groups: dict[str, Group], names: set[str]) -> dict[str, AutoRoute]:
        found: dict[str, AutoRoute] = {}
        for router in self._file.auto_routers():
            where = f"router_settings.auto_router ({router.name})"
            if router.name in names or router.name in found:
                self._problems.append(f"models.yaml: {where}: there is another model of that name")
            wanted = (router.cheap, router.balanced, router.best, *([router.classifier] if router.classifier else []))
            known = [self._known(name, names, where) for name in wanted]
            if not all(known):
                continue
            if absent := [name for name in wanted if name not in groups or groups[name].mode != "chat" or "*" in name]:
                self._problems.append(f"models.yaml: {where}: {', '.join(absent)}: must be chat models of supported providers, no aliases")
                continue
            limits = router.thresholds
            found[router.name] = AutoRoute(
                router.cheap,
                router.balanced,
                router.best,
                router.name,
                limits.simple,
                limits.budget,
                limits.standard,
                router.classifier or "",
            )
        return found

    def _known(self, name: str, names: set[str], where: str) -> bool:
        found = (name in names and "*" not in name) or any(between(pattern, name) for pattern in names)
        if not found:
            self._problems.append(f"models.yaml: {where}: unknown model {name!r}")
        return found

    def _deployment(self, number: int, entry: ModelEntry) -> Deployment | None:
        params, info = entry.litellm_params, entry.model_info
        where = f"models.yaml: model_list[{number}] ({entry.model_name})"
        name, _, model = params.model.partition("/") if "/" in params.model else ("openai", "/", params.model)
        mode: Mode = "embedding" if params.model in LOCAL_EMBEDDERS and info.mode != "rerank" else _MODES.get(info.mode or "", "chat")
        local = name == "wordllama"
        provider = Provider("wordllama") if local else PROVIDERS.get(name)
        if provider is None:
            self._unsupported.append(f"model_list[{number}].litellm_params.model={params.model}")
            return None
        dimension, base, key = info.output_vector_size or 0, "", ""
        if local:
            if params.model not in LOCAL_EMBEDDERS:
                self._problems.append(f"{where}: unknown local model {params.model!r}; known: {', '.join(LOCAL_EMBEDDERS)}")
                return None
            if info.mode not in (None, "embedding", "rerank"):
                self._problems.append(f"{where}: {params.model} makes embeddings; model_info.mode is {info.mode}")
            dimension = LOCAL_EMBEDDERS[params.model]
        else:
            base, key = self._address(params, provider, where)
        headers = {
            header.lower(): self._resolved(value, f"{where}: extra_headers.{header}")
            for header, value in (params.extra_headers or {}).items()
        }
        if params.organization:
            headers["openai-organization"] = self._resolved(params.organization, f"{where}: organization")
        if name == "azure" and base:
            headers.setdefault("api-key", key)
            base = base if "/openai" in base else f"{base}/openai/deployments/{model}"
            key = ""
        asks = params.stream_options.include_usage if params.stream_options is not None else None
        if asks is None:
            asks = self._file.general_settings.always_include_stream_usage
        if asks is None:
            asks = True if info.simulated else None if local else stream_usage(name, base, params.api_version or "")
        elif not asks:
            asks = None  # as each caller says
        if "stream_options" in params.additional_drop_params:
            asks = False
        listed = self._listed(entry)
        free = info.free or params.free or any(keys.free for keys in listed) or (local and info.input_cost_per_token is None)
        default_parallel = self._file.router_settings.default_max_parallel_requests or 0
        return Deployment(
            id=info.id or _identity(entry, params.api_key or ""),
            group=entry.model_name,
            provider="simulator" if info.simulated else name,
            adapter=provider.adapter,
            model=model,
            mode=mode,
            api_base=base,
            api_version=self._resolved(params.api_version or "", f"{where}: api_version"),
            api_key=key,
            defaults=params.defaults(),
            headers=headers,
            timeouts=Timeouts(params.timeout, params.stream_timeout),
            weight=params.weight or 1.0,
            order=params.order or 0,
            prices=self._prices(entry, mode, listed, free=free, where=where),
            free=free,
            max_input_tokens=info.max_input_tokens or 0,
            max_output_tokens=info.max_output_tokens or 0,
            capabilities=_capabilities(entry),
            limits=DeploymentLimits(params.rpm or 0, params.tpm or 0, params.max_parallel_requests or default_parallel),
            dimension=dimension,
            reasoning=info.supports_reasoning,
            simulated=info.simulated,
            trusted=info.trusted,
            stream_usage=asks,
        )

    def _address(self, params: Any, provider: Provider, where: str) -> tuple[str, str]:
        base = self._resolved(params.api_base or params.base_url or provider.base, f"{where}: api_base").rstrip("/")
        key = self._resolved(params.api_key or "", f"{where}: api_key")
        if base and not _is_address(base):
            self._problems.append(f"{where}: api_base is not an http or https URL")
            base = ""
        elif not base and not (params.api_base or params.base_url):
            self._problems.append(f"{where}: api_base is required for this provider")
        if provider.key_needed and base == provider.base and not params.api_key:
            self._problems.append(f"{where}: api_key is required; write os.environ/NAME and set that variable")
        return base, key

    def _listed(self, entry: ModelEntry) -> list[PriceKeys]:
        """What the price table says of the model, the most exact name first."""
        model = entry.litellm_params.model
        names = (entry.model_info.base_model, model, model.partition("/")[2])
        return [self._table[name] for name in names if name and name in self._table]

    def _prices(self, entry: ModelEntry, mode: Mode, listed: list[PriceKeys], *, free: bool, where: str) -> Prices:
        if free:
            return Prices(known=True)
        try:
            return prices_of([entry.model_info, entry.litellm_params, *listed], output_needed=mode == "chat")
        except ValueError as error:
            self._problems.append(f"{where}: {error}")
            return Prices()

    def _resolved(self, value: str, where: str) -> str:
        if not value.startswith(REFERENCE):
            return value
        name = value.removeprefix(REFERENCE)
        found = self._environment.get(name, "")
        if not found:
            # A process cannot be given another environment while it runs.
            late = "; variables are read at the start, so it takes effect at the next one" if self._started else ""
            self._problems.append(f"{where}: the environment variable {name} is not set{late}")
        return found


def _is_address(base: str) -> bool:
    try:
        parts = urlsplit(base)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets without an address, a port that is none
        return False


def _served(name: str, groups: Mapping[str, Group]) -> bool:
    return name in groups or any(between(pattern, name) for pattern in groups)


def _capabilities(entry: ModelEntry) -> Capabilities:
    info, params = entry.model_info, entry.litellm_params
    return Capabilities(
        tools=info.supports_function_calling,
        tool_choice=info.supports_tool_choice,
        parallel_tools=info.supports_parallel_function_calling,
        vision=info.supports_vision,
        json_schema=info.supports_response_schema,
        system_messages=info.supports_system_messages,
        reasoning=info.supports_reasoning or None,
        prefill=info.supports_assistant_prefill,
        dropped_params=frozenset(params.additional_drop_params),
    )


def _identity(entry: ModelEntry, key_reference: str) -> str:
    """An id that stays the same over restarts and replicas, and that two keys of one provider do not share."""
    params = entry.litellm_params
    parts = (entry.model_name, params.model, params.api_base or params.base_url or "", key_reference, params.organization or "")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
