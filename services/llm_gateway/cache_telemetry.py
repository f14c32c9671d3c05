"""What the layers around the attempt loop tell: one counter, and the `llm_call` line of an answer that no provider gave."""

import structlog

from services.common.telemetry import Counter
from services.llm_gateway.results import Outcome

# The operations as the attempt loop's own lines call them.
_NAMES = {"embed": "embeddings"}
log = structlog.get_logger("bulkhead.llm")
_lookups = Counter(
    "bulkhead.llm",
    "bulkhead_llm_cache_total",
    ("layer", "outcome"),
    description="Answers by layer (l1, l2, disk, semantic, stale, flight, replay) and outcome (hit, miss, stored, error, refused).",
)


def counted(layer: str, outcome: str, count: int = 1) -> None:
    """Counts what one layer found."""
    _lookups.add(count, layer, outcome)


def answered(operation: str, asked: str, outcome: Outcome, latency_s: float) -> None:
    """The log line of a call that was answered without a provider of its own."""
    log.info(
        "llm_call", operation=_NAMES.get(operation, operation), model=outcome.deployment.group, asked_model=asked, input_tokens=0,
        output_tokens=0, tokens=0, cost_usd=0.0, latency_ms=round(latency_s * 1000, 1), outcome="ok", cached=outcome.cached, attempt=0,
        estimated=False,
    )  # fmt: skip
