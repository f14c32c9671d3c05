"""POST /v1/chat/completions: the body goes to the provider as it came, the provider's events come back as they are."""

from functools import partial

from services.common.errors import InvalidInput
from services.llm_gateway.chat import ChatCall, Chunk
from services.llm_gateway.model_port.answers import StreamHead, answer_headers, request_model
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.model_port.streaming import DONE, cost_of, send_stream
from services.llm_gateway.model_port.terms import terms_of
from services.llm_gateway.request_rules import check_request
from services.llm_gateway.results import Finished, ModelCalls


class ChatSurface:
    """Chat completions, whole and streamed."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """The one route."""
        return [Route("POST", "/v1/chat/completions", self.complete)]

    async def complete(self, exchange: Exchange) -> None:
        """Answers one request, whole or as a stream. Raises domain errors while no byte has gone out."""
        body, size = await exchange.json()
        model = request_model(body)
        check_request(body)
        streamed = body.get("stream")
        if not isinstance(streamed, bool | None):
            raise InvalidInput.field("stream", "must be a boolean")
        if streamed:
            head = StreamHead(exchange.began)
            call = ChatCall(model, body, terms=terms_of(exchange.headers), size=size, opened=head.opened)
            options = body.get("stream_options") or {}
            relayed = partial(_relayed, bool(options.get("include_usage")))
            await send_stream(exchange, head, self._calls.stream(call), feed=relayed, end=_closing)
            return
        if body.get("stream_options") is not None:
            raise InvalidInput.field("stream_options", "is only allowed when stream is true")
        call = ChatCall(model, body, terms=terms_of(exchange.headers), size=size)
        completed = await self._calls.complete(call)
        await exchange.answer(200, completed.answer.raw, answer_headers(completed.outcome, exchange.began, completed.notices))


def _relayed(usage_wanted: bool, chunks: list[Chunk]) -> bytes:
    """The events as they came. The usage event that the gateway asked for itself is kept from a client that did not."""
    return b"".join(
        b"data: " + chunk.raw.replace(b"\n", b"\ndata: ") + b"\n\n"
        for chunk in chunks
        if usage_wanted or chunk.usage is None or chunk.data.get("choices")
    )


def _closing(finished: Finished) -> bytes:
    return cost_of(finished) + DONE
