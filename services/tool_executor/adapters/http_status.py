"""HTTP statuses in the words of the taxonomy."""

from collections.abc import Mapping

from services.tool_executor.failures import ToolFailure

_CODES: Mapping[int, str] = {
    401: "upstream.auth", 403: "upstream.auth", 404: "upstream.not_found", 409: "upstream.conflict", 410: "upstream.not_found",
    429: "upstream.rate_limited",
}  # fmt: skip
MAX_RETRY_AFTER_S = 3600


def failure_of(status: int, headers: Mapping[str, str], who: str) -> ToolFailure:
    """The failure that a status outside 2xx stands for; a 5xx answer does not say whether anything was done."""
    code = "upstream.server" if status >= 500 else _CODES.get(status, "upstream.bad_request")
    after = headers.get("Retry-After", "")
    # The other form, a date, would need the other side's clock.
    retry_after_s = float(min(int(after), MAX_RETRY_AFTER_S)) if after.isascii() and after.isdigit() and len(after) < 7 else None
    return ToolFailure(
        code, f"{who} answered with HTTP status {status}.", developer_message=f"status {status}", retry_after_s=retry_after_s
    )
