"""Reading bodies: bounded in size, time and depth; strict UTF-8 and strict JSON, in whose objects no name stands twice.

read_body(receive, …)      # a small body, as a whole
body_pieces(receive, …)    # a large one, as it comes
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from services.common.errors import FieldViolation, InvalidInput
from services.gateway.refusals import BodyTimeout, BodyTooLarge, ClientGone

# A client that sends too much is listened to for this long, so that it can read the refusal; then it is cut off.
DISCARD_BYTES = 16 * 1024 * 1024
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SHOWN_NAME_CHARS = 64
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


async def read_body(receive: Receive, content_length: str | None, limit: int, timeout_s: float) -> bytes:
    """The whole body.

    Raises BodyTooLarge beyond `limit` bytes, BodyTimeout when it takes longer than `timeout_s`, ClientGone when the client leaves.
    """
    announced = int(content_length) if content_length and content_length.isdigit() else 0
    try:
        async with asyncio.timeout(timeout_s):
            if announced > limit:
                if announced <= DISCARD_BYTES:
                    await _discard(receive)
                raise _too_large(limit)
            chunks: list[bytes] = []
            size = 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone("the client went away while it sent the body")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    if message.get("more_body", False):
                        await _discard(receive, size)
                    raise _too_large(limit)
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError:
        raise BodyTimeout(f"the body did not come within {timeout_s:g} s") from None


async def body_pieces(
    receive: Receive, content_length: str | None, limit: int, silence_s: float, timeout_s: float
) -> AsyncGenerator[bytes, None]:
    """The body in pieces that are not empty, each read when it is asked for: a reader that takes its time holds up the client.

    Raises BodyTooLarge beyond `limit` bytes, and before the first byte where that many are announced; BodyTimeout when nothing comes for
    `silence_s`, or all of it took longer than `timeout_s`; ClientGone when the client leaves.
    """
    if content_length and content_length.isdigit() and int(content_length) > limit:
        raise _too_large(limit)
    end = time.monotonic() + timeout_s
    size, more = 0, True
    while more:
        try:
            async with asyncio.timeout(min(silence_s, max(0.0, end - time.monotonic()))):
                message = await receive()
        except TimeoutError:
            raise BodyTimeout(f"nothing of the body came for {silence_s:g} s, or all of it took longer than {timeout_s:g} s") from None
        if message["type"] == "http.disconnect":
            raise ClientGone("the client went away while it sent the body")
        piece, more = message.get("body", b""), message.get("more_body", False)
        size += len(piece)
        if size > limit:
            raise _too_large(limit)
        if piece:
            yield piece


async def _discard(receive: Receive, size: int = 0) -> None:
    while size <= DISCARD_BYTES:
        message = await receive()
        size += len(message.get("body", b""))
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"the body is larger than {limit} bytes", metadata={"limit": str(limit)})


def parse_json(raw: bytes, depth_limit: int) -> Any:
    """The value of a JSON text. `depth_limit` is at most 254, which is as deep as orjson writes.

    Raises InvalidInput for anything that is not strict JSON in UTF-8, is nested too deeply, or has a name twice in one object: two readers
    of the same text might each take another one.
    """
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        if "depth" in error.msg or "ecursion" in error.msg:  # orjson stops by itself at 1,024 levels
            raise _too_deep(depth_limit) from None
        if not _is_utf8(raw):
            raise InvalidInput("the body is not valid UTF-8", reason="INVALID_ENCODING") from None
        raise InvalidInput(f"the body is not valid JSON (line {error.lineno}, column {error.colno})", reason="INVALID_JSON") from None
    if raw.count(b"[") + raw.count(b"{") > depth_limit and _depth_exceeds(raw, depth_limit):
        raise _too_deep(depth_limit)
    if _has_more_names(raw, value):
        json.loads(raw, object_pairs_hook=_each_once)
    return value


def _has_more_names(valid_json: bytes, value: Any) -> bool:
    """Whether names may have got lost on the way from the text to its value; False only where none have.

    Each member has one colon outside of strings, and orjson keeps the last of those with the same name: written again, the value has fewer
    colons. Those within strings are as many as before, counted with the ways to escape one; what only looks like such an escape counts too
    much. It costs about a microsecond for 1 kB, where a walk over the pairs takes several times as long as the parsing.
    """
    colons = valid_json.count(b":")
    if b"\\u" in valid_json:
        colons += valid_json.count(b"\\u003a") + valid_json.count(b"\\u003A")
    return colons != orjson.dumps(value).count(b":")


def _each_once(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        name = next(name for name, times in Counter(names).items() if times > 1)[:_SHOWN_NAME_CHARS]
        twice = FieldViolation(name, "stands twice in one object")
        raise InvalidInput(f"the name {json.dumps(name)} {twice.description}", reason="INVALID_JSON", violations=[twice])


def _too_deep(depth_limit: int) -> InvalidInput:
    return InvalidInput(f"the body is nested deeper than {depth_limit} levels", reason="NESTED_TOO_DEEPLY")


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _depth_exceeds(valid_json: bytes, limit: int) -> bool:
    """Whether a valid JSON text is nested deeper than `limit`; a few passes in C instead of a walk over every value."""
    bare = _without_strings(valid_json).translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(limit):
        if not bare:
            return False
        bare = bare.replace(b"[]", b"")
    return bool(bare)


def _without_strings(valid_json: bytes) -> bytes:
    # Outside of strings JSON has no quote and no backslash, so removing escapes first leaves quotes as delimiters only.
    parts = valid_json.replace(b"\\\\", b"").replace(b'\\"', b"").split(b'"')
    return b"".join(parts[::2])
