"""What the headers of a request ask of the gateway itself."""

from collections.abc import Mapping

from services.common.errors import InvalidInput
from services.llm_gateway.terms import PLAIN, CacheTerms, Terms

CACHE_CONTROL = "x-bulkhead-cache-control"
MAX_COST = "x-bulkhead-max-cost-microusd"
IDEMPOTENCY_KEY = "idempotency-key"
SEMANTIC = "x-bulkhead-semantic-cache"
MAX_KEY = 255


def terms_of(headers: Mapping[str, str]) -> Terms:
    """The terms of a request. Raises InvalidInput that names the header. Header names are in lower case."""
    control, most, key, semantic = headers.get(CACHE_CONTROL), headers.get(MAX_COST), headers.get(IDEMPOTENCY_KEY), headers.get(SEMANTIC)
    if control is None and most is None and key is None and semantic is None:
        return PLAIN
    if key is not None and not (0 < len(key) <= MAX_KEY and key.isprintable()):
        raise InvalidInput.field(IDEMPOTENCY_KEY, f"must be 1 to {MAX_KEY} printable characters")
    return Terms(
        cache=_cache_terms(control or "", semantic),
        idempotency_key=key or "",
        lingers=key is not None,
        max_cost_microusd=None if most is None else _whole(most, MAX_COST),
    )


def _cache_terms(control: str, semantic: str | None) -> CacheTerms:
    read, write = True, True
    max_age_s: float | None = None
    ttl_s: float | None = None
    stale_s: float | None = None
    for directive in filter(None, (part.strip().lower() for part in control.split(","))):
        name, _, value = directive.partition("=")
        match name:
            case "no-cache":
                read = False
            case "no-store":
                write = False
            case "max-age":
                max_age_s = float(_whole(value, CACHE_CONTROL))
            case "ttl":
                ttl_s = float(_whole(value, CACHE_CONTROL))
            case "stale-if-error":
                stale_s = float(_whole(value, CACHE_CONTROL))
            case _:
                wanted = "takes no-cache, no-store, max-age=SECONDS, ttl=SECONDS and stale-if-error=SECONDS"
                raise InvalidInput.field(CACHE_CONTROL, wanted)
    importance = 0.0
    if semantic is not None:
        # The value is the importance of the answer, 0 to 1: only what its caller calls important is kept for similar questions.
        try:
            importance = float(semantic)
        except ValueError:
            importance = -1.0
        if not 0.0 <= importance <= 1.0:
            raise InvalidInput.field(SEMANTIC, "must be the importance of the answer, a number from 0 to 1")
    return CacheTerms(read, write, max_age_s, ttl_s, semantic is not None, importance, stale_s)


def _whole(value: str, where: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise InvalidInput.field(where, "must hold whole numbers")
    return int(value)
