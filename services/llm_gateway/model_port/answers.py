"""Headers of successful answers, and what all requests share."""

import time
from typing import Any

from services.common.errors import InvalidInput
from services.llm_gateway.attempts import Notice
from services.llm_gateway.completions import Outcome
from services.llm_gateway.model_port.exchange import Header

PICO = 1e12


def request_model(body: dict[str, Any]) -> str:
    """The model of a request. Raises InvalidInput."""
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidInput.field("model", "you must provide a model")
    return model


def answer_headers(outcome: Outcome, started: float) -> list[Header]:
    """Who answered, after how many attempts, for how much. `started` is on `time.perf_counter()`."""
    elapsed_ms = (time.perf_counter() - started) * 1000
    return [
        (b"x-litellm-model-id", outcome.deployment.id.encode("latin-1", "replace")),
        (b"x-litellm-model-group", outcome.deployment.group.encode("latin-1", "replace")),
        (b"x-litellm-response-cost", f"{outcome.usage.cost_picousd / PICO:.12f}".rstrip("0").rstrip(".").encode()),
        (b"x-litellm-attempted-retries", str(outcome.retries).encode()),
        (b"x-litellm-attempted-fallbacks", str(outcome.fallbacks).encode()),
        (b"openai-processing-ms", str(round(elapsed_ms)).encode()),
        (b"server-timing", f"total;dur={elapsed_ms:.1f}".encode()),
    ]


def warning_headers(notices: list[Notice]) -> list[Header]:
    """The codes of what went wrong on the way, in order."""
    return [(b"x-bulkhead-warnings", ", ".join(notice.code for notice in notices).encode())] if notices else []
