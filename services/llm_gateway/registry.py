"""The model registry: groups of deployments in the order of the configuration, and the rings that a call may walk."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal
from urllib.parse import quote

from services.common.errors import InvalidInput, NotFound
from services.llm_gateway.auto_route import AutoRoute
from services.llm_gateway.failures import FailureClass
from services.llm_gateway.money import UNPRICED, Prices

Mode = Literal["chat", "embedding", "rerank"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Bounds of one attempt, in seconds; None stands for the process's setting."""

    total_s: float | None = None
    first_token_s: float | None = None


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a deployment can do; None where the configuration does not say, which counts as yes.

    `prefill` is different: only a declared one is used, to continue a broken answer from its delivered text.
    """

    tools: bool | None = None
    tool_choice: bool | None = None
    parallel_tools: bool | None = None
    vision: bool | None = None
    json_schema: bool | None = None
    system_messages: bool | None = None
    reasoning: bool | None = None
    prefill: bool | None = None
    # Request fields that the provider refuses; they are left out of what is sent to it.
    dropped_params: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class DeploymentLimits:
    """What a provider lets one deployment do, over all replicas and tenants; 0 where nothing is declared.

    `parallel` bounds the calls in flight of one process.
    """

    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    parallel: int = 0


@dataclass(frozen=True, slots=True)
class Deployment:
    """One entry of model_list: one model at one provider with one key.

    `provider` names the provider to people, `adapter` the code that talks to it. `defaults` are request fields that
    the configuration sets where the caller does not. `weight` and `order` steer the choice within the group: the
    lowest order first, by weight within it. `pattern` is the group that it comes from where that stands for many names.
    With `stream_usage` streams are asked for their usage, whatever the caller wants to see of it; with False they never are, and with
    None they are as the caller says.
    """

    id: str
    group: str
    provider: str
    adapter: str
    model: str
    mode: Mode
    api_base: str = ""
    api_version: str = ""
    api_key: str = field(default="", repr=False)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeouts: Timeouts = Timeouts()
    weight: float = 1.0
    order: int = 0
    prices: Prices = UNPRICED
    free: bool = False  # costs nothing on purpose
    max_input_tokens: int = 0
    max_output_tokens: int = 0
    capabilities: Capabilities = Capabilities()
    limits: DeploymentLimits = DeploymentLimits()
    dimension: int = 0
    reasoning: bool = False
    simulated: bool = False
    trusted: bool = False
    pattern: str = ""
    stream_usage: bool | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The deployments that share a model_name."""

    name: str
    index: int
    deployments: tuple[Deployment, ...]

    @property
    def mode(self) -> Mode:
        """What the group is for; the same for all of its deployments."""
        return self.deployments[0].mode


# A name behind a pattern is a caller's own word, and becomes part of keys and labels.
MAX_NAME = 256


def between(pattern: str, name: str) -> str:
    """What of `name` the star of the pattern stands for; empty where it does not fit."""
    before, star, after = pattern.partition("*")
    fits = star and len(name) > len(before) + len(after) and name.startswith(before) and name.endswith(after)
    if not fits or len(name) > MAX_NAME or "*" in name or not name.isprintable():
        return ""
    middle = name[len(before) : len(name) - len(after)]
    # Some providers have the model in the path, which must not lead elsewhere.
    return "" if ".." in middle.split("/") else middle


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """litellm_settings.cache and cache_params. Times in seconds; None for the process's setting.

    With `opt_in` only calls that ask for a cache use it (LiteLLM's mode: default_off).
    """

    enabled: bool = False
    opt_in: bool = False
    ttl_s: float | None = None
    semantic_model: str = ""
    similarity: float | None = None
    operations: frozenset[str] = frozenset({"chat", "embed", "rerank"})


@dataclass(frozen=True)
class Registry:
    """All groups by name, in order; immutable, so that a call keeps the one it began with.

    `wildcards` are groups whose name holds a `*`, as `openai/*`: they serve every name that fits and that no other group has.
    `tenant_budget_microusd` and `tenant_budget_period` are the budget of each tenant that has none of its own.
    """

    groups: Mapping[str, Group]
    autos: Mapping[str, AutoRoute] = field(default_factory=dict)
    wildcards: tuple[Group, ...] = ()
    retries_by_class: Mapping[FailureClass, int] = field(default_factory=dict)
    cache: CacheConfig = CacheConfig()
    master_key: str = field(default="", repr=False)
    tenant_budget_microusd: int | None = None
    tenant_budget_period: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    default_fallbacks: tuple[str, ...] = ()
    context_window_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content_policy_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    num_retries: int | None = None
    max_fallbacks: int | None = None
    routing_strategy: str = "least-busy"
    request_timeout_s: float | None = None
    # Failures in a row and seconds of pause (LiteLLM's allowed_fails and cooldown_time); None for the process's setting.
    allowed_fails: int | None = None
    cooldown_s: float | None = None
    # Leaves request fields out that the target is known to refuse, in place of refusing the call (LiteLLM's drop_params).
    drop_params: bool = False
    unsupported: tuple[str, ...] = ()
    unpriced: tuple[str, ...] = ()
    price_table: Mapping[str, Prices] = field(default_factory=dict, repr=False)
    _rings: dict[str, tuple[Group, ...]] = field(default_factory=dict, repr=False, compare=False)

    def resolve(self, name: str, mode: Mode) -> tuple[Group, bool]:
        """The group behind a name or alias; for an empty name the first of that mode, and True.

        Raises NotFound (MODEL_NOT_FOUND), or InvalidInput for a model of the other mode.
        """
        if not name:
            for first in self.groups.values():
                if first.mode == mode:
                    return first, True
            raise NotFound(f"no {mode} model is configured", reason="MODEL_NOT_FOUND")
        group = self.find(name)
        if group is None and name in self.autos:
            # Whoever asks before the choice is made gets the one in the middle.
            group = self.groups[self.autos[name].balanced]
        if group is None:
            raise NotFound("no such model", reason="MODEL_NOT_FOUND", metadata={"model": name[:128]})
        if group.mode != mode:
            raise InvalidInput(
                f"the model is for {group.mode}, not for {mode}", reason="MODEL_MODE_MISMATCH", metadata={"model": name[:128]}
            )
        return group, False

    def find(self, name: str) -> Group | None:
        """The group behind a name or alias, also one behind a pattern."""
        name = self.aliases.get(name, name)
        return self.groups.get(name) or self._wild(name)

    def behind_auto(self, name: str) -> tuple[str, ...]:
        """The groups that an `auto` model chooses from; empty for another name."""
        route = self.autos.get(name)
        return () if route is None else (route.cheap, route.balanced, route.best, *([route.classifier] if route.classifier else []))

    def resolve_name(self, name: str) -> str:
        """The name that limits of models are about: that of the group behind an alias."""
        return self.aliases.get(name, name)

    def _wild(self, name: str) -> Group | None:
        for wildcard in self.wildcards:
            middle = between(wildcard.name, name)
            if middle:
                members = tuple(
                    replace(
                        d,
                        group=name,
                        model=d.model.replace("*", middle),
                        # Azure has the model in its address.
                        api_base=d.api_base.replace("/deployments/*", f"/deployments/{quote(middle, safe='')}"),
                        prices=self.price_of(d, middle),
                        pattern=wildcard.name,
                    )
                    for d in wildcard.deployments
                )
                return Group(name, wildcard.index, members)
        return None

    def price_of(self, deployment: Deployment, name: str) -> Prices:
        """The price of a model behind a wildcard, from the price table; the wildcard's own where the table has none."""
        table = self.price_table
        return table.get(f"{deployment.provider}/{name}") or table.get(name) or deployment.prices

    def ring(self, start: Group) -> tuple[Group, ...]:
        """Where a call may go after `start`, each model once: its configured fallbacks, then round the registry.

        Embeddings and rankings follow configured fallbacks only: vectors or scores of two models cannot be compared with each other.
        """
        found = self._rings.get(start.name)
        if found is None:
            found = tuple(self._ring(start))
            if start.name in self.groups:  # names behind a wildcard come from callers and have no end
                self._rings[start.name] = found
        return found

    def _ring(self, start: Group) -> Iterator[Group]:
        seen = {start.name}
        if start.name not in self.groups:
            # A model behind a wildcard is a name that the caller chose; it has the fallbacks that are configured for it, and no ring.
            ordered: list[Group] = []
        else:
            ordered = list(self.groups.values())
        names: list[str] = [*self._configured(self.fallbacks, start), *self.default_fallbacks]
        if start.mode == "chat" and ordered:
            names += [group.name for group in (*ordered[start.index + 1 :], *ordered[: start.index])]
        for name in names:
            group = self.find(name)
            if group is not None and group.name not in seen and group.mode == start.mode:
                seen.add(group.name)
                yield group

    def typed(self, start: Group, failure_class: FailureClass) -> Sequence[Group]:
        """The models that the configuration names for this class of failure, in order."""
        table = self.context_window_fallbacks if failure_class is FailureClass.CONTEXT_WINDOW else self.content_policy_fallbacks
        found = [self.find(name) for name in self._configured(table, start)]
        return [group for group in found if group is not None and group.mode == start.mode]

    @staticmethod
    def _configured(table: Mapping[str, tuple[str, ...]], start: Group) -> tuple[str, ...]:
        """What a table has for a group, by its name or by the pattern that it comes from."""
        return table.get(start.name) or table.get(start.deployments[0].pattern, ())
