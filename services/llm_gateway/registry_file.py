"""From a validated models.yaml to the registry: secrets resolved, providers known, names checked against each other."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

from services.common.config import ConfigProblem
from services.llm_gateway.model_config import STRATEGIES, ModelEntry, ModelsFile, merged
from services.llm_gateway.money import Prices, picousd
from services.llm_gateway.registry import Deployment, Group, Mode, Registry, Timeouts

REFERENCE = "os.environ/"
OPENAI_BASE = "https://api.openai.com/v1"
# Providers that speak the OpenAI API, with the base URL where there is one for everybody.
OPENAI_COMPATIBLE: Mapping[str, str] = {
    "openai": OPENAI_BASE, "hosted_vllm": "", "vllm": "", "litellm_proxy": "", "custom_openai": "", "openai_like": "", "lm_studio": "",
    "deepseek": "https://api.deepseek.com/v1", "groq": "https://api.groq.com/openai/v1", "mistral": "https://api.mistral.ai/v1",
    "openrouter": "https://openrouter.ai/api/v1", "together_ai": "https://api.together.xyz/v1", "xai": "https://api.x.ai/v1",
}  # fmt: skip
LOCAL_EMBEDDERS: Mapping[str, int] = {"wordllama/l2_supercat_256": 256}


def registry_parser(environment: Mapping[str, str]) -> Callable[[Any], Registry]:
    """A parser for ConfigFile. `os.environ/NAME` values are looked up in `environment`."""

    def parse(data: Any) -> Registry:
        return _Builder(ModelsFile.model_validate(data), environment).build()

    return parse


class _Builder:
    def __init__(self, file: ModelsFile, environment: Mapping[str, str]) -> None:
        self._file = file
        self._environment = environment
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
        router, litellm = self._file.router_settings, self._file.litellm_settings
        aliases: dict[str, str] = {}
        for alias, target in router.model_group_alias.items():
            name = target if isinstance(target, str) else str(target.get("model", ""))
            if alias in declared:
                self._problems.append(f"models.yaml: router_settings.model_group_alias: {alias} is the name of a model")
            if self._known(name, declared, f"router_settings.model_group_alias.{alias}") and name in groups:
                aliases[alias] = name
        names = declared | set(aliases)

        def table(key: str) -> dict[str, tuple[str, ...]]:
            found = merged([*getattr(router, key), *getattr(litellm, key)])
            usable: dict[str, tuple[str, ...]] = {}
            for model, targets in found.items():
                self._known(model, names, key)
                kept = [t for t in targets if self._known(t, names, f"{key} of {model}") and (t in groups or t in aliases)]
                usable[aliases.get(model, model)] = tuple(kept)
            return usable

        defaults = (*router.default_fallbacks, *litellm.default_fallbacks)
        kept_defaults = tuple(t for t in defaults if self._known(t, names, "default_fallbacks") and (t in groups or t in aliases))
        strategy = router.routing_strategy if router.routing_strategy in STRATEGIES else STRATEGIES[0]
        return Registry(
            groups=groups,
            aliases=aliases,
            fallbacks=table("fallbacks"),
            default_fallbacks=kept_defaults,
            context_window_fallbacks=table("context_window_fallbacks"),
            content_policy_fallbacks=table("content_policy_fallbacks"),
            num_retries=router.num_retries if router.num_retries is not None else litellm.num_retries,
            max_fallbacks=router.max_fallbacks,
            routing_strategy=strategy,
            request_timeout_s=router.timeout or litellm.request_timeout,
            always_include_stream_usage=self._file.general_settings.always_include_stream_usage,
            unsupported=tuple(self._unsupported),
            unpriced=tuple(name for name, group in groups.items() if not all(d.prices.known for d in group.deployments)),
        )

    def _known(self, name: str, names: set[str], where: str) -> bool:
        if name not in names:
            self._problems.append(f"models.yaml: {where}: unknown model {name!r}")
        return name in names

    def _deployment(self, number: int, entry: ModelEntry) -> Deployment | None:
        params, info = entry.litellm_params, entry.model_info
        where = f"models.yaml: model_list[{number}] ({entry.model_name})"
        provider, _, model = params.model.partition("/") if "/" in params.model else ("openai", "/", params.model)
        mode: Mode = "embedding" if info.mode == "embedding" or params.model in LOCAL_EMBEDDERS else "chat"
        dimension = info.output_vector_size or 0
        adapter, base, key = "openai", "", ""
        if provider == "wordllama":
            if params.model not in LOCAL_EMBEDDERS:
                self._problems.append(f"{where}: unknown local model {params.model!r}; known: {', '.join(LOCAL_EMBEDDERS)}")
                return None
            if info.mode not in (None, "embedding"):
                self._problems.append(f"{where}: {params.model} makes embeddings; model_info.mode is {info.mode}")
            adapter, dimension = "wordllama", LOCAL_EMBEDDERS[params.model]
        elif provider not in OPENAI_COMPATIBLE:
            self._unsupported.append(f"model_list[{number}].litellm_params.model={params.model}")
            return None
        else:
            base = self._resolved(params.api_base or params.base_url or OPENAI_COMPATIBLE[provider], f"{where}: api_base")
            key = self._resolved(params.api_key or "", f"{where}: api_key")
            if base and (urlsplit(base).scheme not in ("http", "https") or not urlsplit(base).hostname):
                self._problems.append(f"{where}: api_base is not an http or https URL")
            elif not base and not (params.api_base or params.base_url):
                self._problems.append(f"{where}: api_base is required for the provider {provider}")
            if base == OPENAI_BASE and not params.api_key:
                self._problems.append(f"{where}: api_key is required; write os.environ/OPENAI_API_KEY and set that variable")
        headers = {
            name.lower(): self._resolved(value, f"{where}: extra_headers.{name}") for name, value in (params.extra_headers or {}).items()
        }
        if params.organization:
            headers["openai-organization"] = self._resolved(params.organization, f"{where}: organization")
        return Deployment(
            id=info.id or _identity(entry, params.api_key or ""),
            group=entry.model_name,
            provider="simulator" if info.simulated else provider,
            adapter=adapter,
            model=model,
            mode=mode,
            api_base=base.rstrip("/"),
            api_key=key,
            defaults=params.defaults(),
            headers=headers,
            timeouts=Timeouts(params.timeout, params.stream_timeout),
            weight=params.weight or 1.0,
            order=params.order or 0,
            prices=_prices(entry, adapter),
            max_input_tokens=info.max_input_tokens or 0,
            dimension=dimension,
            reasoning=info.supports_reasoning,
            simulated=info.simulated,
            trusted=info.trusted,
        )

    def _resolved(self, value: str, where: str) -> str:
        if not value.startswith(REFERENCE):
            return value
        name = value.removeprefix(REFERENCE)
        found = self._environment.get(name, "")
        if not found:
            self._problems.append(f"{where}: the environment variable {name} is not set")
        return found


def _identity(entry: ModelEntry, key_reference: str) -> str:
    """An id that stays the same over restarts and replicas, and that two keys of one provider do not share."""
    params = entry.litellm_params
    parts = (entry.model_name, params.model, params.api_base or params.base_url or "", key_reference, params.organization or "")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _prices(entry: ModelEntry, adapter: str) -> Prices:
    info, params = entry.model_info, entry.litellm_params
    paid_in = info.input_cost_per_token if info.input_cost_per_token is not None else params.input_cost_per_token
    paid_out = info.output_cost_per_token if info.output_cost_per_token is not None else params.output_cost_per_token
    if adapter == "wordllama" and paid_in is None:
        return Prices(known=True)
    known = paid_in is not None and (paid_out is not None or info.mode == "embedding")
    price_in, price_out = picousd(paid_in or Decimal(0)), picousd(paid_out or Decimal(0))
    cached, reasoning = info.cache_read_input_token_cost, info.output_cost_per_reasoning_token
    return Prices(
        input=price_in,
        output=price_out,
        cached_input=price_in if cached is None else picousd(cached),
        reasoning=price_out if reasoning is None else picousd(reasoning),
        known=known,
    )
