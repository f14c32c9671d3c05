"""Query parameters of admin requests."""

from services.common.errors import InvalidInput
from services.llm_gateway.model_port.exchange import Exchange


def flag_of(exchange: Exchange, name: str, *, default: bool) -> bool:
    """A boolean. Raises InvalidInput."""
    value = exchange.query(name)
    if value is None:
        return default
    if value.lower() not in ("true", "false", "1", "0"):
        raise InvalidInput.field(name, "must be true or false")
    return value.lower() in ("true", "1")


def number_of(exchange: Exchange, name: str, default: int, most: int) -> int:
    """An integer from 1 to `most`. Raises InvalidInput."""
    value = exchange.query(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10 and 1 <= int(value) <= most):
        raise InvalidInput.field(name, f"must be an integer from 1 to {most}")
    return int(value)
