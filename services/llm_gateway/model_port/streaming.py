"""Sending a streamed answer: the same for every dialect but for the form of its events."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from services.common.errors import BulkheadError
from services.llm_gateway.chat import Chunk
from services.llm_gateway.model_port.answers import StreamHead
from services.llm_gateway.model_port.errors import OPENAI
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.results import Finished, Notice, StreamEvent

DONE = b"data: [DONE]\n\n"


def last_error(error: BulkheadError) -> bytes:
    """The error as OpenAI's last event. [DONE] does not follow."""
    return OPENAI.event(OPENAI.of(error))


def cost_of(finished: Finished) -> bytes:
    """The cost of a stream is known when its headers are gone, so it stands in a comment, which SDKs skip."""
    return b": cost_microusd=%d\n\n" % finished.outcome.usage.cost_microusd


def comment_of(notice: Notice) -> bytes:
    """A notice that comes too late for the headers."""
    return f": {notice.code}\n\n".encode()


async def send_stream(
    exchange: Exchange,
    head: StreamHead,
    events: AsyncGenerator[StreamEvent, None],
    *,
    feed: Callable[[list[Chunk]], bytes],
    end: Callable[[Finished], bytes],
    fail: Callable[[BulkheadError], bytes] = last_error,
    tell: Callable[[Notice], bytes] = comment_of,
) -> None:
    """Sends `events`, each in the form that the caller's functions give it; headers go out with the first chunks.

    Raises domain errors while no byte has gone out. Behind the headers an error is the last event, as the status is 200 by then.
    """
    notices: list[Notice] = []
    try:
        async with aclosing(events):
            async for event in events:
                if isinstance(event, list):
                    if not exchange.started:
                        await exchange.begin_stream(head.headers(notices))
                    if made := feed(event):
                        await exchange.write(made)
                elif isinstance(event, Notice):
                    notices.append(event)
                    if exchange.started:
                        await exchange.write(tell(event))
                else:
                    await exchange.end_stream(end(event))
    except BulkheadError as error:
        if not exchange.started:
            raise
        await exchange.end_stream(fail(error))
