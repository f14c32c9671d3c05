"""Where Bulkhead is and with which key: `dev.env` of the data folder, or BULKHEAD_URL and BULKHEAD_API_KEY over it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.cli.failure import Denied, Unreachable


@dataclass(frozen=True, slots=True)
class Connection:
    """A base URL without a slash at its end, and the key, which is shown nowhere."""

    url: str
    api_key: str = field(repr=False)


def find_connection(data_dir: Path, environ: Mapping[str, str] = os.environ) -> Connection:
    """Raises Unreachable or Denied with the way out when something is not known."""
    known = {**read_env_file(data_dir / "dev.env"), **{name: value for name, value in environ.items() if value}}
    url = known.get("BULKHEAD_URL", "").rstrip("/")
    if not url and (models := known.get("BULKHEAD_LLM_URL")):
        raise Unreachable(f"only the LLM gateway was started, at {models}/v1: start everything with `make run`, or set BULKHEAD_URL")
    if not url:
        raise Unreachable(f"no Bulkhead is known: start one with `make run` ({data_dir / 'dev.env'} is not there), or set BULKHEAD_URL")
    if not known.get("BULKHEAD_API_KEY"):
        raise Denied("no API key: set BULKHEAD_API_KEY")
    return Connection(url, known["BULKHEAD_API_KEY"])


def read_env_file(path: Path) -> dict[str, str]:
    """NAME=value lines; empty when there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pairs = (line.partition("=") for line in lines if "=" in line and not line.startswith("#"))
    return {name.strip(): value.strip() for name, _, value in pairs}
