"""The batch API of OpenAI and of those that speak it, over HTTP. Implements batches.ports.Provider."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson
from opentelemetry import context as otel_context

from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.batches.ports import ProviderBatch, ProviderFailed
from services.llm_gateway.batches.requests import MAX_LINE_BYTES
from services.llm_gateway.bounds import assumed_output, output_bound
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.ports import Attempt, Limits
from services.llm_gateway.registry import Deployment

if TYPE_CHECKING:
    import aiohttp

# A call of the API may take this long, and a transfer may stand still for this long.
CALL_S, SILENT_S, CONNECT_S = 60.0, 30.0, 5.0
MAX_ANSWER_BYTES = 8 * 1024 * 1024
LISTED = 100
LABEL = "bulkhead_batch"
# Refusals that may pass.
PASSING = frozenset({401, 403, 408, 409, 425, 429})


class ProviderBatches:
    """Talks to the providers of deployments with the adapter `openai`.

    aiohttp is imported when the first provider is asked: 14 MiB that a gateway without provider batches does not need.
    """

    def __init__(self) -> None:
        self._made: aiohttp.ClientSession | None = None
        self._dialect = OpenAiDialect()

    @property
    def _session(self) -> "aiohttp.ClientSession":
        import aiohttp  # see above

        if self._made is None:
            # Redirects would carry a credential elsewhere; cookies have no place between a provider and many tenants.
            self._made = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), connector=aiohttp.TCPConnector(limit=32))
        return self._made

    async def close(self) -> None:
        """Closes the connections."""
        if self._made is not None:
            await self._made.close()

    def line(self, deployment: Deployment, endpoint: str, custom_id: str, body: Mapping[str, Any]) -> bytes | None:
        """As Provider.line."""
        sent = {**deployment.defaults, **body, "model": deployment.model}
        chat = endpoint == "/v1/chat/completions"
        if chat and output_bound(sent) == 0:
            name, most = assumed_output(deployment)
            sent[name] = most
        attempt = Attempt(deployment, sent, _NO_LIMITS, 1, otel_context.get_current())
        try:
            wire = self._dialect.chat(attempt, stream=False) if chat else self._dialect.embed(attempt)
        except UpstreamFault:
            return None
        return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": endpoint, "body": orjson.Fragment(wire.body)})

    async def upload(self, deployment: Deployment, name: str, content: BinaryIO) -> str:
        """As Provider.upload."""
        import aiohttp

        # aiohttp reads the file in a thread and closes it, which a repeat does not mind: it opens another.
        form = aiohttp.FormData({"purpose": "batch"})
        form.add_field("file", content, filename=name, content_type="application/jsonl")
        return _text(await self._json("POST", deployment, "/files", data=form), "id")

    async def create(self, deployment: Deployment, endpoint: str, file_id: str, label: str) -> ProviderBatch:
        """As Provider.create."""
        body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", "metadata": {LABEL: label}}
        headers = {"content-type": "application/json", "idempotency-key": f"{LABEL}-{label}-{file_id}"}
        return _batch(await self._json("POST", deployment, "/batches", data=orjson.dumps(body), headers=headers))

    async def find(self, deployment: Deployment, file_id: str) -> ProviderBatch | None:
        """As Provider.find, among the newest of the account."""
        listed = await self._json("GET", deployment, f"/batches?limit={LISTED}")
        entries = listed.get("data")
        for entry in entries if isinstance(entries, list) else ():
            if isinstance(entry, dict) and entry.get("input_file_id") == file_id:
                return _batch(entry)
        return None

    async def get(self, deployment: Deployment, batch_id: str) -> ProviderBatch:
        """As Provider.get."""
        return _batch(await self._json("GET", deployment, f"/batches/{batch_id}"))

    async def cancel(self, deployment: Deployment, batch_id: str) -> None:
        """As Provider.cancel; one that has ended already is left as it is."""
        try:
            await self._json("POST", deployment, f"/batches/{batch_id}/cancel")
        except ProviderFailed as error:
            if not error.permanent:
                raise

    async def lines(self, deployment: Deployment, file_id: str) -> AsyncIterator[bytes]:
        """As Provider.lines."""
        async with self._answer("GET", deployment, f"/files/{file_id}/content", total_s=None) as answer:
            rest = bytearray()
            async for piece in answer.content.iter_any():
                rest += piece
                while (end := rest.find(b"\n")) >= 0:
                    yield bytes(rest[:end])
                    del rest[: end + 1]
                if len(rest) > 4 * MAX_LINE_BYTES:
                    raise ProviderFailed("a result is larger than it can be")
            if rest:
                yield bytes(rest)

    async def delete_file(self, deployment: Deployment, file_id: str) -> None:
        """As Provider.delete_file."""
        await self._json("DELETE", deployment, f"/files/{file_id}")

    async def _json(self, method: str, deployment: Deployment, path: str, **more: Any) -> dict[str, Any]:
        async with self._answer(method, deployment, path, total_s=None if path == "/files" else CALL_S, **more) as answer:
            raw = await answer.content.read(MAX_ANSWER_BYTES)
            while not answer.content.at_eof() and len(raw) < MAX_ANSWER_BYTES:
                raw += await answer.content.read(MAX_ANSWER_BYTES)
        try:
            data = orjson.loads(raw)
        except orjson.JSONDecodeError:
            raise ProviderFailed("the answer is not JSON") from None
        if not isinstance(data, dict):
            raise ProviderFailed("the answer is no JSON object")
        return data

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        deployment: Deployment,
        path: str,
        *,
        total_s: float | None,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> AsyncIterator["aiohttp.ClientResponse"]:
        import aiohttp

        sent = {**deployment.headers, **(headers or {})}
        if deployment.api_key:
            sent["authorization"] = f"Bearer {deployment.api_key}"
        timeout = aiohttp.ClientTimeout(total=total_s, sock_connect=CONNECT_S, sock_read=SILENT_S)
        try:
            async with self._session.request(
                method, deployment.api_base + path, headers=sent, data=data, timeout=timeout, allow_redirects=False
            ) as answer:
                if answer.status >= 300:
                    raise _refusal(answer.status, await answer.content.read(2_000))
                yield answer
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProviderFailed(f"{type(error).__name__}: {error}") from error


_NO_LIMITS = Limits(CONNECT_S, CALL_S, CALL_S, SILENT_S, 0.0)


def _refusal(status: int, body: bytes) -> ProviderFailed:
    permanent = 300 <= status < 500 and status not in PASSING
    return ProviderFailed(f"status {status}: {body.decode('utf-8', 'replace')[:300]}", permanent=permanent, missing=status == 404)


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data.get(name)
    if not isinstance(value, str) or not value:
        raise ProviderFailed(f"the answer has no {name}")
    return value


def _batch(data: Mapping[str, Any]) -> ProviderBatch:
    counts = data.get("request_counts")
    counts = counts if isinstance(counts, Mapping) else {}
    return ProviderBatch(
        _text(data, "id"), _text(data, "status"), str(data.get("input_file_id") or ""), str(data.get("output_file_id") or ""),
        str(data.get("error_file_id") or ""), int(counts.get("completed") or 0), int(counts.get("failed") or 0),
    )  # fmt: skip
