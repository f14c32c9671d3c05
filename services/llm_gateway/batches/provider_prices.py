"""What a provider's batch costs: the registry names prices for the tokens of prompt and answer, the rest follows from them. Pure."""

from dataclasses import replace
from enum import Enum

from services.llm_gateway.money import Prices


class Cached(Enum):
    """What a batch costs of a prompt that the provider has cached: as much as other tokens of it, as much less as those are than outside of
    a batch, or what it costs outside.
    """

    AS_INPUT = "as_input"
    REDUCED = "reduced"
    OUTSIDE = "outside"


def batch_prices(prices: Prices, cached: Cached) -> Prices:
    """The prices of a batch in place of those of single calls, in each tier that names some."""
    above = None if prices.above is None else batch_prices(prices.above, cached)
    if not (prices.batch_input or prices.batch_output):
        return replace(prices, above=above)
    entry, answer = prices.batch_input, prices.batch_output
    read, write, longer = entry, entry, entry
    if cached is Cached.REDUCED:
        read, write = _share(prices.cached_input, entry, prices.input), _share(prices.cache_write or prices.input, entry, prices.input)
        # Twice the input's is what Anthropic takes where no price is named.
        longer = _share(prices.cache_write_1h or 2 * prices.input, entry, prices.input)
    elif cached is Cached.OUTSIDE:
        # Never more than a token that is not cached: where no price is named for reads, the registry has the input's.
        read = min(prices.cached_input, entry)
    return replace(
        prices,
        input=entry,
        output=answer,
        cached_input=read,
        cache_write=write,
        cache_write_1h=longer,
        reasoning=max(answer, _share(prices.reasoning, answer, prices.output)),
        above=above,
        batch_input=0,
        batch_output=0,
    )


def _share(price: int, batch: int, whole: int) -> int:
    """A price reduced as the batch's is, rounded up."""
    return -(-price * batch // whole) if whole else price
