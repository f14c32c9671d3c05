"""Attempts over HTTP: connection, timeouts, size limits, spans and shared headers. What is said is a dialect's matter."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TypeVar
from urllib.parse import quote

import orjson
from opentelemetry import baggage, trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from services.common.logging import REDACTED
from services.common.rpc import context as call_context
from services.common.rpc.wire import CANARY, REQUEST_ID
from services.llm_gateway.adapters.http_client import HttpClient, Response
from services.llm_gateway.adapters.http_connection import BrokenOff, ConnectTimeout, Unreachable, target_of
from services.llm_gateway.chat import Answer, Chunk, malformed
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.ports import Attempt, Dialect, Limits, Ranking, StreamReader, Vectors, WireRequest
from services.llm_gateway.registry import Deployment

MAX_BODY_BYTES = 32 * 1024 * 1024
MAX_ERROR_BYTES = 64 * 1024
# After the finish of an answer only its usage and its closing event are missing; nobody should wait long for those.
CLOSING_S = 2.0
DRAIN_S = 0.1
# What is shorter may be a word.
SECRET_LENGTH = 8
RUN_ID = "x-bulkhead-run-id"
IDEMPOTENCY_KEY = "idempotency-key"
# Headers of providers that callers may see: what helps them to pace themselves, and ids that a provider's support asks for.
TOLD = frozenset(
    {b"request-id", b"x-request-id", b"apim-request-id", b"x-goog-request-id", b"cf-ray", b"openai-processing-ms", b"openai-version",
     b"retry-after", b"retry-after-ms", b"x-ms-region", b"x-vertex-ai-llm-request-type"}
)  # fmt: skip
TOLD_PREFIXES = (b"x-ratelimit-", b"anthropic-ratelimit-")
RawHeaders = Sequence[tuple[bytes, bytes]]
T = TypeVar("T")
_tracer = trace.get_tracer("bulkhead.llm")


def provider_session() -> HttpClient:
    """The one HTTP client of the process. Who makes it closes it."""
    return HttpClient()


class HttpUpstream:
    """Makes attempts in one dialect. Does not own the client, which the upstreams of all dialects share."""

    def __init__(self, client: HttpClient, dialect: Dialect) -> None:
        self._client = client
        self._dialect = dialect

    async def complete(self, attempt: Attempt) -> Answer:
        """A whole completion."""
        wire = await _said(attempt, partial(self._dialect.chat, attempt, stream=False))
        answer, headers = await self._whole(attempt, wire, self._dialect.read_answer)
        return Answer(answer.raw, answer.data, told(headers))

    async def embed(self, attempt: Attempt) -> Vectors:
        """Embeddings."""
        wire = await _said(attempt, partial(self._dialect.embed, attempt))
        vectors, _ = await self._whole(attempt, wire, self._dialect.read_vectors)
        return vectors

    async def rerank(self, attempt: Attempt) -> Ranking:
        """A ranking."""
        wire = await _said(attempt, partial(self._dialect.rerank, attempt))
        ranking, _ = await self._whole(attempt, wire, self._dialect.read_ranking)
        return ranking

    async def stream(self, attempt: Attempt) -> AsyncGenerator[list[Chunk], None]:
        """A completion as it comes. The first chunk carries the headers of the provider."""
        wire = await _said(attempt, partial(self._dialect.chat, attempt, stream=True))
        span = _span(attempt, wire)
        started = time.monotonic()
        reader = self._dialect.reader()
        held: list[Chunk] = []
        try:
            response = await self._open(attempt, wire, span, attempt.limits.first_token_s)
            try:
                headers: Mapping[str, str] | None = told(response.raw_headers)
                async with aclosing(self._batches(response, attempt.limits, started, reader, held)) as batches:
                    async for batch in batches:
                        if headers is not None:
                            batch[0].headers, headers = headers, None
                        yield batch
                await _drained(response)
            except (GeneratorExit, asyncio.CancelledError):
                attempt.unread.extend([*held, *_arrived(response, reader)])
                raise
            finally:
                # Ends the connection unless the body was read to its end: what is still written for nobody costs tokens.
                response.close()
        except UpstreamFault as fault:
            fault.failure = _discreet(fault.failure, attempt.deployment)
            _end(span, fault)
            raise
        except BaseException as error:
            _end(span, error)
            raise
        _end(span)

    async def _whole(self, attempt: Attempt, wire: WireRequest, read: Callable[[bytes], T]) -> tuple[T, RawHeaders]:
        span = _span(attempt, wire)
        silent_until = time.monotonic() + attempt.limits.silent_s
        try:
            response = await self._open(attempt, wire, span, attempt.limits.silent_s)
            try:
                raw = await _body(response, attempt.limits, silent_until)
            finally:
                response.close()
            answer = read(raw)
        except UpstreamFault as fault:
            fault.failure = _discreet(fault.failure, attempt.deployment)
            _end(span, fault)
            raise
        except BaseException as error:
            _end(span, error)
            raise
        _end(span)
        return answer, response.raw_headers

    async def _open(self, attempt: Attempt, wire: WireRequest, span: Span | None, silence_s: float) -> Response:
        """The response once its headers are here and say 200. Raises UpstreamFault."""
        limits = attempt.limits
        until = min(time.monotonic() + silence_s, limits.ends_at)

        def sending() -> None:
            attempt.sent = True

        try:
            response = await self._client.post(
                wire.url, _headers(attempt, wire, span), wire.body, connect_s=limits.connect_s, until=until, sending=sending
            )
        except ConnectTimeout:
            raise UpstreamFault(Failure(FailureClass.TIMEOUT_CONNECT, "no connection in time")) from None
        except TimeoutError:
            raise _silent(limits.ends_at) from None
        except Unreachable as error:
            # A certificate that does not fit is made valid by no repeat, all else may pass.
            failure_class = FailureClass.UNKNOWN if error.permanent else FailureClass.TRANSIENT
            raise UpstreamFault(Failure(failure_class, str(error))) from error
        except ValueError as error:
            raise UpstreamFault(Failure(FailureClass.UNKNOWN, f"no request can be made: {error}")) from None
        if span is not None:
            span.set_attribute("http.response.status_code", response.status)
        if response.status == 200:
            return response
        try:
            raise await self._refusal(response, limits)
        finally:
            response.close()

    async def _refusal(self, response: Response, limits: Limits) -> UpstreamFault:
        body = b""
        until = min(time.monotonic() + limits.between_tokens_s, limits.ends_at)
        try:
            while len(body) < MAX_ERROR_BYTES and (read := await response.read(until)):
                body += read
        except (TimeoutError, BrokenOff):
            pass  # what has come decides then, or the status alone
        return UpstreamFault(self._dialect.failure(response.status, body[:MAX_ERROR_BYTES], response.headers))

    async def _batches(
        self, response: Response, limits: Limits, started: float, reader: StreamReader, held: list[Chunk]
    ) -> AsyncGenerator[list[Chunk], None]:
        """Chunks a network read; what comes before the first token is held back, so that an early error can still go elsewhere."""
        begun = False
        token_by = started + limits.first_token_s
        unread = b""  # what came before any event: a provider may answer a stream with a plain error body
        while not reader.done:
            try:
                read = await response.read(min(token_by, limits.ends_at))
            except TimeoutError:
                if reader.finished:
                    return
                raise (_stalled if begun else _silent)(limits.ends_at) from None
            except BrokenOff as error:
                if reader.finished:
                    return
                raise UpstreamFault(Failure(FailureClass.CUT, f"the stream broke off ({error})")) from error
            chunks = reader.feed(read) if read else reader.end()
            if not begun and not held and not chunks and len(unread) < MAX_ERROR_BYTES:
                unread += read
            if any(chunk.meaningful for chunk in chunks):
                begun = True
                token_by = time.monotonic() + limits.between_tokens_s
            if reader.finished:
                token_by = min(token_by, time.monotonic() + CLOSING_S)
            if begun and (held or chunks):
                batch = [*held, *chunks]
                held.clear()
                yield batch
            else:
                held += chunks
            if not read:
                break
        if not reader.finished:
            if not begun and not held:
                raise self._no_stream(response, unread)
            raise UpstreamFault(Failure(FailureClass.CUT, "the stream ended without a finish_reason"))

    def _no_stream(self, response: Response, body: bytes) -> UpstreamFault:
        """What a body means that holds no event: an error where it is JSON, else another language."""
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError:
            return malformed(f"the answer is no event stream ({response.headers.get('content-type', '')[:80]})")
        return UpstreamFault(self._dialect.failure(200, body, response.headers))


async def _said(attempt: Attempt, say: Callable[[], WireRequest]) -> WireRequest:
    """The request in the provider's words. Thousands of messages take up to half a second, for which no other call should wait."""
    attempt.sent = False
    if not attempt.large:
        return say()
    wire = await asyncio.to_thread(say)
    if time.monotonic() >= attempt.limits.ends_at:
        raise _silent(attempt.limits.ends_at)
    return wire


async def _body(response: Response, limits: Limits, silent_until: float) -> bytes:
    """The whole body. Some providers send white space while they work: that is silence too, and lasts until `silent_until` at most."""
    pieces: list[bytes] = []
    size, silent = 0, True
    try:
        while True:
            until = min(time.monotonic() + limits.between_tokens_s, limits.ends_at)
            piece = await response.read(min(until, silent_until) if silent else until)
            if not piece:
                return pieces[0] if len(pieces) == 1 else b"".join(pieces)
            size += len(piece)
            if size > MAX_BODY_BYTES:
                raise malformed(f"the body is larger than {MAX_BODY_BYTES} bytes")
            silent = silent and piece.isspace()
            pieces.append(piece)
    except TimeoutError:
        raise (_silent if silent and time.monotonic() >= silent_until else _stalled)(limits.ends_at) from None
    except BrokenOff as error:
        raise UpstreamFault(Failure(FailureClass.CUT, f"the body broke off ({error})")) from error


def _arrived(response: Response, reader: StreamReader) -> Sequence[Chunk]:
    """The chunks of a stream that are here already."""
    try:
        return reader.feed(response.arrived())
    except UpstreamFault as fault:
        return fault.sent


async def _drained(response: Response) -> None:
    """Reads the end of the body behind [DONE], so that the connection can be used again; it is mostly there already."""
    if response.complete:
        return
    until = time.monotonic() + DRAIN_S
    try:
        while await response.read(until):
            pass
    except (TimeoutError, BrokenOff):
        return  # the answer is whole; only the connection is not used again


def _discreet(failure: Failure, deployment: Deployment) -> Failure:
    """The failure without our own credentials: some providers repeat the key that they refuse, and callers may read their words."""
    secrets = [secret for secret in (deployment.api_key, *deployment.headers.values()) if len(secret) >= SECRET_LENGTH]
    message, code, param = (_without(secrets, text) for text in (failure.message, failure.code, failure.param))
    if (message, code, param) == (failure.message, failure.code, failure.param):
        return failure
    return replace(failure, message=message, code=code, param=param)


def _without(secrets: Sequence[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, REDACTED)
        # Where the text was cut within the secret, its end is a beginning of it.
        for size in range(min(len(secret) - 1, len(text)), SECRET_LENGTH - 1, -1):
            if text.endswith(secret[:size]):
                text = text[:-size] + REDACTED
                break
    return text


def told(headers: RawHeaders) -> dict[str, str]:
    """What of a provider's headers callers are told."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers if name in TOLD or name.startswith(TOLD_PREFIXES)}


def _headers(attempt: Attempt, wire: WireRequest, span: Span | None) -> dict[str, str]:
    """Headers of a provider call: the trace of this attempt, the request id and the canary mark go on every hop.

    Baggage may name users, so it goes, like the run id, only to deployments that are one's own (model_info.trusted).
    """
    headers = {"accept-encoding": "identity", "user-agent": "bulkhead", **wire.headers}
    identity = (trace.get_current_span(attempt.parent) if span is None else span).get_span_context()
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


def shown(url: str) -> str:
    """An address as traces may hold it: a query may hold a key, and so may what stands before the host."""
    scheme, _, rest = url.partition("?")[0].partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority.rpartition('@')[2]}{slash}{path}"


def _silent(ends_at: float) -> UpstreamFault:
    ended = time.monotonic() >= ends_at
    return UpstreamFault(Failure(FailureClass.TIMEOUT_TOTAL if ended else FailureClass.TIMEOUT_FIRST_TOKEN, "no answer in time"))


def _stalled(ends_at: float) -> UpstreamFault:
    ended = time.monotonic() >= ends_at
    return UpstreamFault(Failure(FailureClass.TIMEOUT_TOTAL if ended else FailureClass.STALLED, "the answer stopped coming"))


def _span(attempt: Attempt, wire: WireRequest) -> Span | None:
    """The span of one attempt, None below a call that is not traced."""
    around = trace.get_current_span(attempt.parent).get_span_context()
    if around.is_valid and not around.trace_flags.sampled:
        return None
    deployment = attempt.deployment
    span = _tracer.start_span("POST", context=attempt.parent, kind=SpanKind.CLIENT)
    if span.is_recording():
        origin = target_of(wire.url).origin
        span.set_attributes(
            {
                "http.request.method": "POST",
                "url.full": shown(wire.url),
                "server.address": origin.host,
                "server.port": origin.port,
                "http.request.resend_count": attempt.number - 1,
                "bulkhead.model": deployment.group,
                "bulkhead.deployment_id": deployment.id,
            }
        )
    return span


def _end(span: Span | None, error: BaseException | None = None) -> None:
    if span is None:
        return
    if error is not None and not isinstance(error, GeneratorExit | asyncio.CancelledError):
        failed = error.failure.failure_class.value if isinstance(error, UpstreamFault) else type(error).__name__
        span.set_status(Status(StatusCode.ERROR, failed))
        span.set_attribute("error.type", failed)
    elif error is not None:
        span.set_attribute("error.type", "cancelled")
    span.end()
