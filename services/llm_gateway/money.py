"""Prices and costs in integers. Internally pico-USD: $0.0375 a million cached tokens is 37.5 nano-USD a token."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

PICO_PER_USD = 10**12
PICO_PER_MICRO = 10**6
PICO_PER_NANO = 10**3
# More than any call comes to. What is above it was miscounted, as a number below 0 is that was written without its sign.
MOST_COUNTED = 10**9


def picousd(usd: Decimal) -> int:
    """US dollars as pico-USD, rounded up."""
    return int((usd * PICO_PER_USD).to_integral_value(rounding=ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class ExtraPrices:
    """What is billed beside tokens of text, in pico-USD; None where no price is named, which is not the same as 0.

    `searches` is one search of the provider's own, by the size of its context: low, medium, high. `session` is a call that may run code
    at the provider's. The audio prices are for a token.
    """

    audio_input: int | None = None
    audio_output: int | None = None
    searches: tuple[int, int, int] | None = None
    session: int | None = None

    def named(self) -> dict[str, int]:
        """The prices that are named, those of searches as the highest of them."""
        found = {"audio_input": self.audio_input, "audio_output": self.audio_output, "session": self.session}
        found["searches"] = None if self.searches is None else max(self.searches)
        return {name: price for name, price in found.items() if price is not None}


NO_EXTRA_PRICES = ExtraPrices()


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of one deployment in pico-USD a token. `known` is False where the registry names none: the call costs 0.

    `cached_input` is a prompt token read from the provider's cache, `cache_write` one written to it, and `cache_write_1h` one written
    for an hour, 0 where no price is named for it. The `batch_*` prices are
    those of the provider's batch API, 0 where it has none. `per_request` is added to each call. `above` holds in place of these for
    a call whose prompt is longer than `above_tokens`. `extras` are the prices of what is no text.
    """

    input: int = 0
    output: int = 0
    cached_input: int = 0
    reasoning: int = 0
    known: bool = False
    cache_write: int = 0
    batch_input: int = 0
    batch_output: int = 0
    per_request: int = 0
    above_tokens: int = 0
    above: "Prices | None" = None
    cache_write_1h: int = 0
    extras: ExtraPrices = NO_EXTRA_PRICES

    @property
    def free(self) -> bool:
        """Whether nothing that a call does costs anything."""
        return not (self.highest_input or self.highest_output or self.per_request or any(self.extras.named().values()))

    @property
    def highest_input(self) -> int:
        """The most that a prompt token can cost."""
        return max(self.input, self.cached_input, self.cache_write, self.cache_write_1h)

    @property
    def highest_output(self) -> int:
        """The most that a token of the answer can cost."""
        return max(self.output, self.reasoning)

    def for_prompt(self, input_tokens: int) -> "Prices":
        """The prices that hold for a prompt of this length."""
        prices = self
        while prices.above is not None and input_tokens > prices.above_tokens:
            prices = prices.above
        return prices

    def bound_nanousd(self, input_tokens: int, output_tokens: int) -> int:
        """The most that a call of so many tokens can cost, in nano-USD, rounded up."""
        picousd = input_tokens * self.highest_input + output_tokens * self.highest_output + self.per_request
        bound = -(-picousd // PICO_PER_NANO)
        if self.above is None or input_tokens <= self.above_tokens:
            return bound
        return max(bound, self.above.bound_nanousd(input_tokens, output_tokens))


UNPRICED = Prices()


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Usage:
    """Tokens of one attempt or of a whole call, and what they cost in pico-USD.

    `cached_input` and `cache_write` are parts of `input`, `reasoning` a part of `output`. `estimated` says that a provider sent no usage
    and that these are our own upper bounds.
    """

    input: int = 0
    output: int = 0
    cached_input: int = 0
    reasoning: int = 0
    cost_picousd: int = 0
    estimated: bool = False
    cache_write: int = 0

    @property
    def cost_nanousd(self) -> int:
        """The cost in nano-USD, the unit of the ledger, rounded up."""
        return -(-self.cost_picousd // PICO_PER_NANO)

    @property
    def cost_microusd(self) -> int:
        """The cost in micro-USD, rounded up: a call is never recorded as cheaper than it was."""
        return -(-self.cost_picousd // PICO_PER_MICRO)

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.input + other.input,
            self.output + other.output,
            self.cached_input + other.cached_input,
            self.reasoning + other.reasoning,
            self.cost_picousd + other.cost_picousd,
            self.estimated or other.estimated,
            self.cache_write + other.cache_write,
        )


NOTHING = Usage()


def priced(
    prices: Prices,
    input_tokens: int,
    output_tokens: int,
    cached: int = 0,
    reasoning: int = 0,
    *,
    cache_write: int = 0,
    cache_write_1h: int = 0,
    estimated: bool = False,
    batch: bool = False,
) -> Usage:
    """Usage with its cost. Parts that exceed their whole are cut to it, so that a cost can never be negative.

    `cache_write_1h` is the part of `cache_write` that is kept for an hour. With `batch` the batch prices hold where the deployment has
    them.
    """
    cached, reasoning = min(cached, input_tokens), min(reasoning, output_tokens)
    cache_write = min(cache_write, input_tokens - cached)
    longer = min(cache_write_1h, cache_write)
    prices = prices.for_prompt(input_tokens)
    if batch and (prices.batch_input or prices.batch_output):
        cost = input_tokens * prices.batch_input + output_tokens * prices.batch_output
    else:
        cost = (
            (input_tokens - cached - cache_write) * prices.input
            + cached * prices.cached_input
            + (cache_write - longer) * (prices.cache_write or prices.input)
            + longer * (prices.cache_write_1h or 2 * prices.input)  # twice the input's is what Anthropic takes
            + (output_tokens - reasoning) * prices.output
            + reasoning * prices.reasoning
        )
    return Usage(input_tokens, output_tokens, cached, reasoning, cost + prices.per_request, estimated, cache_write)
