"""POST /v1/responses: OpenAI's Responses API over chat completions of any provider, without stored conversations."""

from typing import Any

import orjson

from services.common.errors import NotFound
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.model_port.answers import StreamHead, answer_headers, request_model
from services.llm_gateway.model_port.errors import OPENAI, ErrorForm
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.responses_request import chat_body
from services.llm_gateway.model_port.responses_shape import Frame, items_of
from services.llm_gateway.model_port.responses_stream import ResponseEvents
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.model_port.streaming import cost_of, send_stream
from services.llm_gateway.model_port.terms import terms_of
from services.llm_gateway.results import Finished, ModelCalls

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
            events = ResponseEvents(frame, call.model)

            def end(last: Finished) -> bytes:
                return cost_of(last) + events.end(last)

            await send_stream(exchange, head, self._calls.stream(call), feed=events.feed, end=end, fail=events.fail)
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
