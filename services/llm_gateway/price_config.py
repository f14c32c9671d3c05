"""Prices as they stand in configuration: in model_info, in litellm_params, and in the price table beside models.yaml.

The table (`prices.yaml` or `prices.json`) maps a model to the same keys that model_info has, in US dollars a token:

    openai/gpt-x:                        # or gpt-x, for every provider
      input_cost_per_token: 0.0000004
      output_cost_per_token: 0.0000016
      cache_read_input_token_cost: 0.0000001
      search_context_cost_per_query: {search_context_size_low: 0.01, search_context_size_medium: 0.01, search_context_size_high: 0.01}

which is also the shape of LiteLLM's model_prices_and_context_window.json. What models.yaml says of a model wins.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from decimal import Decimal, InvalidOperation
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from services.common.config import ConfigProblem
from services.llm_gateway.money import NO_EXTRA_PRICES, ExtraPrices, Prices, picousd
from services.llm_gateway.registry import Registry


def _exact(value: Any) -> Any:
    """YAML and JSON hand a price over as a binary fraction; its shortest decimal form is what was written."""
    return Decimal(repr(value)) if isinstance(value, float) else value


Price = Annotated[Decimal, BeforeValidator(_exact), Field(ge=0, le=1000)]
TABLE_NAMES = ("prices.yaml", "prices.json")
_TIERED = re.compile(
    r"(input_cost_per_token|output_cost_per_token|cache_read_input_token_cost|cache_creation_input_token_cost)_above_(\d+)k_tokens\Z"
)


class SearchPrices(BaseModel):
    """US dollars for one search of the provider's own, by the size of its context. A size without a price costs as the dearest."""

    model_config = ConfigDict(frozen=True)

    search_context_size_low: Price | None = None
    search_context_size_medium: Price | None = None
    search_context_size_high: Price | None = None

    def by_size(self) -> tuple[int, int, int] | None:
        """Pico-USD for low, medium and high; None where none is named."""
        sizes = (self.search_context_size_low, self.search_context_size_medium, self.search_context_size_high)
        dearest = max((price for price in sizes if price is not None), default=None)
        if dearest is None:
            return None
        low, medium, high = (picousd(dearest if price is None else price) for price in sizes)
        return low, medium, high


def _for_each_size(value: Any) -> Any:
    """LiteLLM takes one number as well, for every size."""
    return dict.fromkeys(SearchPrices.model_fields, value) if isinstance(value, int | float | str | Decimal) else value


class PriceKeys(BaseModel):
    """The keys that say what a model costs. Absent ones are not known; `free: true` says that a model costs nothing on purpose."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    input_cost_per_token: Price | None = None
    output_cost_per_token: Price | None = None
    cache_read_input_token_cost: Price | None = None
    cache_creation_input_token_cost: Price | None = None
    cache_creation_input_token_cost_above_1hr: Price | None = None
    output_cost_per_reasoning_token: Price | None = None
    input_cost_per_token_batches: Price | None = None
    output_cost_per_token_batches: Price | None = None
    input_cost_per_request: Price | None = None
    input_cost_per_query: Price | None = None
    input_cost_per_audio_token: Price | None = None
    output_cost_per_audio_token: Price | None = None
    # One call that may run code at the provider's.
    code_interpreter_cost_per_session: Price | None = None
    search_context_cost_per_query: Annotated[SearchPrices | None, BeforeValidator(_for_each_size)] = None
    free: bool = False

    def tiers(self) -> dict[int, dict[str, Decimal]]:
        """Prices above a length of the prompt, by that length in tokens. Raises ValueError for what is no price."""
        found: dict[int, dict[str, Decimal]] = {}
        for key, value in (self.model_extra or {}).items():
            match = _TIERED.match(key)
            if match and value is not None:
                try:
                    price = Decimal(repr(value) if isinstance(value, float) else str(value))
                except InvalidOperation:
                    raise ValueError(f"{key} is not a price") from None
                if not price.is_finite() or not 0 <= price <= 1000:
                    raise ValueError(f"{key} is not a price")
                found.setdefault(int(match[2]) * 1000, {})[match[1]] = price
        return found

    def unknown(self) -> list[str]:
        """Keys that mean nothing here."""
        return sorted(key for key in self.model_extra or () if not _TIERED.match(key))


def prices_of(keys: Iterable[PriceKeys], *, output_needed: bool) -> Prices:
    """The price that the first of several sources names, key by key. Without an input price, or an output price where one is
    needed, it is not known. Raises ValueError.
    """
    sources = list(keys)

    def first(name: str) -> Any:
        return next((value for source in sources if (value := getattr(source, name)) is not None), None)

    if any(source.free for source in sources):
        return Prices(known=True)
    paid_in, paid_out = first("input_cost_per_token"), first("output_cost_per_token")
    per_request = first("input_cost_per_request")
    if per_request is None:
        per_request = first("input_cost_per_query")
    known = (paid_in is not None or per_request is not None) and (paid_out is not None or not output_needed)
    named = {name: first(name) for name in PriceKeys.model_fields if name not in ("free", "search_context_cost_per_query")}
    base = _prices(named, known, picousd(per_request or Decimal(0)), first("search_context_cost_per_query"))
    tiers = next((found for source in sources if (found := source.tiers())), {})
    return _tiered(base, named, sorted(tiers.items()))


def _tiered(base: Prices, named: Mapping[str, Decimal | None], tiers: list[tuple[int, dict[str, Decimal]]]) -> Prices:
    if not tiers:
        return base
    (bound, changed), *rest = tiers
    higher = {**named, **changed}
    above = _tiered(_prices(higher, base.known, base.per_request), higher, rest)
    return replace(base, above_tokens=bound, above=above)


def _extra_prices(named: Mapping[str, Decimal | None], searches: SearchPrices | None) -> ExtraPrices:
    audio_in, audio_out, session = (
        None if (price := named.get(name)) is None else picousd(price)
        for name in ("input_cost_per_audio_token", "output_cost_per_audio_token", "code_interpreter_cost_per_session")
    )
    found = ExtraPrices(audio_in, audio_out, None if searches is None else searches.by_size(), session)
    return NO_EXTRA_PRICES if found == NO_EXTRA_PRICES else found


def _prices(named: Mapping[str, Decimal | None], known: bool, per_request: int, searches: SearchPrices | None = None) -> Prices:
    def pico(name: str, otherwise: int = 0) -> int:
        value = named.get(name)
        return otherwise if value is None else picousd(value)

    price_in, price_out = pico("input_cost_per_token"), pico("output_cost_per_token")
    return Prices(
        input=price_in,
        output=price_out,
        cached_input=pico("cache_read_input_token_cost", price_in),
        reasoning=pico("output_cost_per_reasoning_token", price_out),
        known=known,
        cache_write=pico("cache_creation_input_token_cost", price_in),
        batch_input=pico("input_cost_per_token_batches"),
        batch_output=pico("output_cost_per_token_batches"),
        per_request=per_request,
        cache_write_1h=pico("cache_creation_input_token_cost_above_1hr"),
        extras=_extra_prices(named, searches),
    )


def parse_table(data: Any, name: str) -> dict[str, PriceKeys]:
    """The price table. Raises ConfigProblem with all that is wrong; entries of other kinds (LiteLLM's sample_spec) are skipped."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise ConfigProblem([f"{name}: must map models to prices"])
    found: dict[str, PriceKeys] = {}
    problems: list[str] = []
    for model, keys in data.items():
        if model == "sample_spec":
            continue
        if not isinstance(keys, Mapping):
            problems.append(f"{name}: {str(model)[:100]}: must be a mapping of prices")
            continue
        try:
            found[str(model)] = PriceKeys.model_validate({key: value for key, value in keys.items() if "cost" in str(key) or key == "free"})
            found[str(model)].tiers()
        except ValueError as error:
            problems.append(f"{name}: {str(model)[:100]}: {_first_line(error)}")
    if problems:
        raise ConfigProblem(problems)
    return found


def _first_line(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in errors())


def zeroed(old: Registry, new: Registry, free: Collection[str] = ()) -> list[str]:
    """The deployments and entries of the price table whose known price a new configuration would make nothing, a line each.

    A price that vanishes by a slip of the hand would make every budget endless; who means it writes `free: true`, as the `free` entries
    of the table have it.
    """
    before = {d.id: d for group in (*old.groups.values(), *old.wildcards) for d in group.deployments}
    found = _zeroed_entries(old, new, free)
    for group in (*new.groups.values(), *new.wildcards):
        for deployment in group.deployments:
            known = before.get(deployment.id)
            if known is None or not known.prices.known or known.prices.free or deployment.free:
                continue
            now, was = deployment.prices, known.prices
            extras = now.extras.named()
            gone = [name for name, price in was.extras.named().items() if price and not extras.get(name)]
            if not now.known or now.free or (was.input and not now.input) or (was.output and not now.output) or gone:
                found.append(
                    f"models.yaml: {group.name} ({deployment.model}): its price would become 0; write free: true where that is meant"
                )
    return found


def _zeroed_entries(old: Registry, new: Registry, free: Collection[str]) -> list[str]:
    """The same for models behind patterns, whose prices are looked up at the time of the call. Entries may go, not all at once."""
    if not new.wildcards:
        return []
    priced = [name for name, prices in old.price_table.items() if prices.known and not prices.free]
    if priced and not new.price_table and not all(d.prices.known for group in new.wildcards for d in group.deployments):
        return ["prices: the price table would be empty, and models behind patterns would cost nothing"]
    there = [name for name in priced if name in new.price_table and name not in free]
    return [
        f"prices: {name}: its price would become 0; write free: true where that is meant"
        for name in there
        if new.price_table[name].free or not new.price_table[name].known
    ]
