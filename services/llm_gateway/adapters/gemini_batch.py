"""Gemini's batches over files. Source: Gemini API reference, Batch API and Files, v1beta. Implements batches.provider_port.Provider.

Requests go in a file, never inline: a batch with inline requests may have 20 MB, and each look at its state brings all of its answers.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson

from services.llm_gateway.adapters.batch_http import BatchHttp, count_in, text_in
from services.llm_gateway.adapters.batch_lines import answered, failed, plain_call, said
from services.llm_gateway.adapters.gemini import GeminiDialect
from services.llm_gateway.adapters.gemini_answer import usage_of
from services.llm_gateway.adapters.gemini_errors import failure_of
from services.llm_gateway.batches.provider_port import LineResult, ProviderBatch, ProviderFailed, Submission
from services.llm_gateway.batches.provider_prices import Cached, batch_prices
from services.llm_gateway.chat import text_of
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment

LISTED, MOST_PAGES = 100, 20
_STATUS: Mapping[str, str] = {
    "SUCCEEDED": "completed", "PARTIALLY_SUCCEEDED": "completed", "FAILED": "failed", "CANCELLED": "cancelled", "EXPIRED": "expired",
    "CANCELLING": "cancelling", "PENDING": "validating", "QUEUED": "validating",
}  # fmt: skip
# google.rpc.Code by number, with the HTTP status that google.api.http gives it.
_CODES: Mapping[int, tuple[str, int]] = {
    1: ("CANCELLED", 499), 2: ("UNKNOWN", 500), 3: ("INVALID_ARGUMENT", 400), 4: ("DEADLINE_EXCEEDED", 504), 5: ("NOT_FOUND", 404),
    6: ("ALREADY_EXISTS", 409), 7: ("PERMISSION_DENIED", 403), 8: ("RESOURCE_EXHAUSTED", 429), 9: ("FAILED_PRECONDITION", 400),
    10: ("ABORTED", 409), 11: ("OUT_OF_RANGE", 400), 12: ("UNIMPLEMENTED", 501), 13: ("INTERNAL", 500), 14: ("UNAVAILABLE", 503),
    15: ("DATA_LOSS", 500), 16: ("UNAUTHENTICATED", 401),
}  # fmt: skip


class GeminiBatches:
    """Talks to the providers of deployments with the adapter `gemini`."""

    def __init__(self, http: BatchHttp) -> None:
        self._http = http
        self._dialect = GeminiDialect()

    def serves(self, deployment: Deployment, endpoint: str) -> bool:
        """As Provider.serves: content of models that are not tuned."""
        return endpoint == "/v1/chat/completions" and not deployment.model.startswith("tunedModels/")

    def prices(self, deployment: Deployment) -> Prices:
        """As Provider.prices: cached tokens cost what they cost outside of a batch."""
        return batch_prices(deployment.prices, Cached.OUTSIDE)

    def line(self, deployment: Deployment, endpoint: str, label: str, number: int, body: Mapping[str, Any]) -> bytes | None:
        """As Provider.line."""
        request = said(self._dialect, deployment, body)
        return None if request is None else orjson.dumps({"key": str(number), "request": orjson.Fragment(request)})

    async def stage(self, deployment: Deployment, submission: Submission) -> str:
        """As Provider.stage: uploads the file, and answers its name."""
        base, _, headers = self._address(deployment)
        root, _, version = base.rpartition("/")
        async with submission.content() as content:
            size = await asyncio.to_thread(content.seek, 0, 2)
            await asyncio.to_thread(content.seek, 0)
            asked = {
                **headers,
                "content-type": "application/json",
                "x-goog-upload-protocol": "resumable",
                "x-goog-upload-command": "start",
                "x-goog-upload-header-content-length": str(size),
                "x-goog-upload-header-content-type": "application/jsonl",
            }
            about = orjson.dumps({"file": {"displayName": submission.label, "mimeType": "application/jsonl"}})
            async with self._http.answer("POST", f"{root}/upload/{version}/files", asked, about) as answer:
                url = answer.headers.get("x-goog-upload-url", "")
            if not url.startswith(("https://", "http://")):
                raise ProviderFailed("the answer has no address to upload to")
            # The address itself is the permission; the key stays with the host that it is for.
            sent = {"content-length": str(size), "x-goog-upload-offset": "0", "x-goog-upload-command": "upload, finalize"}
            made = await self._http.json("POST", url, sent, content, transfer=True)
        file = made.get("file")
        return text_in(file if isinstance(file, Mapping) else {}, "name")

    async def begin(self, deployment: Deployment, submission: Submission, staged: str) -> ProviderBatch:
        """As Provider.begin; the display name is our label."""
        _, model, headers = self._address(deployment)
        body = orjson.dumps({"batch": {"displayName": submission.label, "inputConfig": {"fileName": staged}}})
        return _batch(await self._http.json("POST", f"{model}:batchGenerateContent", {**headers, **_JSON}, body))

    async def find(self, deployment: Deployment, submission: Submission, staged: str) -> ProviderBatch | None:
        """As Provider.find, by the display name."""
        token = ""
        for _ in range(MOST_PAGES):
            page = await self._call("GET", deployment, f"batches?pageSize={LISTED}{token}")
            entries = page.get("operations")
            for entry in entries if isinstance(entries, list) else ():
                about = entry.get("metadata") if isinstance(entry, Mapping) else None
                if isinstance(about, Mapping) and about.get("displayName") == submission.label:
                    return _batch(entry)
            if not page.get("nextPageToken"):
                return None
            token = f"&pageToken={text_in(page, 'nextPageToken')}"
        return None

    async def get(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """As Provider.get."""
        return _batch(await self._call("GET", deployment, batch_id))

    async def cancel(self, deployment: Deployment, batch_id: str) -> None:
        """As Provider.cancel."""
        await self._call("POST", deployment, f"{batch_id}:cancel")

    async def results(self, deployment: Deployment, label: str, found: ProviderBatch) -> AsyncIterator[LineResult]:
        """As Provider.results."""
        base, _, headers = self._address(deployment)
        for name in found.results:
            async for line in self._http.lines(f"{base}/{name}:download?alt=media", headers):
                result = self._result(deployment, line)
                if result is not None:
                    yield result

    def leftovers(self, staged: str, found: ProviderBatch | None) -> Sequence[str]:
        """As Provider.leftovers: files and batch."""
        return (staged, *((*found.results, found.id) if found is not None else ()))

    async def delete(self, deployment: Deployment, leftover: str) -> None:
        """As Provider.delete."""
        await self._call("DELETE", deployment, leftover)

    def _result(self, deployment: Deployment, line: Mapping[str, Any]) -> LineResult | None:
        key, response, error = line.get("key"), line.get("response"), line.get("error")
        if not isinstance(key, str) or not key.isascii() or not key.isdigit():
            return None
        if isinstance(response, Mapping):
            usage = usage_of(response.get("usageMetadata"))
            return answered(self._dialect, deployment, int(key), orjson.dumps(response), usage, text_of(response.get("responseId")))
        code = error.get("code") if isinstance(error, Mapping) else None
        if not isinstance(error, Mapping) or not isinstance(code, int):
            return LineResult(int(key))
        name, status = _CODES.get(code, (text_of(error.get("status")), code))
        told = orjson.dumps({"error": {**error, "code": status, "status": name}})
        return failed(deployment, int(key), failure_of(status, told, {}), "")

    async def _call(self, method: str, deployment: Deployment, path: str) -> dict[str, Any]:
        base, _, headers = self._address(deployment)
        return await self._http.json(method, f"{base}/{path}", headers)

    def _address(self, deployment: Deployment) -> tuple[str, str, dict[str, str]]:
        """The base with its version, the model, and the headers."""
        wire = plain_call(self._dialect, deployment)
        model = wire.url.removesuffix(":generateContent")
        return model.rpartition("/models/")[0], model, dict(wire.headers)


_JSON = {"content-type": "application/json"}


def _batch(data: Mapping[str, Any]) -> ProviderBatch:
    """From an Operation: its metadata is the batch, its response the output."""
    about, response, error = data.get("metadata"), data.get("response"), data.get("error")
    about = about if isinstance(about, Mapping) else {}
    state = text_of(about.get("state")).rpartition("STATE_")[2]
    status = _STATUS.get(state, "in_progress")
    if data.get("done") is True and status not in ("completed", "failed", "cancelled", "expired"):
        code = error.get("code") if isinstance(error, Mapping) else None
        status = "completed" if error is None else "cancelled" if code == 1 else "failed"
    output = response if isinstance(response, Mapping) else about.get("output")
    results = text_of(output.get("responsesFile")) if isinstance(output, Mapping) else ""
    stats = about.get("batchStats")
    return ProviderBatch(
        text_in(data, "name"), status, (results,) if results else (), count_in(stats, "successfulRequestCount"),
        count_in(stats, "failedRequestCount"),
    )  # fmt: skip
