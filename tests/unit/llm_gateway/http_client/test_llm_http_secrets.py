"""Providers that repeat the key which they refuse do not make it known to callers."""

import time

import orjson
import pytest
from opentelemetry.context import Context

from services.llm_gateway.adapters.http_upstream import HttpUpstream
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.failures import UpstreamFault
from services.llm_gateway.ports import Attempt, Limits
from services.llm_gateway.registry import Deployment

# No pattern of the redaction knows them.
KEY, HEADER = "0123abcd4567ef890123abcd4567ef89", "team-secret-of-ours"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [200, 400])
@pytest.mark.parametrize("padding", [0, 370], ids=["whole", "cut"])
def test_a_key_that_a_provider_repeats_is_taken_out(run, raw, status, streamed, padding):
    error = {"message": "." * padding + f"no: {KEY} {HEADER}", "code": HEADER, "param": KEY, "type": "invalid_request_error"}
    body = orjson.dumps({"error": error})
    if streamed and status == 200:
        body = b"data: " + body + b"\n\n"

    async def work():
        answer = b"HTTP/1.1 %d X\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body)
        async with raw.served(raw.says(answer)) as (server, client):
            base = server.url.partition("/chat")[0]
            ours = Deployment("d", "g", "vllm", "openai", "m", "chat", api_base=base, api_key=KEY, headers={"x-team": HEADER})
            made = Attempt(ours, {"messages": []}, Limits(5.0, 5.0, 5.0, 5.0, time.monotonic() + 5), 1, Context())
            upstream = HttpUpstream(client, OpenAiDialect())
            with pytest.raises(UpstreamFault) as refused:
                await (anext(upstream.stream(made)) if streamed else upstream.complete(made))
        failure = refused.value.failure
        assert "no: [redacted]" in failure.message
        assert (failure.code, failure.param) == ("[redacted]", "[redacted]")
        assert not any(secret[:10] in failure.message for secret in (KEY, HEADER))

    run(work())
