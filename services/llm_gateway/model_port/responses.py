"""POST /v1/responses: OpenAI's Responses API over chat completions of any provider, without stored conversations."""

from contextlib import aclosing
from typing import Any

import orjson

from services.common.errors import BulkheadError, NotFound
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.model_port.answers import StreamHead, answer_headers, request_model
from services.llm_gateway.model_port.errors import OPENAI, ErrorForm
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.responses_request import chat_body
from services.llm_gateway.model_port.responses_shape import Frame, items_of
from services.llm_gateway.model_port.responses_stream import ResponseEvents
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.model_port.terms import terms_of
from services.llm_gateway.results import Finished, ModelCalls, Notice

PATH = "/v1/responses"


def _event(body: bytes) -> bytes:
    """An error of the gateway itself in the midst of a stream."""
    error = orjson.loads(body)["error"]
    told = {"type": "error", "code": error["code"], "message": error["message"], "param": error["param"], "sequence_number": 0}
    return b"event: error\ndata: " + orjson.dumps(told) + b"\n\n"


RESPONSES = ErrorForm(OPENAI.of, OPENAI.refused, OPENAI.internal, _event)


class ResponsesSurface:
    """Responses, whole and streamed. `store` has no effect: answers say `store: false`, and none can be fetched again."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """Making a response, and a clear word on what would need a stored one."""
        stored = f"{PATH}/{{response}}"
        return [
            Route("POST", PATH, self.create, errors=RESPONSES),
            Route("GET", stored, self.missing, errors=RESPONSES),
            Route("DELETE", stored, self.missing, errors=RESPONSES),
            Route("POST", f"{stored}/cancel", self.missing, errors=RESPONSES),
            Route("GET", f"{stored}/input_items", self.missing, errors=RESPONSES),
        ]

    async def create(self, exchange: Exchange) -> None:
        """Answers one request. Raises domain errors while no byte has gone out."""
        body, size = await exchange.json()
        head = StreamHead(exchange.began)
        call = ChatCall(request_model(body), chat_body(body), terms=terms_of(exchange.headers), size=size, opened=head.opened)
        frame = Frame.of(body)
        if body.get("stream"):
            await self._stream(exchange, call, head, frame)
            return
        completed = await self._calls.complete(call)
        data, outcome = completed.answer.data, completed.outcome
        output = items_of(frame, data["choices"][0])
        model = outcome.provider_model or call.model
        response: dict[str, Any] = frame.ended(outcome.finish_reason, model, output, completed.answer.usage, outcome.usage)
        await exchange.answer(200, orjson.dumps(response), answer_headers(outcome, exchange.began, completed.notices))

    async def missing(self, exchange: Exchange) -> None:
        """Says that nothing is stored."""
        raise NotFound("this gateway stores no responses", reason="RESPONSE_NOT_FOUND")

    async def _stream(self, exchange: Exchange, call: ChatCall, head: StreamHead, frame: Frame) -> None:
        notices: list[Notice] = []
        events = ResponseEvents(frame, call.model)
        try:
            async with aclosing(self._calls.stream(call)) as steps:
                async for step in steps:
                    if isinstance(step, list):
                        begun = b""
                        if not exchange.started:
                            await exchange.begin_stream(head.headers(notices))
                            begun = events.begin()
                        if made := begun + events.feed(step):
                            await exchange.write(made)
                    elif isinstance(step, Notice):
                        notices.append(step)
                        if exchange.started:
                            await exchange.write(f": {step.code}\n\n".encode())
                    else:
                        await exchange.end_stream(_closing(step) + events.end(step))
        except BulkheadError as error:
            if not exchange.started:
                raise
            # Headers have gone out with 200: the last event says that the response failed.
            await exchange.end_stream(events.fail(error))


def _closing(finished: Finished) -> bytes:
    # The cost of a stream is known when its headers are gone, so it stands in a comment, which SDKs skip.
    return f": cost_microusd={finished.outcome.usage.cost_microusd}\n\n".encode()
