"""Bodies of admin requests in LiteLLM's field names. Nothing is ignored without a word: a field is read, refused, or named."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from decimal import ROUND_FLOOR, Decimal
from typing import Any, Protocol

from services.common.accounts import NO_LIMITS, LimitSet, Period
from services.common.errors import FieldViolation, InvalidInput

MICRO_PER_USD = 10**6
MOST_FIELDS = 200
# "All there are" in LiteLLM's words: what is not listed is not limited, and a team's models hold beside a key's.
ALL_MODELS = frozenset({"all-proxy-models", "all-team-models"})
# Fields of LiteLLM that restrict, route or identify: a caller who sends one relies on it, so it is refused.
REFUSED = frozenset(
    {
        "access_group_ids", "aliases", "allowed_cache_controls", "allowed_model_region", "allowed_passthrough_routes", "allowed_routes",
        "allowed_vector_store_indexes", "auto_rotate", "budget_fallbacks", "budget_id", "budget_limits",
        "default_estimated_output_tokens", "default_estimated_output_tokens_per_model", "default_team_member_models",
        "denied_passthrough_routes", "end_user_budget_id", "enforced_params", "guardrails", "max_budget_in_team", "mcp_rpm_limit",
        "model_aliases", "new_key", "new_master_key", "object_permission", "organization_id", "organizations", "password", "permissions",
        "policies", "project_id", "prompts", "rotation_interval", "router_settings", "rpm_limit_type", "secret_manager_settings",
        "sso_user_id", "tag_rpm_limit", "team_member_budget", "team_member_budget_duration", "team_member_key_duration",
        "team_member_permissions", "team_member_rpm_limit", "team_member_tpm_limit", "temp_budget_expiry", "temp_budget_increase",
        "throttle_on_budget_exceeded", "tpm_limit_type",
    }
)  # fmt: skip
# Fields of LiteLLM that change nothing about what a key may do.
NAMED = frozenset(
    {
        "config", "disable_global_guardrails", "enable_prompt_caching", "litellm_changed_by", "send_invite_email", "spend", "tags",
        "user_role",
    }
)  # fmt: skip
_FACETS = {
    "model_max_budget": ("max_budget_microusd", "budget_period"),
    "model_rpm_limit": ("requests_per_minute",),
    "model_tpm_limit": ("tokens_per_minute",),
}


class Fields:
    """Reads a body field by field, gathers what is wrong, and tells it all at once in `finish`."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        if len(body) > MOST_FIELDS:
            raise InvalidInput(f"the body must have at most {MOST_FIELDS} fields")
        self._body = body
        self._read: set[str] = set()
        self._problems: list[FieldViolation] = []

    def given(self, name: str) -> bool:
        """Whether the caller sent the field; null counts."""
        self._read.add(name)
        return name in self._body

    def wrong(self, name: str, reason: str) -> None:
        """Notes a problem; the first of a field is the one that is told."""
        if not any(problem.field == name for problem in self._problems):
            self._problems.append(FieldViolation(name, reason))

    def value(self, name: str, kind: type, description: str) -> Any:
        """A field of one type, None where it is absent, null or wrong."""
        self._read.add(name)
        value = self._body.get(name)
        if value is None or (isinstance(value, kind) and (kind is bool or not isinstance(value, bool))):
            return value
        self.wrong(name, f"must be {description}")
        return None

    def text(self, name: str) -> str | None:
        """A string; an empty one counts as absent, as in LiteLLM."""
        return self.value(name, str, "a string") or None

    def required(self, name: str) -> str:
        """A string that must be there."""
        value = self.value(name, str, "a string")
        if not value:
            self.wrong(name, "is needed")
        return value or ""

    def flag(self, name: str, default: bool = False) -> bool:
        """A boolean."""
        value = self.value(name, bool, "true or false")
        return default if value is None else value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object."""
        return self.value(name, dict, "an object") or {}

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        values = self.value(name, list, "a list of strings") or []
        if not all(isinstance(value, str) and value for value in values):
            self.wrong(name, "must be a list of strings")
            return ()
        return tuple(dict.fromkeys(values))

    def objects(self, name: str) -> list[dict[str, Any]]:
        """A list of objects, or one object."""
        self._read.add(name)
        value = self._body.get(name)
        values = [value] if isinstance(value, dict) else value
        if values is None:
            return []
        if not isinstance(values, list) or not all(isinstance(item, dict) for item in values):
            self.wrong(name, "must be an object or a list of objects")
            return []
        return values

    def usd(self, name: str) -> int | None:
        """An amount of US dollars, in micro-USD."""
        self._read.add(name)
        value = self._body.get(name)
        return None if value in (None, "") else self.microusd(name, value)

    def microusd(self, name: str, value: object) -> int | None:
        """Dollars as micro-USD, rounded down: nobody gets more than was given. None when it is no amount."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            self.wrong(name, "must be a number of US dollars, 0 or more")
            return None
        # The shortest decimal that means this float is the number that was written.
        return int((Decimal(str(value)) * MICRO_PER_USD).to_integral_value(rounding=ROUND_FLOOR))

    def count(self, name: str) -> int | None:
        """An integer from 1."""
        value = self.value(name, int, "an integer from 1")
        if value is not None and value < 1:
            self.wrong(name, "must be an integer from 1")
            return None
        return value

    def period(self, name: str) -> Period | None:
        """A duration as 30s, 30m, 24h, 7d, 1mo."""
        value = self.text(name)
        if value is None:
            return None
        try:
            return Period.parse(value)
        except ValueError as error:
            self.wrong(name, str(error))
            return None

    def finish(self) -> list[str]:
        """Names of fields that have no effect here. Raises InvalidInput with all that is wrong."""
        unsupported = []
        for name, value in self._body.items():
            if name in self._read or (name in REFUSED | NAMED and _says_nothing(value)):
                continue
            if name in NAMED:
                unsupported.append(name)
            elif name in REFUSED:
                self.wrong(name, "is not supported")
            else:
                # Names are the caller's text: only a printable beginning goes back.
                self.wrong(name[:64] if name.isprintable() else "?", "is not a known field")
        if self._problems:
            shown = "; ".join(f"{problem.field}: {problem.description}" for problem in self._problems[:4])
            raise InvalidInput(shown, violations=self._problems[:32])
        return unsupported


def named(unsupported: Sequence[str]) -> dict[str, Any]:
    """Fields of the request that have no effect, as the answer names them, where there are any."""
    return {"unsupported": list(unsupported)} if unsupported else {}


class Checked(Protocol):
    """A record that can tell what is wrong with it."""

    def check(self) -> None:
        """Raises InvalidInput."""
        ...


def check(fields: Fields, record: Checked, kind: str) -> None:
    """Notes what is wrong with a record of a key, team, user or tenant, in the names that the request has for it."""
    try:
        record.check()
    except InvalidInput as error:
        for problem in error.violations:
            name = {"name": f"{kind}_alias", "user": "user_id", "team": "team_id", "email": "user_email"}.get(problem.field, problem.field)
            fields.wrong(_PUBLIC.get(name, name), problem.description)


class _Held(Protocol):
    """What keys, teams, users and tenants have in common."""

    @property
    def limits(self) -> LimitSet: ...


def changed_in_common(fields: Fields, old: _Held, kind: str) -> dict[str, Any]:
    """What the body names of a key, team, user or tenant that all of them have, as values of the record."""
    found: dict[str, Any] = {"limits": read_limits(fields, old.limits)}
    if fields.given(f"{kind}_alias"):
        found["name"] = fields.text(f"{kind}_alias") or ""
    if fields.given("metadata"):
        found["metadata"] = fields.mapping("metadata")
    if fields.given("blocked"):
        found["blocked"] = fields.flag("blocked")
    return found


def read_limits(fields: Fields, base: LimitSet = NO_LIMITS) -> LimitSet:
    """`base` with every limit that the body names; null takes a limit away."""
    found: dict[str, Any] = {}
    if fields.given("max_budget"):
        found["max_budget_microusd"] = fields.usd("max_budget")
    if fields.given("soft_budget"):
        found["soft_budget_microusd"] = fields.usd("soft_budget")
    if fields.given("budget_duration"):
        found["budget_period"] = _text_of(fields.period("budget_duration"))
    for name, attribute in (
        ("tpm_limit", "tokens_per_minute"),
        ("rpm_limit", "requests_per_minute"),
        ("tpd_limit", "tokens_per_day"),
        ("max_parallel_requests", "max_parallel"),
    ):
        if fields.given(name):
            found[attribute] = fields.count(name)
    if fields.given("models"):
        found["models"] = _models(fields)
    limits = replace(base, **found)
    for name in _FACETS:
        if fields.given(name):
            limits = replace(limits, model_limits=_model_limits(fields, name, limits.model_limits))
    return limits


_PUBLIC = {
    "max_budget_microusd": "max_budget", "soft_budget_microusd": "soft_budget", "budget_period": "budget_duration",
    "tokens_per_minute": "tpm_limit", "requests_per_minute": "rpm_limit", "tokens_per_day": "tpd_limit",
    "max_parallel": "max_parallel_requests", "model_limits": "model_max_budget",
}  # fmt: skip


def _models(fields: Fields) -> tuple[str, ...]:
    models = fields.texts("models")
    if "no-default-models" in models or any("*" in model for model in models):
        fields.wrong("models", "must be names of models; patterns are not supported")
    return () if ALL_MODELS & set(models) else models


def _model_limits(fields: Fields, name: str, base: Mapping[str, LimitSet]) -> dict[str, LimitSet]:
    """Limits of single models: what `name` says of them is replaced for all, the rest stays."""
    cleared = {attribute: getattr(NO_LIMITS, attribute) for attribute in _FACETS[name]}
    limits = {model: replace(inner, **cleared) for model, inner in base.items()}
    for model, value in fields.mapping(name).items():
        limits[model] = replace(limits.get(model, NO_LIMITS), **_facet(fields, name, value))
    return {model: inner for model, inner in limits.items() if inner != NO_LIMITS}


def _facet(fields: Fields, name: str, value: object) -> dict[str, Any]:
    if name != "model_max_budget":
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            fields.wrong(name, "must map models to integers from 1")
            return {}
        return {_FACETS[name][0]: value}
    if not isinstance(value, dict):
        return {"max_budget_microusd": fields.microusd(name, value)}
    inner = Fields(value)
    first = "budget_limit" if inner.given("budget_limit") else "max_budget"
    period = "time_period" if inner.given("time_period") else "budget_duration"
    found: dict[str, Any] = {"max_budget_microusd": inner.usd(first), "budget_period": _text_of(inner.period(period))}
    if inner.given("rpm_limit"):
        found["requests_per_minute"] = inner.count("rpm_limit")
    if inner.given("tpm_limit"):
        found["tokens_per_minute"] = inner.count("tpm_limit")
    try:
        inner.finish()
    except InvalidInput as error:
        for problem in error.violations:
            fields.wrong(f"{name}.{problem.field}", problem.description)
    return found


def _text_of(period: Period | None) -> str:
    return "" if period is None else f"{period.count}{period.unit}"


def _says_nothing(value: object) -> bool:
    return value is None or value is False or value in ("", 0) or value == [] or value == {}
