"""The floor: an ASGI application on uvicorn that hands each POST to the upstream with aiohttp, and nothing else.

python -m scripts.bench.llm_relay PORT UPSTREAM_URL
"""

import sys

import aiohttp
import orjson
import uvicorn
import uvloop


class Relay:
    """Reads the body, parses it once, asks the upstream, parses the answer, sends it on."""

    def __init__(self, url: str) -> None:
        self._url = url + "/v1/chat/completions"
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope, receive, send) -> None:
        """One request."""
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar())
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        streamed = orjson.loads(body).get("stream")
        async with self._session.post(self._url, data=body, headers={"content-type": "application/json"}) as answer:
            head = [(b"content-type", answer.headers["content-type"].encode())]
            if not streamed:
                raw = await answer.read()
                orjson.loads(raw)
                head.append((b"content-length", str(len(raw)).encode()))
                await send({"type": "http.response.start", "status": answer.status, "headers": head})
                await send({"type": "http.response.body", "body": raw})
                return
            await send({"type": "http.response.start", "status": answer.status, "headers": head})
            while read := await answer.content.readany():
                await send({"type": "http.response.body", "body": read, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


if __name__ == "__main__":
    config = uvicorn.Config(
        Relay(sys.argv[2]), port=int(sys.argv[1]), loop="none", lifespan="off", access_log=False, log_config=None, http="httptools"
    )
    uvloop.run(uvicorn.Server(config).serve())
