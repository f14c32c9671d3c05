"""The batch API of OpenAI, of those that speak it, and of Azure. Sources: OpenAI API reference, Batch and Files; Azure OpenAI, how-to/batch
and REST reference 2024-10-21. Implements batches.provider_port.Provider.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import orjson

from services.llm_gateway.adapters.batch_http import BatchHttp, count_in, text_in
from services.llm_gateway.adapters.batch_lines import attempt_at
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.adapters.openai_fields import query_of
from services.llm_gateway.batches.provider_port import LineResult, ProviderBatch, Submission
from services.llm_gateway.batches.provider_prices import Cached, batch_prices
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment

CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
LISTED = 100
LABEL = "bulkhead_batch"
# An error of the provider that says nothing of the request: such a line is executed here.
ELSEWHERE = frozenset({401, 403, 408, 409, 429})
# Azure looks at a file before a batch can be begun over it, the longer the larger it is.
FILE_LOOKS, FILE_LOOK_EVERY_S = 60, 1.0
_JSON = {"content-type": "application/json"}


class OpenAiBatches:
    """Talks to the providers of deployments with the adapter `openai`."""

    def __init__(self, http: BatchHttp) -> None:
        self._http = http
        self._dialect = OpenAiDialect()

    def serves(self, deployment: Deployment, endpoint: str) -> bool:
        """As Provider.serves; Azure takes no embeddings in batches."""
        return endpoint == CHAT or (endpoint == EMBEDDINGS and deployment.provider != "azure")

    def prices(self, deployment: Deployment) -> Prices:
        """As Provider.prices. A discount for cached tokens is not promised for the batches of all models, and not counted on."""
        return batch_prices(deployment.prices, Cached.AS_INPUT)

    def line(self, deployment: Deployment, endpoint: str, label: str, number: int, body: Mapping[str, Any]) -> bytes | None:
        """As Provider.line."""
        attempt = attempt_at(deployment, body)
        try:
            wire = self._dialect.chat(attempt, stream=False) if endpoint == CHAT else self._dialect.embed(attempt)
        except UpstreamFault:
            return None
        url = _endpoint(deployment, endpoint)
        return orjson.dumps({"custom_id": str(number), "method": "POST", "url": url, "body": orjson.Fragment(wire.body)})

    async def stage(self, deployment: Deployment, submission: Submission) -> str:
        """As Provider.stage: uploads the file, and answers its id."""
        import aiohttp

        async with submission.content() as content:
            # aiohttp reads the file in a thread and closes it, which a repeat does not mind: it opens another.
            form = aiohttp.FormData({"purpose": "batch"})
            form.add_field("file", content, filename=f"{submission.label}.jsonl", content_type="application/jsonl")
            made = await self._call("POST", deployment, "/files", form, transfer=True)
        file_id = text_in(made, "id")
        for _ in range(FILE_LOOKS if deployment.provider == "azure" else 0):
            if str(made.get("status")).lower() in ("processed", "error"):
                break
            await asyncio.sleep(FILE_LOOK_EVERY_S)
            made = await self._call("GET", deployment, f"/files/{file_id}")
        return file_id

    async def begin(self, deployment: Deployment, submission: Submission, staged: str) -> ProviderBatch:
        """As Provider.begin."""
        body = {
            "input_file_id": staged,
            "endpoint": _endpoint(deployment, submission.endpoint),
            "completion_window": "24h",
            "metadata": {LABEL: submission.label},
        }
        headers = {**_JSON, "idempotency-key": f"{LABEL}-{submission.label}-{staged}"}
        return _batch(await self._call("POST", deployment, "/batches", orjson.dumps(body), headers))

    async def find(self, deployment: Deployment, submission: Submission, staged: str) -> ProviderBatch | None:
        """As Provider.find, among the newest of the account: a batch is known by its file."""
        listed = await self._call("GET", deployment, "/batches", query=f"limit={LISTED}")
        entries = listed.get("data")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("input_file_id") == staged:
                return _batch(entry)
        return None

    async def get(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """As Provider.get."""
        return _batch(await self._call("GET", deployment, f"/batches/{batch_id}"))

    async def cancel(self, deployment: Deployment, batch_id: str) -> None:
        """As Provider.cancel."""
        await self._call("POST", deployment, f"/batches/{batch_id}/cancel")

    async def results(self, deployment: Deployment, label: str, found: ProviderBatch) -> AsyncIterator[LineResult]:
        """As Provider.results."""
        for file_id in found.results:
            url, headers = self._address(deployment, f"/files/{file_id}/content")
            async for line in self._http.lines(url, headers):
                result = _result(line)
                if result is not None:
                    yield result

    def leftovers(self, staged: str, found: ProviderBatch | None) -> Sequence[str]:
        """As Provider.leftovers: the files. A batch itself holds nothing, and cannot be deleted."""
        return (staged, *(found.results if found is not None else ()))

    async def delete(self, deployment: Deployment, leftover: str) -> None:
        """As Provider.delete."""
        await self._call("DELETE", deployment, f"/files/{leftover}")

    async def _call(
        self,
        method: str,
        deployment: Deployment,
        path: str,
        data: Any = None,
        more: Mapping[str, str] | None = None,
        *,
        query: str = "",
        transfer: bool = False,
    ) -> dict[str, Any]:
        url, headers = self._address(deployment, path, query)
        return await self._http.json(method, url, {**headers, **(more or {})}, data, transfer=transfer)

    def _address(self, deployment: Deployment, path: str, query: str = "") -> tuple[str, dict[str, str]]:
        headers = dict(deployment.headers)
        if deployment.api_key:
            headers["authorization"] = f"Bearer {deployment.api_key}"
        # Azure has the deployment in the addresses of single calls alone: files and batches belong to the whole resource.
        base = deployment.api_base.partition("/deployments/")[0] if deployment.provider == "azure" else deployment.api_base
        asked = "&".join(filter(None, (query_of(deployment).removeprefix("?"), query)))
        return base + path + (f"?{asked}" if asked else ""), headers


def _endpoint(deployment: Deployment, endpoint: str) -> str:
    """The endpoint of a batch: addresses of Azure that have the version in their query do not have it in their path."""
    return endpoint.removeprefix("/v1") if deployment.provider == "azure" and not deployment.api_base.endswith("/v1") else endpoint


def _batch(data: Mapping[str, Any]) -> ProviderBatch:
    counts = data.get("request_counts")
    results = [str(data[name]) for name in ("output_file_id", "error_file_id") if data.get(name)]
    return ProviderBatch(
        # Azure begins some of its words with a capital.
        text_in(data, "id"), text_in(data, "status").lower(), results, count_in(counts, "completed"), count_in(counts, "failed"),
    )  # fmt: skip


def _result(line: Mapping[str, Any]) -> LineResult | None:
    custom_id, response = line.get("custom_id"), line.get("response")
    if not isinstance(custom_id, str) or not custom_id.isascii() or not custom_id.isdigit():
        return None
    number, status = int(custom_id), response.get("status_code") if isinstance(response, Mapping) else None
    if not isinstance(response, Mapping) or not isinstance(status, int) or line.get("error") or status >= 500 or status in ELSEWHERE:
        return LineResult(number)
    body, billed = response.get("body"), status < 400
    usage = body.get("usage") if billed and isinstance(body, Mapping) else None
    told = usage if isinstance(usage, Mapping) else None
    return LineResult(number, status, orjson.dumps(body), str(response.get("request_id") or ""), told, billed)
