"""Embeddings without a model: hashed bags of words and word pairs, the same for the same text everywhere.

Texts that share words are near each other by cosine, which is all that tests of retrieval need (Weinberger et al.,
"Feature Hashing for Large Scale Multitask Learning", 2009).
"""

import base64
import math
import zlib
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.simulator import matching, tokens
from services.simulator.refusals import Refused
from services.simulator.scalars import is_model_name

DEFAULT_DIMENSIONS = 256
MAX_DIMENSIONS = 4_096
MAX_INPUTS = 2_048
_PAIR_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A valid request. `inputs` are texts; token ids come as texts of numbers."""

    model: str
    inputs: tuple[str, ...]
    dimensions: int
    as_base64: bool

    @property
    def prompt_tokens(self) -> int:
        """What the request is billed for."""
        return sum(tokens.count_prompt(text) for text in self.inputs)


def parse_embeddings(body: Mapping[str, Any]) -> EmbeddingsRequest:
    """Check an embeddings request; raises Refused (400)."""
    model = body.get("model")
    if not is_model_name(model):
        raise Refused("you must provide a model parameter", param="model")
    dimensions = body.get("dimensions")
    if dimensions is None:
        dimensions = DEFAULT_DIMENSIONS
    if isinstance(dimensions, bool) or not isinstance(dimensions, int) or not 1 <= dimensions <= MAX_DIMENSIONS:
        raise Refused(f"'dimensions' must be a whole number from 1 to {MAX_DIMENSIONS}.", param="dimensions")
    encoding = body.get("encoding_format")
    if encoding not in (None, "float", "base64"):
        raise Refused("'encoding_format' must be float or base64.", param="encoding_format")
    return EmbeddingsRequest(model, _inputs(body.get("input")), dimensions, encoding == "base64")


def _inputs(value: Any) -> tuple[str, ...]:
    if isinstance(value, str) or (isinstance(value, list) and value and all(_is_token(item) for item in value)):
        value = [value]
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_INPUTS:
        raise Refused(f"'input' must be a string, or an array of 1 to {MAX_INPUTS} strings or token arrays.", param="input")
    texts = []
    for item in value:
        if isinstance(item, list) and item and all(_is_token(token) for token in item):
            item = " ".join(map(str, item))
        if not isinstance(item, str) or not item:
            raise Refused("'input' must hold strings or token arrays, none empty.", param="input")
        texts.append(item)
    return tuple(texts)


def _is_token(item: Any) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and item >= 0


def embed(text: str, dimensions: int) -> array:
    """A unit vector of 32-bit floats; a text without a word gets the first axis."""
    vector = [0.0] * dimensions
    previous = ""
    for word in map(matching.stem, matching.words(text)):
        if word not in matching.STOPWORDS:
            _add(vector, word, 1.0)
        if previous:
            _add(vector, f"{previous} {word}", _PAIR_WEIGHT)
        previous = word
    length = math.sqrt(sum(value * value for value in vector))
    if not length:
        vector[0] = length = 1.0
    return array("f", [value / length for value in vector])


def _add(vector: list[float], feature: str, weight: float) -> None:
    hashed = zlib.crc32(feature.encode())
    # A bit that the index does not use gives the sign, so that collisions cancel out on average.
    vector[(hashed >> 1) % len(vector)] += weight if hashed & 1 else -weight


def encoded(vector: array, as_base64: bool) -> str | list[float]:
    """The vector as a client asked for it: numbers, or base64 of little-endian 32-bit floats."""
    if not as_base64:
        return vector.tolist()
    if array("H", [1]).tobytes() == b"\x00\x01":
        vector = array("f", vector)
        vector.byteswap()
    return base64.b64encode(vector.tobytes()).decode()
