"""Attempts over HTTP: connection, timeouts, size limits, spans and shared headers. What is said is a dialect's matter."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import NoReturn, TypeVar
from urllib.parse import quote

import aiohttp
import orjson
from opentelemetry import baggage, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.common.rpc import context as call_context
from services.common.rpc.wire import CANARY, REQUEST_ID
from services.llm_gateway.chat import Answer, Chunk, malformed
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.ports import Attempt, Dialect, Limits, Ranking, Vectors, WireRequest

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
# After the finish of an answer only its usage and its closing event are missing; nobody should wait long for those.
CLOSING_S = 2.0
KEEP_ALIVE_S = 15.0
DRAIN_S = 0.1
RUN_ID = "x-bulkhead-run-id"
IDEMPOTENCY_KEY = "idempotency-key"
# Headers of providers that callers may see: what helps them to pace themselves, and ids that a provider's support asks for.
TOLD = frozenset(
    {"request-id", "x-request-id", "apim-request-id", "x-goog-request-id", "cf-ray", "openai-processing-ms", "openai-version",
     "retry-after", "retry-after-ms", "x-ms-region", "x-vertex-ai-llm-request-type"}
)  # fmt: skip
TOLD_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")
T = TypeVar("T")
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


class HttpUpstream:
    """Makes attempts in one dialect. Does not own the session, which the upstreams of all dialects share."""

    def __init__(self, session: aiohttp.ClientSession, dialect: Dialect) -> None:
        self._session = session
        self._dialect = dialect

    async def complete(self, attempt: Attempt) -> Answer:
        """A whole completion."""
        answer, headers = await self._whole(attempt, self._dialect.chat(attempt, stream=False), self._dialect.read_answer)
        return Answer(answer.raw, answer.data, told(headers))

    async def embed(self, attempt: Attempt) -> Vectors:
        """Embeddings."""
        vectors, _ = await self._whole(attempt, self._dialect.embed(attempt), self._dialect.read_vectors)
        return vectors

    async def rerank(self, attempt: Attempt) -> Ranking:
        """A ranking."""
        ranking, _ = await self._whole(attempt, self._dialect.rerank(attempt), self._dialect.read_ranking)
        return ranking

    async def stream(self, attempt: Attempt) -> AsyncGenerator[list[Chunk], None]:
        """A completion as it comes. The first chunk carries the headers of the provider."""
        wire = self._dialect.chat(attempt, stream=True)
        span = _span(attempt, wire)
        started = time.monotonic()
        try:
            response = await self._open(attempt, wire, span, attempt.limits.first_token_s)
            try:
                headers: Mapping[str, str] | None = told(response.headers)
                async with aclosing(self._batches(response, attempt, started)) as batches:
                    async for batch in batches:
                        if headers is not None:
                            batch[0].headers, headers = headers, None
                        yield batch
                await _drained(response)
            finally:
                # Ends the connection unless the body was read to its end: what is still written for nobody costs tokens.
                response.close()
        except BaseException as error:
            _end(span, error)
            raise
        _end(span)

    async def _whole(self, attempt: Attempt, wire: WireRequest, read: Callable[[bytes], T]) -> tuple[T, Mapping[str, str]]:
        span = _span(attempt, wire)
        try:
            response = await self._open(attempt, wire, span, attempt.limits.silent_s)
            try:
                raw = await _body(response, attempt.limits)
            finally:
                response.close()
            answer = read(raw)
        except BaseException as error:
            _end(span, error)
            raise
        _end(span)
        return answer, response.headers

    async def _open(self, attempt: Attempt, wire: WireRequest, span: Span, silence_s: float) -> aiohttp.ClientResponse:
        """The response once its headers are here and say 200. Raises UpstreamFault."""
        limits = attempt.limits
        left = limits.ends_at - time.monotonic()
        try:
            async with asyncio.timeout(min(silence_s, left)):
                response = await self._session.post(
                    wire.url,
                    data=wire.body,
                    headers=_headers(attempt, wire, span),
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
        raise UpstreamFault(self._dialect.failure(response.status, body, _lower(response.headers)))

    async def _batches(self, response: aiohttp.ClientResponse, attempt: Attempt, started: float) -> AsyncGenerator[list[Chunk], None]:
        """Chunks a network read; what comes before the first token is held back, so that an early error can still go elsewhere."""
        limits = attempt.limits
        reader = self._dialect.reader()
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
                raise self._no_stream(response, unread)
            raise UpstreamFault(Failure(FailureClass.CUT, "the stream ended without a finish_reason"))

    def _no_stream(self, response: aiohttp.ClientResponse, body: bytes) -> UpstreamFault:
        """What a body means that holds no event: an error where it is JSON, else another language."""
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError:
            return malformed(f"the answer is no event stream ({response.content_type})")
        return UpstreamFault(self._dialect.failure(200, body, _lower(response.headers)))


async def _body(response: aiohttp.ClientResponse, limits: Limits) -> bytes:
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


async def _drained(response: aiohttp.ClientResponse) -> None:
    """Reads the end of the body behind [DONE], so that the connection can be used again; it is mostly there already."""
    try:
        async with asyncio.timeout(DRAIN_S):
            while await response.content.readany():
                pass
    except (TimeoutError, aiohttp.ClientError, OSError):
        return  # the answer is whole; only the connection is not used again


def told(headers: Mapping[str, str]) -> dict[str, str]:
    """What of a provider's headers callers are told, names in lower case."""
    found = {}
    for name, value in headers.items():
        lower = name.lower()
        if lower in TOLD or lower.startswith(TOLD_PREFIXES):
            found[lower] = value
    return found


def _lower(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _headers(attempt: Attempt, wire: WireRequest, span: Span) -> dict[str, str]:
    """Headers of a provider call: the trace of this attempt, the request id and the canary mark go on every hop.

    Baggage may name users, so it goes, like the run id, only to deployments that are one's own (model_info.trusted).
    """
    headers = {"accept-encoding": "identity", "user-agent": "bulkhead", **wire.headers}
    identity = span.get_span_context()
    if identity.is_valid:
        headers["traceparent"] = f"00-{identity.trace_id:032x}-{identity.span_id:016x}-{identity.trace_flags:02x}"
        if identity.trace_state:
            headers["tracestate"] = identity.trace_state.to_header()
    if attempt.idempotency_key:
        headers[IDEMPOTENCY_KEY] = attempt.idempotency_key
    if attempt.deployment.trusted:
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


def _span(attempt: Attempt, wire: WireRequest) -> Span:
    deployment = attempt.deployment
    span = _tracer.start_span("POST", context=attempt.parent, kind=SpanKind.CLIENT)
    if span.is_recording():
        span.set_attributes(
            {
                "http.request.method": "POST",
                "url.full": wire.url.partition("?")[0],  # a query may hold a key
                "http.request.resend_count": attempt.number - 1,
                "bulkhead.model": deployment.group,
                "bulkhead.deployment_id": deployment.id,
            }
        )
    return span


def _end(span: Span, error: BaseException | None = None) -> None:
    if error is not None and not isinstance(error, GeneratorExit | asyncio.CancelledError):
        failed = error.failure.failure_class.value if isinstance(error, UpstreamFault) else type(error).__name__
        span.set_status(Status(StatusCode.ERROR, failed))
        span.set_attribute("error.type", failed)
    elif error is not None:
        span.set_attribute("error.type", "cancelled")
    span.end()
