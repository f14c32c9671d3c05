"""POST /v1/embeddings."""

import base64
import time
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.model_port.answers import answer_headers, request_model
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.model_port.terms import terms_of
from services.llm_gateway.request_rules import check_tokens
from services.llm_gateway.results import EmbedCall, Embedded, ModelCalls

MAX_INPUTS = 2_048


class EmbeddingsSurface:
    """Embeddings."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """The one route."""
        return [Route("POST", "/v1/embeddings", self.embed)]

    async def embed(self, exchange: Exchange) -> None:
        """Answers one request. Raises domain errors."""
        body, _ = await exchange.json()
        model = request_model(body)
        _check(body)
        embedded = await self._calls.embed(EmbedCall(model, body, terms=terms_of(exchange.headers)))
        raw = embedded.vectors.raw
        if raw is None:
            raw = _rendered(embedded, base64_wanted=body.get("encoding_format") == "base64")
        await exchange.answer(200, raw, answer_headers(embedded.outcome, exchange.began, embedded.notices))


def _check(body: dict[str, Any]) -> None:
    given = body.get("input")
    if not isinstance(given, str | list) or not given:
        raise InvalidInput.field("input", "must be a text, or a list of texts or tokens, and not empty")
    if isinstance(given, list):
        texts = all(isinstance(entry, str) and entry for entry in given)
        tokens = all(map(_is_int, given))
        token_lists = all(isinstance(entry, list) and entry and all(map(_is_int, entry)) for entry in given)
        if not texts and not tokens and not token_lists:
            raise InvalidInput.field("input", "must hold texts that are not empty, or tokens")
        if not texts:
            check_tokens([given] if tokens else given, "input")
        if not tokens and len(given) > MAX_INPUTS:
            raise InvalidInput.field("input", f"must hold at most {MAX_INPUTS} entries")
    if body.get("encoding_format") not in (None, "float", "base64"):
        raise InvalidInput.field("encoding_format", "must be float or base64")
    dimensions = body.get("dimensions")
    if dimensions is not None and (not _is_int(dimensions) or dimensions < 1):
        raise InvalidInput.field("dimensions", "must be an integer of at least 1")
    if not isinstance(body.get("user"), str | None):
        raise InvalidInput.field("user", "must be a string")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _rendered(embedded: Embedded, *, base64_wanted: bool) -> bytes:
    entries = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if base64_wanted else vector.tolist(),
        }
        for index, vector in enumerate(embedded.vectors.vectors)
    ]
    tokens = embedded.outcome.usage.input
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    model = embedded.outcome.provider_model
    return orjson.dumps({"object": "list", "data": entries, "model": model, "usage": usage, "created": int(time.time())})
