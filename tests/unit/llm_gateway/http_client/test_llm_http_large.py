"""A request that takes long to translate does not hold up other calls."""

import asyncio
import random
import threading

import pytest

from services.llm_gateway.adapters.http_upstream import HttpUpstream
from services.llm_gateway.adapters.openai import OpenAiDialect
from services.llm_gateway.attempts import Policy
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.completions import Completions
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.testing import OpenGate, OpenPurse
from services.llm_gateway.work import LARGE_BYTES

CHUNK = b'{"choices":[{"index":0,"delta":{"content":"hi"},"message":{"content":"hi"},"finish_reason":"stop"}]}'


class SlowDialect(OpenAiDialect):
    """Takes until others have had their turn, and knows on which thread it was asked."""

    def __init__(self):
        self.others_ran, self.threads = threading.Event(), set()

    def chat(self, attempt, *, stream):
        self.threads.add(threading.current_thread())
        assert self.others_ran.wait(5), "nobody else had a turn"
        return super().chat(attempt, stream=stream)


@pytest.mark.parametrize("streamed", [False, True])
def test_a_large_request_is_translated_while_other_calls_go_on(run, raw, streamed):
    body = b"data: " + CHUNK + b"\n\ndata: [DONE]\n\n" if streamed else CHUNK

    async def work():
        async with raw.served(raw.says(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body))) as (server, client):
            one = Deployment("a0", "a", "vllm", "x", "m", "chat", api_base=server.url.partition("/chat")[0])
            registry, dialect, chance = Registry({"a": Group("a", 0, (one,))}), SlowDialect(), random.Random(1)
            upstreams = {"x": HttpUpstream(client, dialect)}
            calls = Completions(lambda: registry, upstreams, Policy(), chance, OpenGate(chance), OpenPurse())

            async def ask(text):
                call = ChatCall("a", {"messages": [{"role": "user", "content": text}]})
                if streamed:
                    return [event async for event in calls.stream(call)][-1]
                return await calls.complete(call)

            asyncio.get_running_loop().call_later(0.01, dialect.others_ran.set)
            await ask("x" * (LARGE_BYTES + 1))
            assert threading.main_thread() not in dialect.threads
            await ask("x")
            assert threading.main_thread() in dialect.threads

    run(work())
