"""The OpenAI API as a dialect: OpenAI, vLLM, the simulator, and any base URL in their likeness. Pure translation."""

import base64
import binascii
import time
from array import array
from collections.abc import Mapping
from typing import Any

from services.llm_gateway.adapters.openai_fields import fitted, query_of
from services.llm_gateway.chat import Answer, ChunkReader, malformed, parse_answer, parsed, plain_failure, request_json, text_of
from services.llm_gateway.failures import Failure, FailureClass, classify, error_of
from services.llm_gateway.messages_plain import plain
from services.llm_gateway.ports import Attempt, Ranking, Vectors, WireRequest
from services.llm_gateway.retry_after import retry_after_s


class OpenAiDialect:
    """Requests go out as they are, with the deployment's key and headers; answers are read as they come."""

    def chat(self, attempt: Attempt, *, stream: bool) -> WireRequest:
        """POST /chat/completions. `stream` stands in the body already."""
        return _request(attempt, "/chat/completions", fitted(plain(attempt.body, attempt.deployment), attempt.deployment))

    def read_answer(self, raw: bytes) -> Answer:
        """A whole completion."""
        return parse_answer(raw)

    def reader(self) -> ChunkReader:
        """A reader of `data:` events."""
        return ChunkReader()

    def embed(self, attempt: Attempt) -> WireRequest:
        """POST /embeddings."""
        return _request(attempt, "/embeddings")

    def read_vectors(self, raw: bytes) -> Vectors:
        """Embeddings as lists of numbers, or base64 of little-endian float32."""
        data = parsed(raw, plain_failure)
        entries = data.get("data") if isinstance(data, dict) else None
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise malformed("the body has no embeddings")
        if all(isinstance(entry.get("index"), int) for entry in entries):
            entries = sorted(entries, key=lambda entry: entry["index"])
        vectors = [_vector(entry.get("embedding")) for entry in entries]
        return Vectors(vectors, _tokens(data.get("usage"), "prompt_tokens"), text_of(data.get("model")), raw)

    def rerank(self, attempt: Attempt) -> WireRequest:
        """POST /rerank, which OpenAI lacks and vLLM, Jina and Cohere share."""
        return _request(attempt, "/rerank")

    def read_ranking(self, raw: bytes) -> Ranking:
        """`results` of {index, relevance_score}; usage as Jina's and vLLM's `usage.total_tokens`, or Cohere's `meta.billed_units`."""
        data = parsed(raw, plain_failure)
        results = data.get("results") if isinstance(data, dict) else None
        if not isinstance(results, list):
            raise malformed("the body has no results")
        ranked = sorted((_ranked(entry) for entry in results), key=lambda pair: -pair[1])
        meta = data.get("meta")
        billed = meta.get("billed_units") if isinstance(meta, Mapping) else None
        tokens = _tokens(data.get("usage"), "total_tokens")
        if tokens is None:
            tokens = _tokens(billed, "input_tokens")
        return Ranking(ranked, tokens, text_of(data.get("model")), _tokens(billed, "search_units") or 0)

    def failure(self, status: int, body: bytes, headers: Mapping[str, str]) -> Failure:
        """By OpenAI's error object, else by the status alone."""
        error = error_of(body)
        if status == 200 and error is None:
            return Failure(FailureClass.MALFORMED, "the answer is of no known shape", status)
        return classify(status, error, retry_after_s(headers, time.time()))


def _request(attempt: Attempt, path: str, body: Mapping[str, Any] | None = None) -> WireRequest:
    deployment = attempt.deployment
    headers = {"content-type": "application/json", **deployment.headers}
    if deployment.api_key:
        headers["authorization"] = f"Bearer {deployment.api_key}"
    return WireRequest(deployment.api_base + path + query_of(deployment), headers, request_json(attempt.body if body is None else body))


def _tokens(holder: Any, name: str) -> int | None:
    value = holder.get(name) if isinstance(holder, Mapping) else None
    return int(value) if isinstance(value, int | float) and value >= 0 else None


def _ranked(entry: Any) -> tuple[int, float]:
    index, score = (entry.get("index"), entry.get("relevance_score")) if isinstance(entry, Mapping) else (None, None)
    if not isinstance(index, int) or isinstance(index, bool) or index < 0 or not isinstance(score, int | float):
        raise malformed("a result has no index or no relevance_score")
    return index, float(score)


def _vector(value: Any) -> array:
    try:
        if isinstance(value, str):
            found = array("f")
            found.frombytes(base64.b64decode(value, validate=True))
            return found
        return array("f", value)
    except (TypeError, ValueError, OverflowError, binascii.Error):
        raise malformed("an embedding is no vector") from None
