"""POST /v1/rerank, in the shape that Cohere, Jina and vLLM share."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.model_port.answers import answer_headers, request_model
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.responses_shape import new_id
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.model_port.terms import terms_of
from services.llm_gateway.results import ModelCalls, Ranked, RerankCall

MAX_DOCUMENTS = 1_000
_OWN = frozenset({"model", "documents", "return_documents"})


class RerankSurface:
    """Rankings. Cohere's SDK asks at /v2/rerank."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """One handler at the paths that clients use."""
        return [Route("POST", path, self.rerank) for path in ("/v1/rerank", "/v2/rerank", "/rerank")]

    async def rerank(self, exchange: Exchange) -> None:
        """Answers one request. Raises domain errors."""
        body, _ = await exchange.json()
        model = request_model(body)
        texts = _texts(body)
        with_documents = body.get("return_documents")
        if not isinstance(with_documents, bool | None):
            raise InvalidInput.field("return_documents", "must be a boolean")
        asked = {name: value for name, value in body.items() if name not in _OWN and value is not None}
        ranked = await self._calls.rerank(RerankCall(model, {**asked, "documents": texts}, terms=terms_of(exchange.headers)))
        made = _answer(ranked, texts, body.get("top_n"), with_documents=bool(with_documents))
        await exchange.answer(200, orjson.dumps(made), answer_headers(ranked.outcome, exchange.began, ranked.notices))


def _texts(body: Mapping[str, Any]) -> list[str]:
    query, documents, top = body.get("query"), body.get("documents"), body.get("top_n")
    if not isinstance(query, str) or not query:
        raise InvalidInput.field("query", "must be a text that is not empty")
    if not isinstance(documents, list) or not documents:
        raise InvalidInput.field("documents", "must be a list that is not empty")
    if len(documents) > MAX_DOCUMENTS:
        raise InvalidInput.field("documents", f"must hold at most {MAX_DOCUMENTS} documents")
    if top is not None and (not isinstance(top, int) or isinstance(top, bool) or top < 1):
        raise InvalidInput.field("top_n", "must be an integer of at least 1")
    if body.get("rank_fields"):
        raise InvalidInput("rank_fields: not supported: documents are ranked by their text", reason="UNSUPPORTED_PARAMETER",
                           metadata={"param": "rank_fields"})  # fmt: skip
    found = []
    for number, document in enumerate(documents):
        text = document.get("text") if isinstance(document, Mapping) else document
        if not isinstance(text, str) or not text:
            raise InvalidInput.field(f"documents[{number}]", "must be a text, or an object with a text, that is not empty")
        found.append(text)
    return found


def _answer(ranked: Ranked, texts: list[str], top: int | None, *, with_documents: bool) -> dict[str, Any]:
    ranking, outcome = ranked.ranking, ranked.outcome
    results = []
    for index, score in ranking.ranked[:top]:
        shown = {"document": {"text": texts[index]}} if with_documents else {}
        results.append({"index": index, "relevance_score": score, **shown})
    tokens = outcome.usage.input
    meta: dict[str, Any] = {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}}
    if ranking.search_units:
        meta["billed_units"] = {"search_units": ranking.search_units}
    return {
        "id": outcome.response_id or new_id("rerank"),
        "object": "list",
        "model": outcome.provider_model,
        "results": results,
        "meta": meta,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
