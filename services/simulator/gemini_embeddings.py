"""Gemini's embeddings: one content, or a batch of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.simulator import tokens
from services.simulator.embeddings import DEFAULT_DIMENSIONS, MAX_DIMENSIONS, MAX_INPUTS
from services.simulator.faults import Faults
from services.simulator.gemini_request import named
from services.simulator.gemini_wire import simulated_failure
from services.simulator.plans import BodyPlan, body_plan, error_plan
from services.simulator.refusals import Refused

_FIELDS_TEXT = "model content taskType title outputDimensionality embedContentConfig autoTruncate"
_FIELDS = frozenset(_FIELDS_TEXT.split())


@dataclass(frozen=True, slots=True)
class GeminiEmbeddings:
    """A valid request: a text and a number of dimensions for each vector."""

    inputs: tuple[str, ...]
    sizes: tuple[int, ...]

    @property
    def prompt_tokens(self) -> int:
        """What the request is billed for."""
        return sum(tokens.count_prompt(text) for text in self.inputs)


def parse_embed(body: Mapping[str, Any], model: str) -> GeminiEmbeddings:
    """Check an embedContent request; raises Refused (400)."""
    text, size = _one(body, "EmbedContentRequest")
    return GeminiEmbeddings((text,), (size,))


def parse_batch(body: Mapping[str, Any], model: str) -> GeminiEmbeddings:
    """Check a batchEmbedContents request; raises Refused (400)."""
    requests = named(body, None, "").get("requests")
    if not isinstance(requests, list) or not 1 <= len(requests) <= MAX_INPUTS:
        raise Refused(f"* BatchEmbedContentsRequest.requests: must be a list of 1 to {MAX_INPUTS} requests")
    read = [_one(item, f"requests[{index}]") for index, item in enumerate(requests)]
    return GeminiEmbeddings(tuple(text for text, _ in read), tuple(size for _, size in read))


def _one(item: Any, where: str) -> tuple[str, int]:
    request = named(item, _FIELDS, where)
    content = named(request.get("content"), None, f"{where}.content")
    parts = content.get("parts")
    if not isinstance(parts, list) or not parts:
        raise Refused(f"* {where}.content: contents is not specified")
    texts = [part.get("text") if isinstance(part, dict) else None for part in parts]
    text = " ".join(one for one in texts if isinstance(one, str))
    if not text or not all(isinstance(one, str) for one in texts):
        raise Refused(f"* {where}.content.parts: only text can be embedded here, and none may be empty")
    config = named(request.get("embedContentConfig"), None, f"{where}.embed_content_config")
    size = request.get("outputDimensionality", config.get("outputDimensionality"))
    if size is None:
        return text, DEFAULT_DIMENSIONS
    if isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_DIMENSIONS:
        raise Refused(f"* {where}.output_dimensionality: must be in the range [1, {MAX_DIMENSIONS}]")
    return text, size


def embeddings_body(vectors: Sequence[list[float]], batch: bool, prompt_tokens: int, faults: Faults) -> BodyPlan:
    """The body of the answer."""
    if "error_body" in faults:
        return error_plan(simulated_failure())
    values = [] if "empty_choices" in faults else [{"values": vector} for vector in vectors]
    answer: dict[str, Any] = {"embeddings": values} if batch else {"embedding": values[0]} if values else {}
    usage_sent = "missing_usage" not in faults
    if usage_sent:
        answer["usageMetadata"] = {"promptTokenCount": 0 if "usage_zero" in faults else prompt_tokens}
    return body_plan(orjson.dumps(answer), usage_sent, None, faults)
