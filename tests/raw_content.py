"""What stands in stores and files, in plain: every key by its type, and files as they are read."""

import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import redis


def of_store(url: str) -> Iterator[tuple[str, bytes]]:
    """Name and content of every key, the name within the content. A dump would hide what the store has packed."""
    client = redis.Redis.from_url(url)
    reads = {
        b"string": client.get, b"hash": client.hgetall, b"set": client.smembers, b"stream": client.xrange,
        b"list": lambda key: client.lrange(key, 0, -1), b"zset": lambda key: client.zrange(key, 0, -1),
    }  # fmt: skip
    for key in client.scan_iter(count=1000):
        kind = client.type(key)
        if kind != b"none":
            yield key.decode(errors="replace"), b" ".join([key, *_leaves(reads[kind](key))])
    for library in client.execute_command("FUNCTION", "LIST"):
        yield "FUNCTION", b" ".join(_leaves(library))
    client.close()


def of_folder(root: Path) -> Iterator[tuple[str, bytes]]:
    """Path and content of every file, its name within the content; what is packed is unpacked as well."""
    for path in sorted(root.rglob("*")):
        try:
            content = path.read_bytes() if path.is_file() else b""
        except FileNotFoundError:
            continue
        yield str(path.relative_to(root)), b" ".join([str(path.relative_to(root)).encode(), content, *_unpacked(content)])


def _leaves(value: object) -> Iterator[bytes]:
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _leaves(name)
            yield from _leaves(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _leaves(part)
    elif isinstance(value, bytes):
        yield value
        yield from _unpacked(value)
    elif value is not None:
        yield str(value).encode()


def _unpacked(content: bytes) -> Iterator[bytes]:
    # Segments and journals are zlib or gzip, some behind a header.
    for magic in (b"\x78\x9c", b"\x78\x01", b"\x78\xda", b"\x1f\x8b"):
        at = content.find(magic)
        while at >= 0:
            with suppress(zlib.error):
                yield zlib.decompressobj(zlib.MAX_WBITS | 32).decompress(content[at:])
            at = content.find(magic, at + 1)
