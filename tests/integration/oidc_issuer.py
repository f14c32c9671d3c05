"""An issuer of tokens: a real HTTP server with keys of its own, and what a forger can make without them."""

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import jwt
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.common import testing

AUDIENCE = "bulkhead"
# Making one takes a tenth of a second: those that stay the same are made once.
RSA_KEY, OTHER_RSA_KEY = rsa.generate_private_key(65537, 2048), rsa.generate_private_key(65537, 2048)


def encoded(part: Any) -> str:
    """A part of a token: JSON or bytes in base64url."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def jwk(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    """The public half as an entry of a key set."""
    kinds = {rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm, ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm}
    algorithm = next((made for kind, made in kinds.items() if isinstance(key, kind)), jwt.algorithms.OKPAlgorithm)
    return {**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig", **more}


class Idp:
    """Signs with `keys`, and shows those of `shown`, or what `answer` says."""

    def __init__(self, path: str = "") -> None:
        self.keys: dict[str, Any] = {
            "rsa": RSA_KEY,
            "ec": ec.generate_private_key(ec.SECP256R1()),
            "ed": ed25519.Ed25519PrivateKey.generate(),
        }
        self.shown = [jwk(key, kid) for kid, key in self.keys.items()]
        self.answer: Any = None
        self.path, self.url = path, ""
        self.asked: list[str] = []

    @property
    def jwks_url(self) -> str:
        """Where its key set is."""
        return f"{self.url}/jwks"

    def claims(self, **more: Any) -> dict[str, Any]:
        """Claims that are good for five minutes; None takes one away."""
        now = int(time.time())
        made = {"iss": self.url, "aud": AUDIENCE, "sub": "mia", "iat": now, "exp": now + 300, "scope": "chat read", **more}
        return {name: value for name, value in made.items() if value is not None}

    def token(self, kid: str = "rsa", algorithm: str = "RS256", *, key: Any = None, header: Any = None, **claims: Any) -> str:
        """A token, signed by the key of the name or by another one."""
        headers = {name: value for name, value in {"kid": kid, **(header or {})}.items() if value is not None}
        return jwt.encode(self.claims(**claims), key or self.keys[kid], algorithm, headers=headers)

    def unsigned(self, algorithm: str, signature: bytes = b"", **claims: Any) -> str:
        """A token that nobody signed."""
        return f"{encoded({'alg': algorithm, 'typ': 'JWT', 'kid': 'rsa'})}.{encoded(self.claims(**claims))}.{encoded(signature)}"

    def by_secret(self, secret: bytes, kid: str = "rsa") -> str:
        """A token with an HMAC."""
        signed = f"{encoded({'alg': 'HS256', 'typ': 'JWT', 'kid': kid})}.{encoded(self.claims())}"
        return f"{signed}.{encoded(hmac.digest(secret, signed.encode(), hashlib.sha256))}"

    def public_pem(self) -> bytes:
        """The public key as text, as everybody has it."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.keys["rsa"].public_key().public_bytes(serialization.Encoding.PEM, form)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        if self.answer is not None:
            return await self.answer(request) if callable(self.answer) else web.Response(status=self.answer)
        if request.path.endswith("/openid-configuration"):
            return web.json_response({"issuer": self.url, "jwks_uri": self.jwks_url})
        return web.json_response({"keys": self.shown})


@asynccontextmanager
async def idp(path: str = "", port: int = 0) -> AsyncIterator[Idp]:
    """An issuer on loopback."""
    made = Idp(path)
    app = web.Application()
    app.router.add_get("/{tail:.*}", made._serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    port = port or testing.free_port()
    made.url = f"http://127.0.0.1:{port}{path}"
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield made
    finally:
        await runner.cleanup()
