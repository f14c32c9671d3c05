"""Spans, metrics and the log line of model calls. Names: OpenTelemetry GenAI conventions, and `bulkhead.*` beside them."""

import time

import structlog
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import get_meter
from opentelemetry.trace import SpanKind, Status, StatusCode

from services.common.errors import BulkheadError
from services.common.rpc import context as call_context
from services.llm_gateway.failures import Failure, FailureClass
from services.llm_gateway.money import NOTHING, Usage
from services.llm_gateway.registry import Deployment, Group

log = structlog.get_logger("bulkhead.llm")
_tracer = trace.get_tracer("bulkhead.llm")
_meter = get_meter("bulkhead.llm")
_tokens = _meter.create_counter("llm_tokens_total", description="Tokens by model and direction (input, output).")
_cost = _meter.create_counter("bulkhead_llm_cost_microusd_total", description="Cost of model calls in micro-USD.")
_attempts = _meter.create_counter("bulkhead_llm_attempts_total", description="Upstream attempts by deployment and outcome class.")
_retries = _meter.create_counter("bulkhead_llm_retries_total", description="Retries by model and failure class.")
_fallbacks = _meter.create_counter("bulkhead_llm_fallbacks_total", description="Switches from one model to another.")
_exhausted = _meter.create_counter("bulkhead_llm_exhausted_total", description="Calls for which every model failed.")
_recoveries = _meter.create_counter(
    "bulkhead_llm_stream_recoveries_total", description="Broken streams that were opened again, by outcome."
)
_requests = _meter.create_histogram("llm.request.duration", unit="s", description="Time of a model call with all its attempts.")
_inference = _meter.create_histogram("gen_ai.client.inference.duration", unit="s", description="GenAI operation duration.")
_first_chunk = _meter.create_histogram("gen_ai.client.inference.time_to_first_chunk", unit="s", description="Time to the first token.")


class CallRecord:
    """What is known of one call while it runs; it becomes a span, metrics and the `llm_call` line at the end."""

    def __init__(self, operation: str, group: Group, asked: str, run_id: str = "", thread_id: str = "") -> None:
        self.started = time.perf_counter()
        self.first_chunk_s: float | None = None
        self.usage: Usage = NOTHING
        self.served: Deployment | None = None
        self.attempts = 0
        self.retries = 0
        self.fallbacks = 0
        self._operation = operation
        self._group = group
        self._ended = False
        attributes: dict[str, str] = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": asked or group.name,
            "gen_ai.provider.name": group.deployments[0].provider,
        }
        if thread_id:
            attributes["gen_ai.conversation.id"] = thread_id
        if run_id:
            attributes["bulkhead.run_id"] = run_id
        self.span = _tracer.start_span(f"{operation} {group.name}", kind=SpanKind.CLIENT, attributes=attributes)
        context = call_context.current()
        if context is not None and self.span.is_recording():
            self.span.set_attribute("bulkhead.canary", context.canary)
            self.span.set_attribute("bulkhead.request_id", context.request_id)
            if context.principal is not None:
                self.span.set_attribute("bulkhead.tenant", context.principal.tenant)

    @property
    def parent(self) -> Context:
        """Trace context for the attempts' spans."""
        return trace.set_span_in_context(self.span)

    def attempted(self, deployment: Deployment, failure_class: str = "ok") -> None:
        """Counts an attempt that has ended."""
        _attempts.add(1, {"model": deployment.group, "deployment": deployment.id, "class": failure_class})

    def first_chunk(self) -> None:
        """The first token is here."""
        if self.first_chunk_s is None:
            self.first_chunk_s = time.perf_counter() - self.started

    def retrying(self, deployment: Deployment, failure: Failure, wait_s: float, retry: int) -> None:
        """Observer: the model is asked again."""
        self.retries += 1
        _retries.add(1, {"model": deployment.group, "class": failure.failure_class.value})
        self.span.add_event("model_retry", {"class": failure.failure_class.value, "wait_s": wait_s, "retry": retry})
        log.warning(
            "model_retry", model=deployment.group, deployment=deployment.id, failure_class=failure.failure_class.value,
            status=failure.status, wait_ms=round(wait_s * 1000), retry=retry, error=failure.message,
        )  # fmt: skip

    def switching(self, start: Group, target: Group, failure: Failure) -> None:
        """Observer: another model is asked."""
        self.fallbacks += 1
        _fallbacks.add(1, {"from_model": start.name, "to_model": target.name, "class": failure.failure_class.value})
        fields: dict[str, str | int] = {"from_index": start.index, "to_index": target.index, "to_model": target.name}
        self.span.add_event("switching_to_next_model", fields)
        log.warning(
            "switching_to_next_model", **fields, failure_class=failure.failure_class.value, status=failure.status, error=failure.message
        )

    def exhausted(self, tried: list[tuple[Deployment, Failure]]) -> None:
        """Observer: nothing is left. A caller's own fault is no error of ours."""
        last = tried[-1][1] if tried else Failure(FailureClass.TIMEOUT_TOTAL)
        if len(tried) == 1 and last.failure_class in (FailureClass.CALLER_FAULT, FailureClass.CONTEXT_WINDOW, FailureClass.CONTENT_POLICY):
            return
        _exhausted.add(1, {"model": self._group.name, "class": last.failure_class.value})
        names = [f"{deployment.group}:{failure.failure_class.value}" for deployment, failure in tried]
        log.error("all_models_failed", model=self._group.name, tried=names, last_error=last.message, status=last.status)

    def recovering(self, outcome: str) -> None:
        """A stream broke after its first token; `outcome` is restarted, diverged or refused."""
        _recoveries.add(1, {"model": self._group.name, "outcome": outcome})
        log.warning("stream_recovery", model=self._group.name, outcome=outcome)

    def spent(self, deployment: Deployment, usage: Usage) -> None:
        """What the call has cost so far, and who answered last."""
        self.served, self.usage = deployment, usage

    def succeeded(
        self, deployment: Deployment, usage: Usage, finish_reason: str = "", response_id: str = "", response_model: str = ""
    ) -> None:
        """The call has its answer."""
        self.spent(deployment, usage)
        if self.span.is_recording():
            self.span.set_attributes(
                {
                    "gen_ai.provider.name": deployment.provider,
                    "gen_ai.response.model": response_model or deployment.model,
                    "gen_ai.usage.input_tokens": usage.input,
                    "gen_ai.usage.output_tokens": usage.output,
                    "gen_ai.usage.cache_read.input_tokens": usage.cached_input,
                    "bulkhead.cost_microusd": usage.cost_microusd,
                    "bulkhead.usage_estimated": usage.estimated,
                    "bulkhead.model": deployment.group,
                    "bulkhead.deployment_id": deployment.id,
                    "bulkhead.attempts": self.attempts,
                    "bulkhead.fallbacks": self.fallbacks,
                }
            )
            if finish_reason:
                self.span.set_attribute("gen_ai.response.finish_reasons", [finish_reason])
            if response_id:
                self.span.set_attribute("gen_ai.response.id", response_id)
            if self.first_chunk_s is not None:
                self.span.set_attribute("gen_ai.response.time_to_first_chunk", self.first_chunk_s)
        self._end("ok")

    def failed(self, error: BaseException) -> None:
        """The call ended without an answer; a cancelled one is no failure."""
        if isinstance(error, BulkheadError):
            outcome = error.metadata.get("failure_class", error.reason.lower())
            if error.counts_against_slo:
                self.span.set_status(Status(StatusCode.ERROR, error.reason))
            self.span.set_attribute("error.type", outcome)
        elif isinstance(error, Exception):
            outcome = "internal"
            self.span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        else:
            outcome = "cancelled"
        self._end(outcome)

    def _end(self, outcome: str) -> None:
        if self._ended:
            return
        self._ended = True
        elapsed = time.perf_counter() - self.started
        group, usage = self._group.name, self.usage
        served = self.served.group if self.served else group
        if usage is not NOTHING:
            _tokens.add(usage.input, {"model": served, "direction": "input"})
            _tokens.add(usage.output, {"model": served, "direction": "output"})
            _cost.add(usage.cost_microusd, {"model": served})
        labels = {"model": served, "outcome": outcome}
        _requests.record(elapsed, labels)
        _inference.record(
            elapsed, {"gen_ai.operation.name": self._operation, "gen_ai.request.model": group, "gen_ai.response.model": served}
        )
        if self.first_chunk_s is not None:
            _first_chunk.record(self.first_chunk_s, {"gen_ai.request.model": group})
        self.span.end()
        log.info(
            "llm_call", operation=self._operation, model=served, asked_model=group, input_tokens=usage.input, output_tokens=usage.output,
            tokens=usage.input + usage.output, cost_usd=usage.cost_picousd / 1e12, latency_ms=round(elapsed * 1000, 1), outcome=outcome,
            cached=False, attempt=self.attempts, estimated=usage.estimated,
        )  # fmt: skip
