"""Anthropic's Message Batches. Source: Claude API reference, version 2023-06-01. Implements batches.provider_port.Provider.

A batch there has neither a name nor metadata: it is known by the custom ids of its lines, which its results tell once it has ended.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any, BinaryIO

import orjson

from services.llm_gateway.adapters.anthropic import AnthropicDialect, failure_of
from services.llm_gateway.adapters.batch_http import BatchHttp, count_in, text_in
from services.llm_gateway.adapters.batch_lines import answered, failed, plain_call, said
from services.llm_gateway.batches.provider_port import LineResult, NotYetKnown, ProviderBatch, ProviderFailed, Submission
from services.llm_gateway.batches.provider_prices import Cached, batch_prices
from services.llm_gateway.chat import text_of
from services.llm_gateway.messages_shape import BETAS, EXTRAS, openai_usage
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment

LISTED, MOST_PAGES = 100, 20
# How far the provider's clock may be from ours, or a request on its way.
CLOCKS_APART_S = 600.0
_PIECE = 256 * 1024
_STATUS: Mapping[str, str] = {"in_progress": "in_progress", "canceling": "cancelling", "ended": "completed"}
_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


class AnthropicBatches:
    """Talks to the providers of deployments with the adapter `anthropic`."""

    def __init__(self, http: BatchHttp) -> None:
        self._http = http
        self._dialect = AnthropicDialect()

    def serves(self, deployment: Deployment, endpoint: str) -> bool:
        """As Provider.serves: messages alone."""
        return endpoint == "/v1/chat/completions"

    def prices(self, deployment: Deployment) -> Prices:
        """As Provider.prices: the discounts of batches and of cached prompts add up."""
        return batch_prices(deployment.prices, Cached.REDUCED)

    def line(self, deployment: Deployment, endpoint: str, label: str, number: int, body: Mapping[str, Any]) -> bytes | None:
        """As Provider.line. Betas travel in a header, which all lines would share."""
        extras = body.get(EXTRAS)
        if isinstance(extras, Mapping) and extras.get(BETAS):
            return None
        params = said(self._dialect, deployment, body)
        return None if params is None else orjson.dumps({"custom_id": f"{label}-{number}", "params": orjson.Fragment(params)})

    async def stage(self, deployment: Deployment, submission: Submission) -> str:
        """As Provider.stage: nothing is sent; a batch of ours was begun after this time, Unix seconds."""
        return str(int(time.time()))

    async def begin(self, deployment: Deployment, submission: Submission, staged: str) -> ProviderBatch:
        """As Provider.begin: all lines in one request."""
        url, headers = self._address(deployment)
        async with submission.content() as content:
            size = await asyncio.to_thread(content.seek, 0, 2)
            length = len(_HEAD) + size - 1 + len(_TAIL)
            told = {**headers, "content-type": "application/json", "content-length": str(length)}
            return _batch(await self._http.json("POST", url, told, _request(content, size), transfer=True))

    async def find(self, deployment: Deployment, submission: Submission, staged: str) -> ProviderBatch | None:
        """As Provider.find: a batch begun since, with as many lines, whose results carry our label."""
        since, hidden = float(staged) - CLOCKS_APART_S, False
        async for entry in self._listed(deployment, since):
            if count_in(entry.get("request_counts"), *_COUNTS) != submission.lines:
                continue
            found = _batch(entry)
            if found.status != "completed":
                hidden = True
            elif await self._is_ours(deployment, found, submission.label):
                return found
        if hidden:
            raise NotYetKnown("a batch that runs may be the one that was begun")
        return None

    async def get(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """As Provider.get."""
        return _batch(await self._call("GET", deployment, f"/{batch_id}"))

    async def cancel(self, deployment: Deployment, batch_id: str) -> None:
        """As Provider.cancel."""
        await self._call("POST", deployment, f"/{batch_id}/cancel")

    async def results(self, deployment: Deployment, label: str, found: ProviderBatch) -> AsyncIterator[LineResult]:
        """As Provider.results. The address is made here: `results_url` names a host that may not be ours to ask."""
        for batch_id in found.results:
            url, headers = self._address(deployment, f"/{batch_id}/results")
            async for line in self._http.lines(url, headers):
                result = self._result(deployment, label, line)
                if result is not None:
                    yield result

    def leftovers(self, staged: str, found: ProviderBatch | None) -> Sequence[str]:
        """As Provider.leftovers: the batch, with its requests and results."""
        return () if found is None else (found.id,)

    async def delete(self, deployment: Deployment, leftover: str) -> None:
        """As Provider.delete."""
        await self._call("DELETE", deployment, f"/{leftover}")

    async def _listed(self, deployment: Deployment, since: float) -> AsyncIterator[dict[str, Any]]:
        """Batches that were created since, the newest first."""
        after = ""
        for _ in range(MOST_PAGES):
            page = await self._call("GET", deployment, f"?limit={LISTED}{after}")
            entries = page.get("data")
            for entry in entries if isinstance(entries, list) else ():
                if not isinstance(entry, dict):
                    raise ProviderFailed("the list holds what is no batch")
                if _created(entry) < since:
                    return
                yield entry
            if not page.get("has_more") or not entries:
                return
            after = f"&after_id={text_in(page, 'last_id')}"
        raise ProviderFailed(f"more than {MOST_PAGES * LISTED} batches were begun since")

    async def _is_ours(self, deployment: Deployment, found: ProviderBatch, label: str) -> bool:
        url, headers = self._address(deployment, f"/{found.id}/results")
        lines = self._http.lines(url, headers)
        try:
            async for line in lines:
                return text_of(line.get("custom_id")).startswith(f"{label}-")
        finally:
            await lines.aclose()  # type: ignore[attr-defined]  # the generator that it is
        return False

    def _result(self, deployment: Deployment, label: str, line: Mapping[str, Any]) -> LineResult | None:
        ours, _, named = text_of(line.get("custom_id")).rpartition("-")
        if ours != label or not named.isascii() or not named.isdigit():
            return None
        number, given = int(named), line.get("result")
        result: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
        kind = result.get("type")
        if kind == "succeeded":
            message = result.get("message")
            usage = openai_usage(message.get("usage")) if isinstance(message, Mapping) else None
            return answered(self._dialect, deployment, number, orjson.dumps(message), usage, text_of(line.get("custom_id")))
        if kind == "errored":
            told = result.get("error")
            error = told.get("error") if isinstance(told, Mapping) else None
            request_id = text_of(told.get("request_id")) if isinstance(told, Mapping) else ""
            return failed(deployment, number, failure_of(error if isinstance(error, Mapping) else {}), request_id)
        return LineResult(number)

    async def _call(self, method: str, deployment: Deployment, path: str) -> dict[str, Any]:
        url, headers = self._address(deployment, path)
        return await self._http.json(method, url, headers)

    def _address(self, deployment: Deployment, path: str = "") -> tuple[str, dict[str, str]]:
        wire = plain_call(self._dialect, deployment)
        return f"{wire.url}/batches{path}", dict(wire.headers)


_HEAD, _TAIL = b'{"requests":[', b"]}"


async def _request(content: BinaryIO, size: int) -> AsyncIterator[bytes]:
    """One request out of a file with a line for each: an end of line stands nowhere else in it."""
    await asyncio.to_thread(content.seek, 0)
    yield _HEAD
    left = size - 1  # the last line ends where the list does
    while left > 0 and (piece := await asyncio.to_thread(content.read, min(_PIECE, left))):
        left -= len(piece)
        yield piece.replace(b"\n", b",")
    yield _TAIL


def _batch(data: Mapping[str, Any]) -> ProviderBatch:
    status = _STATUS.get(text_in(data, "processing_status"), "in_progress")
    batch_id, counts = text_in(data, "id"), data.get("request_counts")
    ended = status == "completed"
    # All counts but that of lines to be done are 0 until the end.
    return ProviderBatch(
        batch_id, status, (batch_id,) if ended else (), count_in(counts, "succeeded"), count_in(counts, "errored"), counted=ended
    )  # fmt: skip


def _created(entry: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(text_in(entry, "created_at")).timestamp()
    except ValueError:
        raise ProviderFailed("a batch has no time of creation") from None
