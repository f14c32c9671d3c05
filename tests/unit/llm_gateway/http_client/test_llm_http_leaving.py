"""A stream whose reader leaves: what had come by then is counted, and no more is guessed than has to be."""

import asyncio
import random

import pytest

from services.llm_gateway.adapters.http_upstream import HttpUpstream
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.attempts import Policy
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.completions import Completions
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.streams import UNREAD_TOKENS
from services.llm_gateway.testing import OpenGate, OpenPurse

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: 100000\r\n\r\n"
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"hello"}}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":9}}\n\n'
ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"}}],"usage":{"prompt_tokens":5,"completion_tokens":0}}\n\n'
CALL = ChatCall("a", {"messages": [{"role": "user", "content": "x"}]})


def completions(server, client):
    one = Deployment(
        "a0", "a", "vllm", "x", "m", "chat", api_base=server.url.partition("/chat")[0], prices=Prices(10**6, 10**6, known=True)
    )
    registry = Registry({"a": Group("a", 0, (one,))})
    chance, purse = random.Random(1), OpenPurse()
    return Completions(lambda: registry, {"x": HttpUpstream(client, OpenAiDialect())}, Policy(), chance, OpenGate(chance), purse), purse


async def arrived(client, size):
    """Waits until so many bytes of the answer are here unread."""
    async with asyncio.timeout(10):
        while not any(sum(map(len, connection._pieces)) >= size for connection in client._busy):
            await asyncio.sleep(0.002)


@pytest.mark.parametrize(
    ("rest", "output", "estimated"),
    [(TEXT + FINISH + USAGE, 9, False), (TEXT, 10 + UNREAD_TOKENS, True), (TEXT + b'data: {"error":"x"}\n\n', 10 + UNREAD_TOKENS, True)],
    ids=["usage", "text", "text before an error"],
)
def test_what_had_arrived_when_the_reader_left_is_counted(run, raw, rest, output, estimated):
    async def work():
        more = asyncio.Event()

        async def script(number, request, writer):
            writer.write(HEAD + TEXT)
            await more.wait()
            writer.write(rest)

        async with raw.served(script) as (server, client):
            calls, purse = completions(server, client)
            stream = calls.stream(CALL)
            (chunk,) = await anext(stream)
            assert chunk.text == "hello"
            more.set()
            await arrived(client, len(rest))
            await stream.aclose()
        ((_, usage, status),) = purse.settled
        assert (status, usage.output, usage.estimated) == ("cancelled", output, estimated)

    run(work())


def test_what_had_come_before_the_first_token_is_counted_when_the_caller_leaves(run, raw):
    async def work():
        async def script(number, request, writer):
            writer.write(HEAD + ROLE)

        async with raw.served(script) as (server, client):
            calls, purse = completions(server, client)
            call = asyncio.ensure_future(anext(calls.stream(CALL)))
            async with asyncio.timeout(10):
                while not any(connection._head_done and connection._waiter is not None for connection in client._busy):
                    await asyncio.sleep(0.002)
            call.cancel()
            await asyncio.wait([call])
        ((_, usage, _),) = purse.settled
        assert (usage.input, usage.output, usage.estimated) == (5, UNREAD_TOKENS, True)

    run(work())
