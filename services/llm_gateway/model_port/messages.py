"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's API over every model of the registry."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson

from services.common.errors import BulkheadError, InvalidInput
from services.llm_gateway.chat import ChatCall, request_json
from services.llm_gateway.messages_plain import needs_of
from services.llm_gateway.model_port.answers import StreamHead, answer_headers
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.messages_answer import PING, MessageEvents, message_body
from services.llm_gateway.model_port.messages_count import estimated_tokens
from services.llm_gateway.model_port.messages_errors import ANTHROPIC, error_body, error_event
from services.llm_gateway.model_port.messages_request import canonical
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.model_port.streaming import cost_of, send_stream
from services.llm_gateway.model_port.terms import terms_of
from services.llm_gateway.results import Finished, ModelCalls, Notice

# The adapter whose targets take everything that this API has.
NATIVE = "anthropic"
_BETAS = "anthropic-beta"


class MessagesSurface:
    """Messages, whole and streamed, and their tokens counted."""

    def __init__(self, calls: ModelCalls, count: Callable[[Mapping[str, Any]], int] = estimated_tokens) -> None:
        """`count` estimates the prompt tokens of a Messages request."""
        self._calls = calls
        self._count = count

    def routes(self) -> list[Route]:
        """Both routes; their errors have Anthropic's form."""
        return [
            Route("POST", "/v1/messages", self.create, errors=ANTHROPIC),
            Route("POST", "/v1/messages/count_tokens", self.count_tokens, errors=ANTHROPIC),
        ]

    async def create(self, exchange: Exchange) -> None:
        """Answers one request, whole or as a stream. Raises domain errors while no byte has gone out."""
        body, size = await exchange.json()
        model = _model(body)
        chat = canonical(body, exchange.headers.get(_BETAS, ""))
        self._check_target(model, chat)
        terms = terms_of(exchange.headers)
        stops = body.get("stop_sequences") or ()
        if body.get("stream"):
            chat["stream_options"] = {"include_usage": True}
            head = StreamHead(exchange.began)
            made = MessageEvents(stops)
            events = self._calls.stream(ChatCall(model, chat, terms=terms, size=size, opened=head.opened))
            await send_stream(exchange, head, events, feed=made.feed, end=partial(_closing, made), fail=_last_error, tell=_ping)
            return
        completed = await self._calls.complete(ChatCall(model, chat, terms=terms, size=size))
        headers = answer_headers(completed.outcome, exchange.began, completed.notices)
        await exchange.answer(200, message_body(completed.answer, stops, completed.outcome.usage), headers)

    async def count_tokens(self, exchange: Exchange) -> None:
        """An estimate; nobody is asked and nothing is charged."""
        body, _ = await exchange.json()
        model = _model(body)
        canonical(body, exchange.headers.get(_BETAS, ""), counting=True)
        self._calls.registry.resolve(model, "chat")
        request_json(body)
        headers = [(b"x-bulkhead-estimated", b"true"), *exchange.elapsed()]
        await exchange.answer(200, orjson.dumps({"input_tokens": self._count(body)}), headers)

    def _check_target(self, model: str, chat: Mapping[str, Any]) -> None:
        """Says by name what none of the model's deployments can take; a fallback is no reason to take it."""
        group, _ = self._calls.registry.resolve(model, "chat")
        if any(deployment.adapter == NATIVE for deployment in group.deployments):
            return
        for where, what in needs_of(chat):
            message = f"{where}: only Anthropic's API takes {what}, and {model[:128]} is served by another"
            raise InvalidInput(message, reason="CAPABILITY_MISSING", metadata={"param": where})


def _model(body: Mapping[str, Any]) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidInput.field("model", "Field required")
    return model


def _closing(made: MessageEvents, finished: Finished) -> bytes:
    return cost_of(finished) + made.end(finished.outcome.usage)


def _last_error(error: BulkheadError) -> bytes:
    """The error as Anthropic's last event; message_stop does not follow."""
    return error_event(error_body(error))


def _ping(_: Notice) -> bytes:
    """The answer is being fetched elsewhere, which takes its time."""
    return PING
