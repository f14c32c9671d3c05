"""Spans, metrics and the log line of model calls. Names: OpenTelemetry GenAI conventions, and `bulkhead.*` beside them.

Conventions: github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/{client-inference,gen-ai-token-metrics}.md; the previous
ones are those of semantic-conventions 1.36, docs/gen-ai.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import structlog
from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common.errors import BulkheadError
from services.common.logging import EveryCall
from services.common.rpc import context as call_context
from services.common.telemetry import Counter, Histogram
from services.llm_gateway import telemetry_content as content
from services.llm_gateway.failures import Failure, FailureClass
from services.llm_gateway.money import NOTHING, Usage
from services.llm_gateway.registry import Deployment, Group
from services.llm_gateway.results import NO_TIMING, Timing

SCOPE = "bulkhead.llm"
TOKEN_BOUNDS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)
log = structlog.get_logger("bulkhead.llm")
_lines = EveryCall(log)
_tracer = trace.get_tracer("bulkhead.llm")
_tokens = Counter(SCOPE, "llm_tokens_total", ("model", "direction"), description="Tokens by model and direction (input, output).")
_cost = Counter(SCOPE, "bulkhead_llm_cost_microusd_total", ("model",), description="Cost of model calls in micro-USD.")
_attempts = Counter(
    SCOPE, "bulkhead_llm_attempts_total", ("model", "deployment", "class"), description="Upstream attempts by deployment and outcome class."
)
_retries = Counter(SCOPE, "bulkhead_llm_retries_total", ("model", "class"), description="Retries by model and failure class.")
_fallbacks = Counter(
    SCOPE, "bulkhead_llm_fallbacks_total", ("from_model", "to_model", "class"), description="Switches from one model to another."
)
_exhausted = Counter(SCOPE, "bulkhead_llm_exhausted_total", ("model", "class"), description="Calls for which every model failed.")
_hedges = Counter(SCOPE, "bulkhead_llm_hedges_total", ("model",), description="Second requests because the first was slow.")
_recoveries = Counter(
    SCOPE, "bulkhead_llm_stream_recoveries_total", ("model", "outcome"), description="Broken streams that were opened again, by outcome."
)
_requests = Histogram(SCOPE, "llm.request.duration", ("model", "outcome"), description="Time of a model call with all its attempts.")
_stages = Histogram(
    SCOPE, "bulkhead_llm_stage_duration_seconds", ("stage",),
    description="Where the time of a call goes: queue, reserve, upstream, retry (waits), overhead (all the rest).",
)  # fmt: skip
_GENAI = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model", "gen_ai.response.model")
_INFERENCE = (*_GENAI, "error.type")
_inference = Histogram(SCOPE, "gen_ai.client.inference.duration", _INFERENCE, description="GenAI operation duration.")
_first_chunk = Histogram(SCOPE, "gen_ai.client.inference.time_to_first_chunk", _GENAI, description="Time to the first token.")
_MODAL = (*_GENAI, "gen_ai.token.modality")
_USAGE = {
    part: Counter(SCOPE, f"gen_ai.client.inference.usage.{part}", _MODAL, unit="{token}", description=f"Tokens used: {part}.")
    for part in ("input_tokens", "output_tokens", "cache_read.input_tokens", "cache_write.input_tokens", "reasoning.output_tokens")
}
_OLD_GENAI = ("gen_ai.operation.name", "gen_ai.system", "gen_ai.request.model", "gen_ai.response.model")
_old_duration = Histogram(SCOPE, "gen_ai.client.operation.duration", (*_OLD_GENAI, "error.type"), description="GenAI operation duration.")
_old_tokens = Histogram(
    SCOPE, "gen_ai.client.token.usage", (*_OLD_GENAI, "gen_ai.token.type"), unit="{token}", bounds=TOKEN_BOUNDS,
    description="Input and output tokens used.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conventions:
    """Which names are used (BULKHEAD_GENAI_SEMCONV), and whether spans hold prompts and answers (BULKHEAD_CAPTURE_CONTENT)."""

    names: Literal["latest", "previous"] = "latest"
    capture_content: bool = False


LATEST = Conventions()


class CallRecord:
    """What is known of one call while it runs; it becomes a span, metrics and the `llm_call` line at the end."""

    def __init__(
        self, operation: str, group: Group, asked: str, run_id: str = "", thread_id: str = "", conventions: Conventions = LATEST
    ) -> None:
        self.started = time.perf_counter()
        self.first_chunk_s: float | None = None
        self.usage: Usage = NOTHING
        self.timing: Timing = NO_TIMING
        self.served: Deployment | None = None
        self.attempts = 0
        self.retries = 0
        self.fallbacks = 0
        self._operation = operation
        self._group = group
        self._latest = conventions.names == "latest"
        self._ended = False
        self._context = otel_context.get_current()
        around = trace.get_current_span(self._context)
        identity = around.get_span_context()
        # Below a call that is not traced nothing is: its ids go on to the provider as they are.
        self._own = not identity.is_valid or identity.trace_flags.sampled
        self.span = around
        self.captures = False
        if self._own:
            self.span = _tracer.start_span(f"{operation} {group.name}", kind=SpanKind.CLIENT)
            if self.span.is_recording():
                self.captures = conventions.capture_content
                self._describe(asked or group.name, run_id, thread_id)

    def _describe(self, asked: str, run_id: str, thread_id: str) -> None:
        attributes: dict[str, str | bool] = {
            "gen_ai.operation.name": self._operation,
            "gen_ai.request.model": asked,
            self._provider_key: self._group.deployments[0].provider,
        }
        if thread_id:
            attributes["gen_ai.conversation.id"] = thread_id
        if run_id:
            attributes["bulkhead.run_id"] = run_id
        context = call_context.current()
        if context is not None:
            attributes["bulkhead.canary"] = context.canary
            attributes["bulkhead.request_id"] = context.request_id
            if context.principal is not None:
                attributes["bulkhead.tenant"] = context.principal.tenant
        self.span.set_attributes(attributes)

    @property
    def _provider_key(self) -> str:
        return "gen_ai.provider.name" if self._latest else "gen_ai.system"

    @property
    def parent(self) -> Context:
        """Trace context for the attempts' spans."""
        return trace.set_span_in_context(self.span) if self._own else self._context

    def requested(self, body: Mapping[str, Any]) -> None:
        """What the request asks for, as far as spans tell it."""
        if self._own and self.span.is_recording():
            self.span.set_attributes(content.request_attributes(body, latest=self._latest))
            if self.captures:
                content.add_input(self.span, body, latest=self._latest)

    def answered(self, text: str, tool_calls: list[dict[str, Any]], finish_reason: str) -> None:
        """The answer's content; only where `captures` says that it is wanted."""
        if self.captures:
            content.add_output(self.span, text, tool_calls, finish_reason, latest=self._latest)

    def attempted(self, deployment: Deployment, failure_class: str = "ok") -> None:
        """Counts an attempt that has ended."""
        _attempts.add(1, deployment.group, deployment.id, failure_class)

    def first_chunk(self) -> None:
        """The first token is here."""
        if self.first_chunk_s is None:
            self.first_chunk_s = time.perf_counter() - self.started

    def retrying(self, deployment: Deployment, failure: Failure, wait_s: float, retry: int) -> None:
        """Observer: the model is asked again."""
        self.retries += 1
        _retries.add(1, deployment.group, failure.failure_class.value)
        self._event("model_retry", {"class": failure.failure_class.value, "wait_s": wait_s, "retry": retry})
        log.warning(
            "model_retry", model=deployment.group, deployment=deployment.id, failure_class=failure.failure_class.value,
            status=failure.status, wait_ms=round(wait_s * 1000), retry=retry, error=failure.message,
        )  # fmt: skip

    def switching(self, start: Group, target: Group, failure: Failure) -> None:
        """Observer: another model is asked."""
        self.fallbacks += 1
        _fallbacks.add(1, start.name, target.name, failure.failure_class.value)
        fields: dict[str, str | int] = {"from_index": start.index, "to_index": target.index, "to_model": target.name}
        self._event("switching_to_next_model", fields)
        log.warning(
            "switching_to_next_model", **fields, failure_class=failure.failure_class.value, status=failure.status, error=failure.message
        )

    def hedging(self, deployment: Deployment, other: Deployment, after_s: float) -> None:
        """Observer: a second deployment is asked as well."""
        _hedges.add(1, deployment.group)
        self.span.add_event("model_hedged", {"bulkhead.deployment_id": other.id, "after_s": after_s})

    def exhausted(self, tried: list[tuple[Deployment, Failure]]) -> None:
        """Observer: nothing is left. A caller's own fault is no error of ours."""
        last = tried[-1][1] if tried else Failure(FailureClass.TIMEOUT_TOTAL)
        if len(tried) == 1 and last.failure_class in (FailureClass.CALLER_FAULT, FailureClass.CONTEXT_WINDOW, FailureClass.CONTENT_POLICY):
            return
        _exhausted.add(1, self._group.name, last.failure_class.value)
        names = [f"{deployment.group}:{failure.failure_class.value}" for deployment, failure in tried]
        log.error("all_models_failed", model=self._group.name, tried=names, last_error=last.message, status=last.status)

    def recovering(self, outcome: str) -> None:
        """A stream broke after its first token; `outcome` is restarted, diverged or refused."""
        _recoveries.add(1, self._group.name, outcome)
        log.warning("stream_recovery", model=self._group.name, outcome=outcome)

    def spent(self, deployment: Deployment, usage: Usage) -> None:
        """What the call has cost so far, and who answered last."""
        self.served, self.usage = deployment, usage

    def succeeded(
        self, deployment: Deployment, usage: Usage, finish_reason: str = "", response_id: str = "", response_model: str = ""
    ) -> None:
        """The call has its answer."""
        self.spent(deployment, usage)
        if self._own and self.span.is_recording():
            self._describe_answer(deployment, usage, finish_reason, response_id, response_model)
        self._end("ok")

    def _describe_answer(self, deployment: Deployment, usage: Usage, finish_reason: str, response_id: str, response_model: str) -> None:
        attributes: dict[str, Any] = {
            self._provider_key: deployment.provider,
            "gen_ai.response.model": response_model or deployment.model,
            "gen_ai.usage.input_tokens": usage.input,
            "gen_ai.usage.output_tokens": usage.output,
            "bulkhead.cost_microusd": usage.cost_microusd,
            "bulkhead.usage_estimated": usage.estimated,
            "bulkhead.model": deployment.group,
            "bulkhead.deployment_id": deployment.id,
            "bulkhead.attempts": self.attempts,
            "bulkhead.retries": self.retries,
            "bulkhead.fallbacks": self.fallbacks,
        }
        if self._latest:
            attributes["gen_ai.usage.cache_read.input_tokens"] = usage.cached_input
            attributes["gen_ai.usage.cache_write.input_tokens"] = usage.cache_write
            attributes["gen_ai.usage.reasoning.output_tokens"] = usage.reasoning
            if self.first_chunk_s is not None:
                attributes["gen_ai.response.time_to_first_chunk"] = self.first_chunk_s
        if finish_reason:
            attributes["gen_ai.response.finish_reasons"] = [finish_reason]
        if response_id:
            attributes["gen_ai.response.id"] = response_id
        self.span.set_attributes(attributes)

    def failed(self, error: BaseException) -> None:
        """The call ended without an answer; a cancelled one is no failure."""
        if isinstance(error, BulkheadError):
            outcome = error.metadata.get("failure_class", error.reason.lower())
            if self._own:
                if error.counts_against_slo:
                    self.span.set_status(Status(StatusCode.ERROR, error.reason))
                self.span.set_attribute("error.type", outcome)
        elif isinstance(error, Exception):
            outcome = "internal"
            if self._own:
                self.span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        else:
            outcome = "cancelled"
        self._end(outcome)

    def _event(self, name: str, attributes: Mapping[str, str | int | float]) -> None:
        if self._own:
            self.span.add_event(name, attributes)

    def _end(self, outcome: str) -> None:
        if self._ended:
            return
        self._ended = True
        elapsed = time.perf_counter() - self.started
        group, usage, served = self._group.name, self.usage, self.served or self._group.deployments[0]
        model = served.group if self.served is not None else group
        if usage is not NOTHING:
            _tokens.add(usage.input, model, "input")
            _tokens.add(usage.output, model, "output")
            _cost.add(usage.cost_microusd, model)
        _requests.record(elapsed, model, outcome)
        self._measure(elapsed, outcome, group, served, usage)
        timing = self.timing
        if timing is not NO_TIMING:
            _stages.record(timing.queue_s, "queue")
            _stages.record(timing.reserve_s, "reserve")
            _stages.record(timing.upstream_s, "upstream")
            if timing.retry_s:
                _stages.record(timing.retry_s, "retry")
            known_s = timing.queue_s + timing.reserve_s + timing.upstream_s + timing.retry_s
            _stages.record(max(elapsed - known_s, 0.0), "overhead")
        if self._own:
            self.span.end()
        _lines.info(
            "llm_call",
            {"operation": self._operation, "model": model, "asked_model": group, "outcome": outcome},
            {
                "input_tokens": usage.input, "output_tokens": usage.output, "tokens": usage.input + usage.output,
                "cost_usd": usage.cost_picousd / 1e12, "latency_ms": round(elapsed * 1000, 1), "cached": False, "attempt": self.attempts,
                "estimated": usage.estimated,
            },
        )  # fmt: skip

    def _measure(self, elapsed: float, outcome: str, asked: str, served: Deployment, usage: Usage) -> None:
        error = "" if outcome == "ok" else outcome
        labels = (self._operation, served.provider, asked, served.model)
        if not self._latest:
            _old_duration.record(elapsed, *labels, error)
            if usage is not NOTHING:
                _old_tokens.record(usage.input, *labels, "input")
                _old_tokens.record(usage.output, *labels, "output")
            return
        _inference.record(elapsed, *labels, error)
        if self.first_chunk_s is not None:
            _first_chunk.record(self.first_chunk_s, *labels)
        if usage is NOTHING:
            return
        # Providers do not tell text from pictures in what they count.
        _USAGE["input_tokens"].add(usage.input, *labels, "unknown")
        _USAGE["output_tokens"].add(usage.output, *labels, "unknown")
        if usage.cached_input:
            _USAGE["cache_read.input_tokens"].add(usage.cached_input, *labels, "unknown")
        if usage.cache_write:
            _USAGE["cache_write.input_tokens"].add(usage.cache_write, *labels, "unknown")
        if usage.reasoning:
            _USAGE["reasoning.output_tokens"].add(usage.reasoning, *labels, "unknown")
