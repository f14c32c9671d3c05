"""Model calls as use cases. Every surface calls these, and all of them pass through the one attempt loop."""

import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any, TypeVar

import orjson

from services.common.errors import BulkheadError
from services.common.rpc import context as call_context
from services.llm_gateway.attempts import Course, Opened, Policy
from services.llm_gateway.balancer import Balancer
from services.llm_gateway.chat import Answer, Assembly, ChatCall, Chunk, Meter, text_of
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.money import NOTHING, Usage, priced
from services.llm_gateway.ports import Attempt, Limits, Upstream, Vectors
from services.llm_gateway.recovery import RECOVERABLE, Diverged, Stitch
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.results import Completed, EmbedCall, Embedded, Finished, Notice, Outcome
from services.llm_gateway.telemetry import CallRecord

# OpenAI's price of one high-detail image, as a bound on what a provider counts for a picture that comes as a URL.
IMAGE_TOKENS = 1_500
T = TypeVar("T")
# The first chunks of a stream, and what gives the rest.
_OpenStream = tuple[list[Chunk], AsyncGenerator[list[Chunk], None]]


class Completions:
    """Completes and embeds over the registry that `registry` answers at the time of the call."""

    def __init__(self, registry: Callable[[], Registry], upstreams: Mapping[str, Upstream], policy: Policy, chance: random.Random) -> None:
        self._registry = registry
        self._upstreams = upstreams
        self._policy = policy
        self._chance = chance
        self._balancer = Balancer(chance)

    @property
    def registry(self) -> Registry:
        """The registry as it is now."""
        return self._registry()

    async def complete(self, call: ChatCall) -> Completed:
        """One whole completion. Raises domain errors."""
        registry = self.registry
        group, defaulted = registry.resolve(call.model, "chat")
        notices = [_defaulted(group)] if defaulted else []
        with self._recorded("chat", registry, group, call) as (record, course):

            async def attempt(deployment: Deployment, limits: Limits, number: int) -> Answer:
                record.attempts = number
                made = Attempt(deployment, _body(deployment, call.body), limits, number, record.parent, call.run_id)
                with self._counted(record, deployment):
                    return await self._upstreams[deployment.adapter].complete(made)

            opened = await _opened(course, attempt, notices)
            deployment, answer = opened.deployment, opened.result
            usage = usage_of(deployment, answer.usage, lambda: (input_bound(call.body), len(answer.raw)))
            choice = answer.data["choices"][0]
            outcome = _outcome(course, deployment, usage, choice["finish_reason"], answer.data)
            record.succeeded(deployment, usage, outcome.finish_reason, outcome.response_id, outcome.provider_model)
            return Completed(answer, outcome, notices)

    async def stream(self, call: ChatCall) -> AsyncGenerator[Notice | list[Chunk] | Finished, None]:
        """One streamed completion: notices, lists of chunks, and one Finished at the end of a whole answer.

        Nothing but notices is yielded before the first token. A stream that breaks later is opened again and joined to
        what was delivered, or ends with UpstreamFailed: never as a success. Close the iterator to end the upstream.
        """
        registry = self.registry
        group, defaulted = registry.resolve(call.model, "chat")
        body: Mapping[str, Any] = {**call.body, "stream": True}
        if registry.always_include_stream_usage and "stream_options" not in body:
            body = {**body, "stream_options": {"include_usage": True}}
        with self._recorded("chat", registry, group, call) as (record, course):
            if defaulted:
                yield _defaulted(group)
            stitch, assembly, wasted = Stitch(), Assembly(), NOTHING

            async def attempt(deployment: Deployment, limits: Limits, number: int) -> _OpenStream:
                record.attempts = number
                made = Attempt(deployment, _body(deployment, body), limits, number, record.parent, call.run_id)
                chunks = self._counted_stream(record, deployment, self._upstreams[deployment.adapter].stream(made))
                return await anext(chunks), chunks

            while True:
                opened: Opened[_OpenStream] | None = None
                async with aclosing(course.open(attempt)) as steps:
                    async for step in steps:
                        if isinstance(step, Notice):
                            yield step
                        else:
                            opened = step
                assert opened is not None
                record.first_chunk()
                stitch.restart()
                sent = Meter()
                first, chunks = opened.result
                try:
                    async with aclosing(chunks):
                        batch: list[Chunk] | None = first
                        while batch is not None:
                            for chunk in batch:
                                sent.add(chunk)
                                if chunk.after_gap:
                                    yield Notice(
                                        "event_skipped",
                                        "A part of the model's answer could not be read.",
                                        attributes=(("model", opened.deployment.group),),
                                    )
                            new = stitch.feed(batch)
                            for chunk in new:
                                assembly.add(chunk)
                            if new:
                                yield new
                            batch = await anext(chunks, None)
                    break
                except BaseException as error:
                    # What the provider has sent is paid, however the stream ends: broken, diverged, or closed by its reader.
                    wasted += usage_of(opened.deployment, sent.usage, partial(_stream_bounds, body, sent))
                    record.spent(opened.deployment, wasted)
                    if isinstance(error, Diverged):
                        record.recovering("diverged")
                        raise course.error() from None
                    if not isinstance(error, UpstreamFault):
                        raise
                    broken = course.interrupted(opened.deployment, error.failure)
                    recoverable = stitch.can_restart and error.failure.failure_class in RECOVERABLE
                    record.recovering("restarted" if recoverable else "refused")
                    if not recoverable:
                        raise broken from error
            deployment = opened.deployment
            usage = wasted + usage_of(deployment, sent.usage, partial(_stream_bounds, body, sent))
            ids = {"id": assembly.response_id, "model": assembly.model}
            outcome = _outcome(course, deployment, usage, assembly.finish_reason, ids)
            record.succeeded(deployment, usage, outcome.finish_reason, outcome.response_id, outcome.provider_model)
            yield Finished(assembly.text, assembly.tool_calls, outcome)

    async def embed(self, asked: EmbedCall) -> Embedded:
        """Embeds `body["input"]`, a text or a list of texts. Raises domain errors."""
        registry = self.registry
        body = asked.body
        group, _ = registry.resolve(asked.model, "embedding")
        call = ChatCall(asked.model, body, asked.run_id)
        with self._recorded("embeddings", registry, group, call) as (record, course):

            async def attempt(deployment: Deployment, limits: Limits, number: int) -> Vectors:
                record.attempts = number
                made = Attempt(deployment, _body(deployment, body), limits, number, record.parent, call.run_id)
                with self._counted(record, deployment):
                    return await self._upstreams[deployment.adapter].embed(made)

            opened = await _opened(course, attempt, [])
            deployment, vectors = opened.deployment, opened.result
            tokens = vectors.input_tokens
            usage = priced(deployment.prices, input_bound(body) if tokens is None else tokens, 0, estimated=tokens is None)
            record.succeeded(deployment, usage, response_model=vectors.model)
            return Embedded(vectors, _outcome(course, deployment, usage, "", {"model": vectors.model}))

    @contextmanager
    def _recorded(self, operation: str, registry: Registry, group: Group, call: ChatCall) -> Iterator[tuple[CallRecord, Course]]:
        record = CallRecord(operation, group, call.model, call.run_id, call.thread_id)
        course = Course(registry, group, self._policy, self._balancer, record, self._chance, self._deadline(registry))
        try:
            yield record, course
        except BaseException as error:
            record.failed(error)
            raise

    def _deadline(self, registry: Registry) -> float:
        own = time.monotonic() + min(self._policy.total_s, registry.request_timeout_s or self._policy.total_s)
        context = call_context.current()
        return own if context is None or context.deadline is None else min(own, context.deadline)

    @contextmanager
    def _counted(self, record: CallRecord, deployment: Deployment) -> Iterator[None]:
        with self._balancer.busy(deployment):
            try:
                yield
            except UpstreamFault as fault:
                record.attempted(deployment, fault.failure.failure_class.value)
                raise
            except BaseException as error:
                record.attempted(deployment, "refused" if isinstance(error, BulkheadError) else "cancelled")
                raise
            record.attempted(deployment)

    async def _counted_stream(
        self, record: CallRecord, deployment: Deployment, chunks: AsyncGenerator[list[Chunk], None]
    ) -> AsyncGenerator[list[Chunk], None]:
        with self._counted(record, deployment):
            async with aclosing(chunks):
                async for batch in chunks:
                    yield batch


async def _opened(course: Course, attempt: Callable[[Deployment, Limits, int], Awaitable[T]], notices: list[Notice]) -> Opened[T]:
    """Walks the course to its success; what happens on the way is added to `notices`."""
    async with aclosing(course.open(attempt)) as steps:
        async for step in steps:
            if isinstance(step, Opened):
                return step
            notices.append(step)
    raise AssertionError("a course ends with a success or raises")


def _body(deployment: Deployment, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**deployment.defaults, **body, "model": deployment.model}


def _defaulted(group: Group) -> Notice:
    message = f"No model was named; {group.name} answers."
    return Notice("model_defaulted", message, fallback=group.name, attributes=(("to_model", group.name),))


def _count(holder: Any, key: str) -> int:
    value = holder.get(key) if isinstance(holder, Mapping) else None
    return value if isinstance(value, int) and value > 0 else 0


def usage_of(deployment: Deployment, reported: Mapping[str, Any] | None, bounds: Callable[[], tuple[int, int]]) -> Usage:
    """The provider's usage with its price; without one, `bounds` (input and output tokens at most), flagged as estimated."""
    if reported is None or not isinstance(reported.get("prompt_tokens"), int) or not isinstance(reported.get("completion_tokens", 0), int):
        return priced(deployment.prices, *bounds(), estimated=True)
    return priced(
        deployment.prices,
        _count(reported, "prompt_tokens"),
        _count(reported, "completion_tokens"),
        _count(reported.get("prompt_tokens_details"), "cached_tokens"),
        _count(reported.get("completion_tokens_details"), "reasoning_tokens"),
    )


def input_bound(body: Mapping[str, Any]) -> int:
    """Most tokens that a request can be counted as: a token is at least one byte, and JSON only adds bytes."""
    raw = orjson.dumps(body)
    return len(raw) + IMAGE_TOKENS * raw.count(b'"image_url"')


def _stream_bounds(body: Mapping[str, Any], sent: Meter) -> tuple[int, int]:
    return input_bound(body), sent.output_bytes


def _outcome(course: Course, deployment: Deployment, usage: Usage, finish_reason: str, answer: Mapping[str, Any]) -> Outcome:
    return Outcome(
        deployment=deployment,
        usage=usage,
        finish_reason=finish_reason,
        response_id=text_of(answer.get("id")),
        provider_model=text_of(answer.get("model")) or deployment.model,
        attempts=course.attempts,
        retries=course.retries,
        fallbacks=course.fallbacks,
    )
