"""What an idempotency key may be, on every route that takes one."""

from services.common.errors import FieldViolation, InvalidInput

MOST_KEY_CHARS = 255


def key_violations(key: str, *, required: bool = False) -> list[FieldViolation]:
    """What is wrong with a key; empty is well. None is no key, and well unless it is `required`."""
    if len(key) > MOST_KEY_CHARS or (required and not key):
        return [FieldViolation("idempotency_key", f"must be {'1 to' if required else 'at most'} {MOST_KEY_CHARS} characters")]
    return []


def check_key(key: str) -> str:
    """The key. Raises InvalidInput."""
    if violations := key_violations(key):
        raise InvalidInput.field(violations[0].field, violations[0].description)
    return key


def key_of(user: str, key: str) -> str:
    """A user's key among those of their tenant; empty for none."""
    return f"{user}/{key}" if key else ""
