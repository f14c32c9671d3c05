"""POST /v1/completions: OpenAI's legacy text completions, each prompt asked as one message of a user."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import orjson

from services.common.errors import BulkheadError
from services.llm_gateway.chat import ChatCall
from services.llm_gateway.model_port.answers import StreamHead, answer_headers, request_model
from services.llm_gateway.model_port.completions_shape import LegacyStream, TextRequest, added_usage, legacy_choice, text_request
from services.llm_gateway.model_port.exchange import Exchange
from services.llm_gateway.model_port.routing import Route
from services.llm_gateway.model_port.streaming import DONE, cost_of, send_stream
from services.llm_gateway.model_port.terms import terms_of
from services.llm_gateway.money import NOTHING, Usage
from services.llm_gateway.results import Completed, Finished, ModelCalls, Outcome, StreamEvent
from services.llm_gateway.terms import Terms

# Prompts of one request that are asked at the same time.
AT_ONCE = 8


class CompletionsSurface:
    """Text completions, whole and streamed."""

    def __init__(self, calls: ModelCalls) -> None:
        self._calls = calls

    def routes(self) -> list[Route]:
        """The one route."""
        return [Route("POST", "/v1/completions", self.complete)]

    async def complete(self, exchange: Exchange) -> None:
        """Answers one request. Raises domain errors while no byte has gone out; one prompt that fails fails the request."""
        body, size = await exchange.json()
        asked = text_request(body)
        calls = _calls(request_model(body), asked, terms_of(exchange.headers), size)
        if asked.stream:
            stream, head = LegacyStream(asked), StreamHead(exchange.began)
            events = self._one_by_one(calls, head, stream)
            await send_stream(exchange, head, events, feed=stream.feed, end=lambda last: stream.end() + cost_of(last) + DONE)
            return
        answers = await self._all(calls)
        choices = [
            legacy_choice(asked, number, choice)
            for number, completed in enumerate(answers)
            for choice in sorted(completed.answer.data["choices"], key=lambda choice: choice.get("index", 0))
        ]
        outcome = _together([completed.outcome for completed in answers])
        first = answers[0].answer.data
        made: dict[str, Any] = {
            "id": f"cmpl-{first.get('id', '')}",
            "object": "text_completion",
            "created": first.get("created", 0),
            "model": outcome.provider_model,
            "choices": choices,
            "usage": added_usage([(completed.answer.usage, completed.outcome.usage) for completed in answers]),
        }
        notices = [notice for completed in answers for notice in completed.notices]
        await exchange.answer(200, orjson.dumps(made), answer_headers(outcome, exchange.began, notices))

    async def _all(self, calls: Sequence[ChatCall]) -> list[Completed]:
        if len(calls) == 1:
            return [await self._calls.complete(calls[0])]
        places = asyncio.Semaphore(AT_ONCE)

        async def one(call: ChatCall) -> Completed:
            async with places:
                return await self._calls.complete(call)

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(call)) for call in calls]
        except* BulkheadError as errors:
            # The rest was cancelled; what went wrong first is what the caller can act on.
            first = errors.exceptions[0]
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            failed = first
        else:
            return [task.result() for task in tasks]
        raise failed

    async def _one_by_one(self, calls: Sequence[ChatCall], head: StreamHead, stream: LegacyStream) -> AsyncGenerator[StreamEvent, None]:
        """The events of all calls as those of one: its end has the usage of all."""
        spent = NOTHING
        for number, call in enumerate(calls, 1):
            async with aclosing(self._calls.stream(replace(call, opened=head.opened))) as events:
                async for event in events:
                    if not isinstance(event, Finished):
                        yield event
                        continue
                    stream.finished(event.outcome.usage)
                    spent += event.outcome.usage
                    if number == len(calls):
                        yield replace(event, outcome=replace(event.outcome, usage=spent))


def _calls(model: str, asked: TextRequest, terms: Terms, size: int) -> list[ChatCall]:
    """One call a prompt. Each has its part of what may be spent and a key of its own, so that they are told apart in a replay."""
    count = len(asked.bodies)
    if count == 1:
        return [ChatCall(model, asked.bodies[0], terms=terms, size=size)]
    most = None if terms.max_cost_microusd is None else terms.max_cost_microusd // count
    key = terms.idempotency_key
    return [
        ChatCall(model, body, terms=replace(terms, idempotency_key=f"{key}:{number}" if key else "", max_cost_microusd=most))
        for number, body in enumerate(asked.bodies)
    ]


def _together(outcomes: Sequence[Outcome]) -> Outcome:
    first = outcomes[0]
    if len(outcomes) == 1:
        return first
    usage: Usage = sum((outcome.usage for outcome in outcomes[1:]), first.usage)
    return replace(
        first,
        usage=usage,
        attempts=sum(outcome.attempts for outcome in outcomes),
        retries=sum(outcome.retries for outcome in outcomes),
        fallbacks=sum(outcome.fallbacks for outcome in outcomes),
    )
