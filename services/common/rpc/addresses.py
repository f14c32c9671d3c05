"""Where the services are: fixed addresses, or a file that whoever starts replicas keeps up to date."""

import ipaddress
import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

LOOK_EVERY_S = 0.5


class Addresses:
    """Resolves a service name to a gRPC target.

    A file `{"orchestrator": ["127.0.0.1:50051", …], …}` wins over the fixed addresses and is read again when it
    changes; a file caught half-written leaves the last good content in force.
    """

    def __init__(self, fixed: Mapping[str, str], file: Path | None = None) -> None:
        self._fixed = dict(fixed)
        self._file = file
        self._from_file: dict[str, list[str]] = {}
        self._stamp: tuple[int, int] | None = None
        self._looked_at = float("-inf")

    def target(self, service: str) -> str:
        """A gRPC target: `ipv4:` with every literal address, else `dns:///host:port`. Raises LookupError when unknown."""
        self._refresh()
        listed = self._from_file.get(service) or [a for a in [self._fixed.get(service, "")] if a]
        if not listed:
            raise LookupError(f"no address is configured for {service}")
        if all(_is_ipv4(address) for address in listed):
            return "ipv4:" + ",".join(listed)
        return f"dns:///{listed[0]}"

    def _refresh(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            stat = self._file.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._stamp:
                content = json.loads(self._file.read_text())
                self._from_file = {name: [str(a) for a in listed] for name, listed in content.items()}
                self._stamp = stamp
        except (OSError, ValueError, AttributeError, TypeError):
            # Not there yet, or being written: what we know stays in force and the file is looked at again soon.
            return


@lru_cache(maxsize=1024)
def _is_ipv4(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return port.isdigit()
