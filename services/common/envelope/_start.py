"""What a service does about encryption at its start."""

from pathlib import Path

import redis.asyncio as redis
import structlog

from services.common.envelope._envelope import Envelope
from services.common.envelope._roots import RootKeys
from services.common.settings import StartRefused

log = structlog.get_logger("bulkhead.envelope")


def opened_envelope(client: redis.Redis, keys_file: Path | None, *, replicas: int = 0) -> Envelope | None:
    """The envelope over the keys of `keys_file`; None without a file, which is said. Raises StartRefused for a file that is not one."""
    if keys_file is None:
        log.warning("personal_data_not_encrypted", variable="BULKHEAD_ENVELOPE_KEYS_FILE", detail="records are stored in plain text")
        return None
    try:
        return Envelope(client, RootKeys.from_file(keys_file), replicas=replicas)
    except (OSError, ValueError) as error:
        raise StartRefused([f"BULKHEAD_ENVELOPE_KEYS_FILE: {error}"]) from error
