"""What a key, a user, a team or a tenant may spend and do: money, tokens, requests, models."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

# Money is counted in nano-USD of 64 bits in the store; a billion dollars leaves room for sums.
MOST_MICROUSD = 10**15
MOST_COUNT = 10**12
MOST_NAMES = 1000
MOST_NAME_CHARS = 256
_PERIOD = re.compile(r"([1-9][0-9]{0,4})(s|m|h|d|w|mo)\Z")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "mo": 30 * 86400}
_COUNTS = ("tokens_per_minute", "requests_per_minute", "tokens_per_day", "max_parallel")
_MONEY = ("max_budget_microusd", "soft_budget_microusd")


@dataclass(frozen=True, slots=True)
class Period:
    """How often a budget begins anew: `count` times `unit` (s, m, h, d, w, or mo for calendar months)."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Period":
        """Reads `30s`, `30m`, `24h`, `7d`, `1w`, `1mo`. Raises ValueError."""
        match = _PERIOD.match(text)
        if match is None:
            raise ValueError("must be a number and a unit, as 30s, 30m, 24h, 7d, 1w or 1mo")
        return cls(int(match[1]), match[2])

    @property
    def seconds(self) -> int:
        """Its length; a month counts as 30 days."""
        return self.count * _UNIT_S[self.unit]


@dataclass(frozen=True, slots=True)
class LimitSet:
    """Limits of one holder. None does not limit; 0 as a budget means that nothing may be spent.

    Money is in micro-USD. `budget_period` says when the budget begins anew (see Period), "" never: it is the total.
    `soft_budget_microusd` stops nothing, it is where a warning is due. `models` are the model groups that may be asked, empty for all.
    `model_limits` holds limits of single models, which have no `models` and `model_limits` of their own.
    """

    max_budget_microusd: int | None = None
    budget_period: str = ""
    soft_budget_microusd: int | None = None
    tokens_per_minute: int | None = None
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None
    max_parallel: int | None = None
    models: tuple[str, ...] = ()
    model_limits: "Mapping[str, LimitSet]" = field(default_factory=dict, hash=False)

    def allows(self, model: str) -> bool:
        """Whether the model group may be asked."""
        return not self.models or model in self.models

    def problems(self) -> list[tuple[str, str]]:
        """What is wrong with it: pairs of a field and the reason. Nothing here repeats a value."""
        found = [
            (name, f"must be an integer from 0 to {MOST_MICROUSD}") for name in _MONEY if not _within(getattr(self, name), 0, MOST_MICROUSD)
        ]
        found += [
            (name, f"must be an integer from 1 to {MOST_COUNT}") for name in _COUNTS if not _within(getattr(self, name), 1, MOST_COUNT)
        ]
        if self.budget_period:
            try:
                Period.parse(self.budget_period)
            except ValueError as error:
                found.append(("budget_period", str(error)))
        if len(self.models) > MOST_NAMES or not all(_is_name(model) for model in self.models):
            found.append(("models", f"must be at most {MOST_NAMES} names of 1 to {MOST_NAME_CHARS} characters"))
        if len(self.model_limits) > MOST_NAMES or not all(_is_name(model) for model in self.model_limits):
            found.append(("model_limits", f"must have at most {MOST_NAMES} names of 1 to {MOST_NAME_CHARS} characters"))
        for inner in self.model_limits.values():
            if inner.models or inner.model_limits:
                found.append(("model_limits", "a model's limits cannot name models"))
            found += [(f"model_limits.{name}", reason) for name, reason in inner.problems()]
        return found

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready form; what does not limit is left out."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) not in (None, "", (), {})}
        if self.models:
            found["models"] = list(self.models)
        if self.model_limits:
            found["model_limits"] = {model: inner.as_dict() for model, inner in self.model_limits.items()}
        return found

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LimitSet":
        """The inverse of `as_dict`; unknown fields are ignored, so that N reads what N+1 wrote."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        known["models"] = tuple(known.get("models", ()))
        known["model_limits"] = {model: cls.from_dict(inner) for model, inner in known.get("model_limits", {}).items()}
        return cls(**known)


NO_LIMITS = LimitSet()


@dataclass(frozen=True, slots=True)
class PrincipalLimits:
    """All that limits one principal beside its tier: each of the four holds on its own."""

    key: LimitSet = NO_LIMITS
    user: LimitSet = NO_LIMITS
    team: LimitSet = NO_LIMITS
    tenant: LimitSet = NO_LIMITS

    def allows(self, model: str) -> bool:
        """Whether every holder lets the model group be asked."""
        return self.key.allows(model) and self.user.allows(model) and self.team.allows(model) and self.tenant.allows(model)


def _within(value: object, least: int, most: int) -> bool:
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and least <= value <= most)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MOST_NAME_CHARS and value.isprintable()
