"""Rankings without a model: a document is as relevant as it shares words with the query."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.simulator import matching, tokens
from services.simulator.faults import Faults
from services.simulator.openai_wire import simulated_failure
from services.simulator.plans import BodyPlan, body_plan, error_plan
from services.simulator.refusals import Refused
from services.simulator.scalars import is_model_name

MAX_DOCUMENTS = 2_048


@dataclass(frozen=True, slots=True)
class RerankRequest:
    """A valid request, in the shape that Cohere and Jina share."""

    model: str
    query: str
    documents: tuple[str, ...]
    top_n: int
    return_documents: bool

    @property
    def prompt_tokens(self) -> int:
        """What the request is billed for: the query once for each document, as Jina counts."""
        asked = tokens.count_prompt(self.query)
        return sum(asked + tokens.count_prompt(document) for document in self.documents)


def parse_rerank(body: Mapping[str, Any]) -> RerankRequest:
    """Check a rerank request; raises Refused (400)."""
    model, query = body.get("model"), body.get("query")
    if not is_model_name(model):
        raise Refused("you must provide a model parameter", param="model")
    if not isinstance(query, str) or not query:
        raise Refused("'query' must be a string that is not empty.", param="query")
    documents = body.get("documents")
    if not isinstance(documents, list) or not 1 <= len(documents) <= MAX_DOCUMENTS:
        raise Refused(f"'documents' must be a list of 1 to {MAX_DOCUMENTS} documents.", param="documents")
    texts = [item.get("text") if isinstance(item, dict) else item for item in documents]
    top_n = body.get("top_n")
    if top_n is not None and (isinstance(top_n, bool) or not isinstance(top_n, int) or top_n < 1):
        raise Refused("'top_n' must be a whole number from 1.", param="top_n")
    shown = body.get("return_documents")
    if shown is not None and not isinstance(shown, bool):
        raise Refused("'return_documents' must be a boolean.", param="return_documents")
    checked = tuple(text for text in texts if isinstance(text, str))
    if len(checked) != len(texts):
        raise Refused("'documents' must be strings or objects with a 'text'.", param="documents")
    return RerankRequest(model, query, checked, min(top_n or len(checked), len(checked)), shown is True)


def ranked(request: RerankRequest) -> list[tuple[int, float]]:
    """Index and score of the best documents, the best first; equal ones in the order they came."""
    asked = _terms(request.query)
    scores = [(index, _score(asked, _terms(document))) for index, document in enumerate(request.documents)]
    return sorted(scores, key=lambda scored: -scored[1])[: request.top_n]


def _terms(text: str) -> frozenset[str]:
    words = [matching.stem(word) for word in matching.words(text)]
    return frozenset(word for word in words if word not in matching.STOPWORDS) or frozenset(words)


def _score(asked: frozenset[str], found: frozenset[str]) -> float:
    """Dice's coefficient of the two sets of words."""
    both = len(asked) + len(found)
    return round(2 * len(asked & found) / both, 6) if both else 0.0


def rerank_body(request: RerankRequest, answer_id: str, model: str, best: Sequence[tuple[int, float]], faults: Faults) -> BodyPlan:
    """The body of the answer: what Cohere's clients read and what Jina's do."""
    if "error_body" in faults:
        return error_plan(simulated_failure())
    results: list[dict[str, Any]] = []
    for index, score in [] if "empty_choices" in faults else best:
        result: dict[str, Any] = {"index": index, "relevance_score": score}
        if request.return_documents:
            result["document"] = {"text": request.documents[index]}
        results.append(result)
    answer: dict[str, Any] = {"id": answer_id, "object": "list", "model": model, "results": results}
    usage_sent = "missing_usage" not in faults
    if usage_sent:
        told = 0 if "usage_zero" in faults else request.prompt_tokens
        answer["usage"] = {"total_tokens": told, "prompt_tokens": told}
        answer["meta"] = {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
    return body_plan(orjson.dumps(answer), usage_sent, None, faults)
