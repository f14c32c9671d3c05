"""Anthropic's endpoints: messages, and the tokens of one."""

import orjson

from services.simulator.anthropic_request import parse_messages
from services.simulator.anthropic_wire import request_id
from services.simulator.chat_request import parse_object
from services.simulator.dialects import ANTHROPIC
from services.simulator.refusals import Refused
from services.simulator.simulator import Simulator
from services.simulator.surfaces import delivery, generation
from services.simulator.surfaces.exchange import Exchange


class AnthropicSurface:
    """Answers Anthropic's endpoints out of one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator

    async def messages(self, exchange: Exchange) -> None:
        """POST /v1/messages"""
        visit = generation.begin(self._simulator, exchange, ANTHROPIC.endpoint, ANTHROPIC.id_prefix)
        exchange.more_headers = ((b"request-id", request_id(visit.id).encode()),)
        try:
            if await delivery.closed_early(self._simulator, exchange, ANTHROPIC.endpoint):
                return
            raw = await exchange.body()
            asked = parse_messages(parse_object(raw), raw)
            request = generation.Asked(asked.chat, asked.tools_json, asked.boundaries)
            await generation.generate(self._simulator, exchange, visit, ANTHROPIC, request, _key(exchange))
        except Refused as refused:
            await generation.refuse(exchange, visit, ANTHROPIC, refused)
        finally:
            self._simulator.log.end(visit)

    async def count_tokens(self, exchange: Exchange) -> None:
        """POST /v1/messages/count_tokens: nothing is generated, billed or logged."""
        answer_id = ANTHROPIC.id_prefix + self._simulator.next_id()
        exchange.more_headers = ((b"request-id", request_id(answer_id).encode()),)
        try:
            raw = await exchange.body()
            asked = parse_messages(parse_object(raw), raw, counting=True)
            self._simulator.check_key(_key(exchange), {})
        except Refused as refused:
            status, body, headers = ANTHROPIC.refusal(refused, answer_id)
            await exchange.respond(status, body, headers)
            return
        await exchange.respond(200, orjson.dumps({"input_tokens": asked.chat.prompt_tokens(asked.tools_json)}))


def _key(exchange: Exchange) -> str:
    return exchange.headers.get("x-api-key") or exchange.bearer_key
