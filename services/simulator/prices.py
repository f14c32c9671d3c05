"""The simulator's own price table, in integers of nano-USD a token. It is what `/sim/log` bills by."""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Model:
    """One model on offer. Prices in nano-USD a token (150 = $0.15 a million tokens).

    `cached_nanousd` is a prompt token read from the cache, `cache_write_nanousd` one written to it, `reasoning_nanousd` a token of
    the answer that is thought. A batch costs half of each.
    """

    name: str
    input_nanousd: int
    output_nanousd: int
    context_tokens: int
    cached_nanousd: int
    cache_write_nanousd: int
    reasoning_nanousd: int
    embeds: bool = False
    ranks: bool = False


_MODELS = (
    Model("sim-1", 150, 600, 128_000, cached_nanousd=30, cache_write_nanousd=188, reasoning_nanousd=600),
    Model("sim-2", 500, 1_500, 128_000, cached_nanousd=50, cache_write_nanousd=626, reasoning_nanousd=2_000),
    Model("sim-embed", 20, 0, 8_192, cached_nanousd=20, cache_write_nanousd=20, reasoning_nanousd=0, embeds=True),
    Model("sim-rerank", 40, 0, 128_000, cached_nanousd=40, cache_write_nanousd=40, reasoning_nanousd=0, ranks=True),
)

MODELS: Mapping[str, Model] = {model.name: model for model in _MODELS}
"""The models that `/v1/models` lists. Any other name is served as well, at the price of `sim-1`."""


def model_named(name: str) -> Model:
    """The table's row for `name`; an unlisted name gets the row of `sim-1` under its own name."""
    known = MODELS.get(name)
    if known is not None:
        return known
    return replace(MODELS["sim-1"], name=name)


def bill_nanousd(
    model: Model,
    prompt_tokens: int,
    completion_tokens: int,
    *,
    cached_tokens: int = 0,
    cache_write_tokens: int = 0,
    reasoning_tokens: int = 0,
    batch: bool = False,
) -> int:
    """What a call costs, in nano-USD. The cached and written tokens are parts of the prompt, the reasoning a part of the completion."""
    whole = (
        (prompt_tokens - cached_tokens - cache_write_tokens) * model.input_nanousd
        + cached_tokens * model.cached_nanousd
        + cache_write_tokens * model.cache_write_nanousd
        + (completion_tokens - reasoning_tokens) * model.output_nanousd
        + reasoning_tokens * model.reasoning_nanousd
    )
    # All prices are even, so that half of them is exact.
    return whole // 2 if batch else whole
