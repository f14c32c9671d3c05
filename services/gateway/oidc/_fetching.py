"""Getting an issuer's key set: bounded in time and size, over TLS, from where the configuration says and nowhere else."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from typing import IO, Any

from services.gateway.oidc._config import Issuer, trusted_url

TIMEOUT_S = 5.0
MOST_BYTES = 512 * 1024
DISCOVERY = "/.well-known/openid-configuration"


class NotToBeHad(Exception):
    """The key set did not come, or is none; the text is for logs."""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        raise NotToBeHad("the issuer redirects")


def key_set(issuer: Issuer) -> Mapping[str, Any]:
    """The JWKS of an issuer. It blocks, for some seconds at most: it belongs into a thread. Raises NotToBeHad."""
    url = issuer.jwks_url
    if url is None:
        document = _json_of(issuer.issuer.rstrip("/") + DISCOVERY)
        if document.get("issuer") != issuer.issuer:
            raise NotToBeHad("the discovery document is another issuer's")
        try:
            url = trusted_url(str(document.get("jwks_uri", "")))
        except ValueError as error:
            raise NotToBeHad(f"jwks_uri {error}") from error
    return _json_of(url)


def _json_of(url: str) -> Mapping[str, Any]:
    opener = urllib.request.build_opener(_Stay)
    end = time.monotonic() + TIMEOUT_S
    request = urllib.request.Request(url, headers={"accept": "application/json"})  # noqa: S310 - trusted_url let it pass
    try:
        with opener.open(request, timeout=TIMEOUT_S) as response:
            content = b""
            # The timeout is that of one read: an issuer that sends byte by byte must not hold a thread for ever.
            while piece := response.read1(65_536):
                content += piece
                if len(content) > MOST_BYTES or time.monotonic() > end:
                    raise NotToBeHad("the answer is too large or too slow")
    except (OSError, ValueError, urllib.error.URLError) as error:
        raise NotToBeHad(type(error).__name__) from error
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NotToBeHad("the answer is no JSON") from error
    if not isinstance(found, dict):
        raise NotToBeHad("the answer is no object")
    return found
