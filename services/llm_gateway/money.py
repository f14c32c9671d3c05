"""Prices and costs in integers. Internally pico-USD: $0.0375 a million cached tokens is 37.5 nano-USD a token."""

from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal

PICO_PER_USD = 10**12
PICO_PER_MICRO = 10**6


def picousd(usd: Decimal) -> int:
    """US dollars as pico-USD, rounded up."""
    return int((usd * PICO_PER_USD).to_integral_value(rounding=ROUND_CEILING))


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices of one deployment in pico-USD a token. `known` is False where the registry names none: the call costs 0."""

    input: int = 0
    output: int = 0
    cached_input: int = 0
    reasoning: int = 0
    known: bool = False


UNPRICED = Prices()


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one attempt or of a whole call, and what they cost in pico-USD.

    `cached_input` is a part of `input`, `reasoning` a part of `output`. `estimated` says that a provider sent no usage
    and that these are our own upper bounds.
    """

    input: int = 0
    output: int = 0
    cached_input: int = 0
    reasoning: int = 0
    cost_picousd: int = 0
    estimated: bool = False

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
        )


NOTHING = Usage()


def priced(prices: Prices, input_tokens: int, output_tokens: int, cached: int = 0, reasoning: int = 0, *, estimated: bool = False) -> Usage:
    """Usage with its cost. Parts that exceed their whole are cut to it, so that a cost can never be negative."""
    cached, reasoning = min(cached, input_tokens), min(reasoning, output_tokens)
    cost = (
        (input_tokens - cached) * prices.input
        + cached * prices.cached_input
        + (output_tokens - reasoning) * prices.output
        + reasoning * prices.reasoning
    )
    return Usage(input_tokens, output_tokens, cached, reasoning, cost, estimated)
