"""Getting an issuer's key set: bounded in time and size, over TLS, from where the configuration says and nowhere else."""

import asyncio
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httptools

from services.gateway.oidc._config import Issuer, trusted_url

# Of one answer, from the name of its host to its last byte.
TIMEOUT_S = 5.0
MOST_BYTES = 512 * 1024
DISCOVERY = "/.well-known/openid-configuration"
OK = 200
_CHUNK = 65_536


class NotToBeHad(Exception):
    """The key set did not come, or is none; the text is for logs."""


class _Answer:
    """What the parser finds in the bytes of an answer."""

    def __init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.content = b""
        self.whole = False

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        self.content += piece

    def on_message_complete(self) -> None:
        # Those below are told of an answer that is still to come.
        self.whole = self.status >= OK


async def key_set(issuer: Issuer) -> Mapping[str, Any]:
    """The JWKS of an issuer. Raises NotToBeHad."""
    url = issuer.jwks_url
    if url is None:
        document = await _json_of(issuer.issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != issuer.issuer:
            raise NotToBeHad("the discovery document is another issuer's")
        try:
            url = trusted_url(str(document.get("jwks_uri", "")))
        except ValueError as error:
            raise NotToBeHad(f"jwks_uri {error}") from error
        if issuer.issuer.startswith("https:") and not url.startswith("https:"):
            # Only one on this machine leads to others on it.
            raise NotToBeHad("jwks_uri must begin with https://")
    return await _json_of(url)


async def _json_of(url: str) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            content = await _content(urlsplit(url))
    except (OSError, ValueError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:  # ValueError: a host that is none
        raise NotToBeHad(type(error).__name__) from error
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NotToBeHad("the answer is no JSON") from error
    if not isinstance(found, dict):
        raise NotToBeHad("the answer is no object")
    return found


async def _content(url: SplitResult) -> bytes:
    # The trusted certificates are read from files.
    tls = await asyncio.to_thread(ssl.create_default_context) if url.scheme == "https" else None
    reader, writer = await asyncio.open_connection(url.hostname, url.port or (443 if tls else 80), ssl=tls)
    try:
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        headers = "accept: application/json\r\naccept-encoding: identity\r\nconnection: close\r\n"
        writer.write(f"GET {target} HTTP/1.1\r\nhost: {url.netloc}\r\n{headers}\r\n".encode("ascii"))
        answer, size = _Answer(), 0
        # Where nothing says how long an answer is, its end is that of the connection.
        while not answer.whole and (piece := await reader.read(_CHUNK)):
            size += len(piece)
            if size > MOST_BYTES:
                raise NotToBeHad("the answer is too large")
            answer.parser.feed_data(piece)
    finally:
        # Nobody waits for the issuer's part of a good end.
        writer.transport.abort()
    if answer.status != OK:
        # Others are led to where nobody looked.
        raise NotToBeHad(f"the status is {answer.status}")
    return answer.content
