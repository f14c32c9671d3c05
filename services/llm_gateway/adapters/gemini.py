"""Google's Gemini API (generativelanguage.googleapis.com, v1beta) as a dialect: pure translation from and to OpenAI's shape.

What OpenAI has no field for is kept where Gemini's own OpenAI-compatible layer keeps it: thought signatures in
`extra_content.google.thought_signature` of a tool call, or of the message, and thinking in `reasoning_content`.
"""

from array import array
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from services.common.errors import InvalidInput
from services.llm_gateway.adapters.gemini_answer import GeminiReader, read_answer, usage_of
from services.llm_gateway.adapters.gemini_errors import failure_in, failure_of
from services.llm_gateway.adapters.gemini_request import content_body, unfit
from services.llm_gateway.chat import Answer, malformed, parsed, request_json
from services.llm_gateway.failures import Failure
from services.llm_gateway.messages_plain import plain
from services.llm_gateway.ports import Attempt, Ranking, StreamReader, Vectors, WireRequest

BASE = "https://generativelanguage.googleapis.com/v1beta"
# Texts in one batchEmbedContents.
MAX_TEXTS = 100


class GeminiDialect:
    """Requests with an API key in x-goog-api-key."""

    def chat(self, attempt: Attempt, *, stream: bool) -> WireRequest:
        """POST models/{model}:generateContent, or :streamGenerateContent as server-sent events."""
        body = content_body(plain(attempt.body, attempt.deployment), attempt.deployment.model)
        return _request(attempt, "streamGenerateContent?alt=sse" if stream else "generateContent", body)

    def read_answer(self, raw: bytes) -> Answer:
        """A GenerateContentResponse."""
        return read_answer(raw)

    def reader(self) -> StreamReader:
        """A reader for one stream."""
        return GeminiReader()

    def embed(self, attempt: Attempt) -> WireRequest:
        """POST models/{model}:batchEmbedContents. `task_type` and `title` go along."""
        body, model = attempt.body, _path(attempt.deployment.model)
        given = body["input"]
        texts = [given] if isinstance(given, str) else given
        if not all(isinstance(text, str) for text in texts):
            raise InvalidInput.field("input", "this model takes texts, not tokens")
        if len(texts) > MAX_TEXTS:
            raise unfit(f"Gemini embeds at most {MAX_TEXTS} texts in one request")
        shared: dict[str, Any] = {"model": model}
        for name, wanted in (("dimensions", "outputDimensionality"), ("task_type", "taskType"), ("title", "title")):
            if body.get(name) is not None:
                shared[wanted] = body[name]
        requests = [{**shared, "content": {"parts": [{"text": text}]}} for text in texts]
        return _request(attempt, "batchEmbedContents", {"requests": requests})

    def read_vectors(self, raw: bytes) -> Vectors:
        """A BatchEmbedContentsResponse. Older models count no tokens."""
        data = parsed(raw, failure_in)
        entries = data.get("embeddings") if isinstance(data, dict) else None
        if not isinstance(entries, list) or not entries:
            raise malformed("the body has no embeddings")
        usage = usage_of(data.get("usageMetadata"))
        return Vectors([_vector(entry) for entry in entries], None if usage is None else usage["prompt_tokens"], "")

    def rerank(self, attempt: Attempt) -> WireRequest:
        """Refused: this API ranks nothing."""
        raise unfit("Gemini has no API for rankings")

    def read_ranking(self, raw: bytes) -> Ranking:
        """Never called: no ranking is asked for."""
        raise malformed("Gemini has no API for rankings")

    def failure(self, status: int, body: bytes, headers: Mapping[str, str]) -> Failure:
        """By google.rpc.Status and its details, else by the status alone."""
        return failure_of(status, body, headers)


def _path(model: str) -> str:
    return model if model.startswith(("models/", "tunedModels/")) else f"models/{model}"


def _request(attempt: Attempt, method: str, body: Mapping[str, Any]) -> WireRequest:
    deployment = attempt.deployment
    base = deployment.api_base or BASE
    if base.count("/") == 2:  # only scheme and host
        base += "/v1beta"
    headers = {"content-type": "application/json", **deployment.headers}
    if deployment.api_key:
        headers["x-goog-api-key"] = deployment.api_key
    return WireRequest(f"{base}/{quote(_path(deployment.model), safe='/@')}:{method}", headers, request_json(body))


def _vector(entry: Any) -> array:
    try:
        return array("f", entry["values"])
    except (TypeError, KeyError, ValueError, OverflowError):
        raise malformed("an embedding is no vector") from None
