"""Error bodies and headers of the model port: whether an SDK should try again, and which field was wrong."""

import json

import pytest

from services.common.errors import BudgetExceeded, InvalidInput, Overloaded, PermissionDenied, QuotaExceeded, UpstreamFailed
from services.llm_gateway.model_port.errors import error_body, error_headers


@pytest.mark.parametrize(
    ("error", "repeats"),
    [
        (QuotaExceeded("x", retry_after_s=1.0), True),
        (Overloaded("x", reason="QUEUE_FULL", retry_after_s=1.0), True),
        (BudgetExceeded("x"), False),  # a 429 as well, and the SDKs repeat every 429 that does not say so
        (UpstreamFailed("x"), False),
        (Overloaded("x", metadata={"failure_class": "breaker_open"}), False),
    ],
)
def test_sdks_are_told_what_a_repeat_cannot_help(error, repeats):
    assert ((b"x-should-retry", b"false") in error_headers(error)) is not repeats


@pytest.mark.parametrize(
    "error", [InvalidInput("x", reason="MODEL_MODE_MISMATCH"), PermissionDenied("x", reason="MODEL_NOT_ALLOWED")], ids=lambda e: e.reason
)
def test_a_wrong_model_names_the_field(error):
    assert json.loads(error_body(error))["error"]["param"] == "model"
