"""Providers that speak the OpenAI API: OpenAI, vLLM, the simulator, and any base URL in their likeness."""

import asyncio
import base64
import binascii
import time
from array import array
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, NoReturn
from urllib.parse import quote

import aiohttp
import orjson
from opentelemetry import baggage, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.common.errors import InvalidInput
from services.common.rpc import context as call_context
from services.common.rpc.wire import CANARY, REQUEST_ID
from services.llm_gateway.chat import Answer, Chunk, ChunkReader, malformed, parse_answer, text_of
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault, classify, error_in, error_of
from services.llm_gateway.ports import Attempt, Vectors
from services.llm_gateway.retry_after import retry_after_s

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
# After the finish of an answer only its usage and [DONE] are missing; nobody should wait long for those.
CLOSING_S = 2.0
KEEP_ALIVE_S = 15.0
DRAIN_S = 0.1
RUN_ID = "x-bulkhead-run-id"
_tracer = trace.get_tracer("bulkhead.llm")


def provider_session() -> aiohttp.ClientSession:
    """The one HTTP session of the process. Who makes it closes it; needs a running loop."""
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S, ttl_dns_cache=30)
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=True,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None),
        read_bufsize=256 * 1024,
        max_field_size=32 * 1024,
    )


class OpenAiUpstream:
    """Makes attempts over HTTP. Does not own the session."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def complete(self, attempt: Attempt) -> Answer:
        """POST /chat/completions."""
        span = self._span(attempt, "/chat/completions")
        try:
            answer = parse_answer(await self._whole(attempt, "/chat/completions", span))
        except BaseException as error:
            _end(span, error)
            raise
        _end(span)
        return answer

    async def embed(self, attempt: Attempt) -> Vectors:
        """POST /embeddings."""
        span = self._span(attempt, "/embeddings")
        try:
            vectors = _vectors(await self._whole(attempt, "/embeddings", span))
        except BaseException as error:
            _end(span, error)
            raise
        _end(span)
        return vectors

    async def stream(self, attempt: Attempt) -> AsyncGenerator[list[Chunk], None]:
        """POST /chat/completions with stream: true."""
        span = self._span(attempt, "/chat/completions")
        started = time.monotonic()
        try:
            response = await self._open(attempt, "/chat/completions", span, attempt.limits.first_token_s)
            try:
                async with aclosing(_batches(response, attempt, started)) as batches:
                    async for batch in batches:
                        yield batch
                await _drained(response)
            finally:
                # Ends the connection unless the body was read to its end: what is still written for nobody costs tokens.
                response.close()
        except BaseException as error:
            _end(span, error)
            raise
        _end(span)

    def _span(self, attempt: Attempt, path: str) -> Span:
        deployment = attempt.deployment
        span = _tracer.start_span("POST", context=attempt.parent, kind=SpanKind.CLIENT)
        if span.is_recording():
            span.set_attributes(
                {
                    "http.request.method": "POST",
                    "url.full": deployment.api_base + path,
                    "http.request.resend_count": attempt.number - 1,
                    "bulkhead.model": deployment.group,
                    "bulkhead.deployment_id": deployment.id,
                }
            )
        return span

    async def _open(self, attempt: Attempt, path: str, span: Span, silence_s: float) -> aiohttp.ClientResponse:
        """The response once its headers are here and say 200. Raises UpstreamFault."""
        deployment, limits = attempt.deployment, attempt.limits
        started = time.monotonic()
        left = limits.ends_at - started
        try:
            body = orjson.dumps(attempt.body)
        except TypeError:
            raise InvalidInput("the request is nested too deeply or holds a number beyond 64 bits") from None
        try:
            async with asyncio.timeout(min(silence_s, left)):
                response = await self._session.post(
                    deployment.api_base + path,
                    data=body,
                    headers=_headers(attempt, span),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, connect=limits.connect_s),
                )
        except aiohttp.ConnectionTimeoutError:
            raise UpstreamFault(Failure(FailureClass.TIMEOUT_CONNECT, "no connection in time")) from None
        except TimeoutError:
            raise _silent(limits.ends_at) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise UpstreamFault(_unreachable(error)) from error
        span.set_attribute("http.response.status_code", response.status)
        if response.status == 200:
            return response
        try:
            await self._refused(response, limits.between_tokens_s)
        finally:
            response.close()

    async def _refused(self, response: aiohttp.ClientResponse, timeout_s: float) -> NoReturn:
        body = b""
        try:
            async with asyncio.timeout(timeout_s):
                body = await response.content.read(MAX_ERROR_BYTES)
        except (TimeoutError, aiohttp.ClientError, OSError):
            pass  # the status alone decides then
        headers = {name.lower(): value for name, value in response.headers.items()}
        raise UpstreamFault(classify(response.status, error_of(body), retry_after_s(headers, time.time())))

    async def _whole(self, attempt: Attempt, path: str, span: Span) -> bytes:
        limits = attempt.limits
        response = await self._open(attempt, path, span, limits.silent_s)
        pieces: list[bytes] = []
        size = 0
        try:
            while True:
                left = limits.ends_at - time.monotonic()
                async with asyncio.timeout(min(limits.between_tokens_s, left)):
                    piece = await response.content.readany()
                if not piece:
                    return b"".join(pieces)
                size += len(piece)
                if size > MAX_BODY_BYTES:
                    raise malformed(f"the body is larger than {MAX_BODY_BYTES} bytes")
                pieces.append(piece)
        except TimeoutError:
            raise _stalled(limits.ends_at) from None
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamFault(Failure(FailureClass.CUT, f"the body broke off ({type(error).__name__})")) from error
        finally:
            response.close()


async def _batches(response: aiohttp.ClientResponse, attempt: Attempt, started: float) -> AsyncGenerator[list[Chunk], None]:
    """Chunks a network read; what comes before the first token is held back, so that an early error can still go elsewhere."""
    limits = attempt.limits
    reader = ChunkReader()
    begun = False
    held: list[Chunk] = []
    token_by = started + limits.first_token_s
    unread = b""  # what came before any event: a provider may answer a stream with a plain error body
    while not reader.done:
        left = min(token_by, limits.ends_at) - time.monotonic()
        try:
            async with asyncio.timeout(max(left, 0.0)):
                read = await response.content.readany()
        except TimeoutError:
            if reader.finished:
                return
            raise (_stalled if begun else _silent)(limits.ends_at) from None
        except (aiohttp.ClientError, OSError) as error:
            if reader.finished:
                return
            raise UpstreamFault(Failure(FailureClass.CUT, f"the stream broke off ({type(error).__name__})")) from error
        chunks = reader.feed(read) if read else reader.end()
        if not begun and not held and not chunks and len(unread) < MAX_ERROR_BYTES:
            unread += read
        if any(chunk.meaningful for chunk in chunks):
            begun = True
            token_by = time.monotonic() + limits.between_tokens_s
        if reader.finished:
            token_by = min(token_by, time.monotonic() + CLOSING_S)
        if begun and (held or chunks):
            yield [*held, *chunks]
            held = []
        else:
            held += chunks
        if not read:
            break
    if not reader.finished:
        if not begun and not held:
            refusal = error_of(unread)
            raise (
                UpstreamFault(classify(200, refusal)) if refusal else malformed(f"the answer is no event stream ({response.content_type})")
            )
        raise UpstreamFault(Failure(FailureClass.CUT, "the stream ended without a finish_reason"))


async def _drained(response: aiohttp.ClientResponse) -> None:
    """Reads the end of the body behind [DONE], so that the connection can be used again; it is mostly there already."""
    try:
        async with asyncio.timeout(DRAIN_S):
            while await response.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError, OSError):
        return  # the answer is whole; only the connection is not used again


def _headers(attempt: Attempt, span: Span) -> dict[str, str]:
    """Headers of a provider call: the trace of this attempt, the request id and the canary mark go on every hop.

    Baggage may name users, so it goes, like the run id, only to deployments that are one's own (model_info.trusted).
    """
    deployment = attempt.deployment
    headers = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "bulkhead", **deployment.headers}
    if deployment.api_key:
        headers["authorization"] = f"Bearer {deployment.api_key}"
    identity = span.get_span_context()
    if identity.is_valid:
        headers["traceparent"] = f"00-{identity.trace_id:032x}-{identity.span_id:016x}-{identity.trace_flags:02x}"
        if identity.trace_state:
            headers["tracestate"] = identity.trace_state.to_header()
    if deployment.trusted:
        if carried := baggage.get_all(attempt.parent):
            headers["baggage"] = ",".join(f"{quote(key)}={quote(str(value))}" for key, value in carried.items())
        if attempt.run_id:
            headers[RUN_ID] = attempt.run_id
    context = call_context.current()
    if context is not None:
        headers[REQUEST_ID] = context.request_id
        if context.canary:
            headers[CANARY] = "true"
    return headers


def _unreachable(error: Exception) -> Failure:
    """Connection refused or reset, no DNS, no TLS: transient, but for a certificate, which no repeat makes valid."""
    name = type(error).__name__
    if isinstance(error, aiohttp.ClientConnectorCertificateError | aiohttp.InvalidURL | ValueError):
        return Failure(FailureClass.UNKNOWN, f"no connection ({name})")
    return Failure(FailureClass.TRANSIENT, f"no connection ({name})")


def _silent(ends_at: float) -> UpstreamFault:
    ended = time.monotonic() >= ends_at
    return UpstreamFault(Failure(FailureClass.TIMEOUT_TOTAL if ended else FailureClass.TIMEOUT_FIRST_TOKEN, "no answer in time"))


def _stalled(ends_at: float) -> UpstreamFault:
    ended = time.monotonic() >= ends_at
    return UpstreamFault(Failure(FailureClass.TIMEOUT_TOTAL if ended else FailureClass.STALLED, "the answer stopped coming"))


def _end(span: Span, error: BaseException | None = None) -> None:
    if error is not None and not isinstance(error, GeneratorExit | asyncio.CancelledError):
        failed = error.failure.failure_class.value if isinstance(error, UpstreamFault) else type(error).__name__
        span.set_status(Status(StatusCode.ERROR, failed))
        span.set_attribute("error.type", failed)
    elif error is not None:
        span.set_attribute("error.type", "cancelled")
    span.end()


def _vectors(raw: bytes) -> Vectors:
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError:
        raise malformed("the body is not JSON") from None
    error = error_in(data)
    if error is not None:
        raise UpstreamFault(classify(200, error))
    entries = data.get("data") if isinstance(data, dict) else None
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise malformed("the body has no embeddings")
    if all(isinstance(entry.get("index"), int) for entry in entries):
        entries = sorted(entries, key=lambda entry: entry["index"])
    usage: Any = data.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, Mapping) else None
    vectors = [_vector(entry.get("embedding")) for entry in entries]
    return Vectors(vectors, tokens if isinstance(tokens, int) else None, text_of(data.get("model")), raw)


def _vector(value: Any) -> array:
    try:
        if isinstance(value, str):
            found = array("f")
            found.frombytes(base64.b64decode(value, validate=True))
            return found
        return array("f", value)
    except (TypeError, ValueError, OverflowError, binascii.Error):
        raise malformed("an embedding is no vector") from None
