"""A stream that does not end well has cost something all the same."""

import random

import pytest
from structlog.testing import capture_logs

from services.common.errors import BulkheadError, UpstreamFailed
from services.llm_gateway.attempts import Policy
from services.llm_gateway.chat import ChatCall, ChunkReader
from services.llm_gateway.completions import Completions
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.streams import UNREAD_TOKENS
from services.llm_gateway.testing import OpenGate, OpenPurse

CALL = ChatCall("a", {"messages": [{"role": "user", "content": "x"}]})
TEXT = b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}],"usage":{"prompt_tokens":5,"completion_tokens":1}}\n\n'


class Provider:
    """Streams one text an attempt, then breaks."""

    def __init__(self, failure_class, *texts):
        self._failure_class, self._texts = failure_class, list(texts)

    async def stream(self, attempt):
        yield ChunkReader().feed(TEXT % self._texts.pop(0))
        raise UpstreamFault(Failure(self._failure_class))


def completions(provider):
    priced = Deployment("a0", "a", "p", "openai", "a", "chat", prices=Prices(10**6, 2 * 10**6, known=True))
    registry = Registry({"a": Group("a", 0, (priced,))})
    policy = Policy(retry_base_s=0.0001, retry_cap_s=0.001)
    return Completions(lambda: registry, {"openai": provider}, policy, chance := random.Random(1), OpenGate(chance), OpenPurse())


def told(logs):
    (line,) = [entry for entry in logs if entry["event"] == "llm_call"]
    return line["outcome"], line["input_tokens"], line["output_tokens"], round(line["cost_usd"] * 1e6)


@pytest.mark.parametrize(
    ("provider", "attempts", "unread"),
    [(Provider(FailureClass.CONTENT_POLICY, b"Hel"), 1, 0), (Provider(FailureClass.CUT, b"Hel", b"Bye"), 2, UNREAD_TOKENS)],
    ids=["refused", "diverged"],
)
async def test_a_stream_that_breaks_is_paid(provider, attempts, unread):
    with capture_logs() as logs:
        with pytest.raises(BulkheadError) as caught:
            async for _ in completions(provider).stream(CALL):
                pass
    assert attempts == 1 or isinstance(caught.value, UpstreamFailed)
    assert told(logs)[1:] == (5 * attempts, attempts + unread, 7 * attempts + 2 * unread)


async def test_a_stream_that_its_reader_closes_is_paid():
    stream = completions(Provider(FailureClass.CUT, b"Hel")).stream(CALL)
    with capture_logs() as logs:
        await anext(stream)
        await stream.aclose()
    # The usage that it told on the way is not all: it sends on until it hears that nobody reads.
    assert told(logs) == ("cancelled", 5, 1 + UNREAD_TOKENS, 7 + 2 * UNREAD_TOKENS)
