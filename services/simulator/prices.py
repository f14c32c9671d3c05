"""The simulator's own price table, in integers of nano-USD a token. It is what `/sim/log` bills by."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Model:
    """One model on offer. Prices in nano-USD a token (150 = $0.15 a million tokens)."""

    name: str
    input_nanousd: int
    output_nanousd: int
    context_tokens: int
    embeds: bool = False


_MODELS = (
    Model("sim-1", input_nanousd=150, output_nanousd=600, context_tokens=128_000),
    Model("sim-2", input_nanousd=500, output_nanousd=1_500, context_tokens=128_000),
    Model("sim-embed", input_nanousd=20, output_nanousd=0, context_tokens=8_192, embeds=True),
)

MODELS: Mapping[str, Model] = {model.name: model for model in _MODELS}
"""The models that `/v1/models` lists. Any other name is served as well, at the price of `sim-1`."""


def model_named(name: str) -> Model:
    """The table's row for `name`; an unlisted name gets the row of `sim-1` under its own name."""
    known = MODELS.get(name)
    if known is not None:
        return known
    default = MODELS["sim-1"]
    return Model(name, default.input_nanousd, default.output_nanousd, default.context_tokens)


def bill_nanousd(model: Model, prompt_tokens: int, completion_tokens: int) -> int:
    """What a call costs, in nano-USD."""
    return prompt_tokens * model.input_nanousd + completion_tokens * model.output_nanousd
