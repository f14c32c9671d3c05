"""OpenAI's endpoints: chat completions, embeddings, models."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.simulator import embeddings, faults, openai_wire, prices
from services.simulator.chat_request import parse_chat, parse_object
from services.simulator.dialects import OPENAI
from services.simulator.fault_book import Subject
from services.simulator.faults import Faults
from services.simulator.prices import MODELS, model_named
from services.simulator.refusals import Refused
from services.simulator.rerank import parse_rerank, ranked, rerank_body
from services.simulator.served_log import Visit
from services.simulator.simulator import Simulator, labels_of
from services.simulator.surfaces import delivery, generation
from services.simulator.surfaces.exchange import Exchange
from services.simulator.surfaces.generation import Asked

_MODELS_CREATED = 1_735_689_600


class OpenAiSurface:
    """Answers OpenAI's endpoints out of one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions"""
        visit = generation.begin(self._simulator, exchange, OPENAI.endpoint, OPENAI.id_prefix)
        try:
            if await delivery.closed_early(self._simulator, exchange, OPENAI.endpoint):
                return
            body = parse_object(await exchange.body())
            asked = Asked(parse_chat(body), tools_json(body))
            await generation.generate(self._simulator, exchange, visit, OPENAI, asked, exchange.bearer_key)
        except Refused as refused:
            await generation.refuse(exchange, visit, OPENAI, refused)
        finally:
            self._simulator.log.end(visit)

    async def embed(self, exchange: Exchange) -> None:
        """POST /v1/embeddings"""
        visit = generation.begin(self._simulator, exchange, "embeddings", "embd-sim-")
        try:
            if await delivery.closed_early(self._simulator, exchange, "embeddings"):
                return
            request = embeddings.parse_embeddings(parse_object(await exchange.body()))
            asked_faults = self._name(exchange, visit, request.model, request.inputs[0])
            visit.prompt_tokens = request.prompt_tokens
            if not await delivery.before_answer(exchange, visit, OPENAI, asked_faults):
                return
            visit.billed = not generation.costs_nothing(asked_faults)
            vectors = [embeddings.encoded(embeddings.embed(text, request.dimensions), request.as_base64) for text in request.inputs]
            plan = openai_wire.embeddings_body(faults.split_model(request.model)[0], vectors, request.prompt_tokens, asked_faults)
            await delivery.send_body(exchange, visit, plan, asked_faults)
        except Refused as refused:
            await generation.refuse(exchange, visit, OPENAI, refused)
        finally:
            self._simulator.log.end(visit)

    async def rerank(self, exchange: Exchange) -> None:
        """POST /v1/rerank, in the shape that Cohere and Jina share"""
        visit = generation.begin(self._simulator, exchange, "rerank", "rerank-sim-")
        try:
            if await delivery.closed_early(self._simulator, exchange, "rerank"):
                return
            request = parse_rerank(parse_object(await exchange.body()))
            asked_faults = self._name(exchange, visit, request.model, request.query)
            visit.prompt_tokens = request.prompt_tokens
            if not await delivery.before_answer(exchange, visit, OPENAI, asked_faults):
                return
            visit.billed = not generation.costs_nothing(asked_faults)
            plan = rerank_body(request, visit.id, faults.split_model(request.model)[0], ranked(request), asked_faults)
            await delivery.send_body(exchange, visit, plan, asked_faults)
        except Refused as refused:
            await generation.refuse(exchange, visit, OPENAI, refused)
        finally:
            self._simulator.log.end(visit)

    def _name(self, exchange: Exchange, visit: Visit, requested: str, asked: str) -> Faults:
        """Note what is asked of which model, and find the faults; raises Refused for a wrong key."""
        visit.requested_model = requested
        base_model, of_model = faults.split_model(requested)
        visit.model = model_named(base_model)
        visit.asked = asked
        subject = Subject(visit.endpoint, base_model, asked, labels_of(exchange.headers))
        visit.faults = self._simulator.faults_for(subject, exchange.headers, of_model)
        self._simulator.check_key(exchange.bearer_key, visit.faults)
        return visit.faults

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models"""
        await exchange.respond(200, orjson.dumps({"object": "list", "data": [_model_object(name) for name in MODELS]}))

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{model}; any model is served, so any name is known."""
        await exchange.respond(200, orjson.dumps(_model_object(exchange.path.removeprefix("/v1/models/"))))


def tools_json(body: Mapping[str, Any]) -> bytes:
    """The tools of a request as they are counted; raises Refused (400) where they nest too deeply."""
    try:
        return orjson.dumps(body["tools"]) if body.get("tools") else b""
    except orjson.JSONEncodeError as error:
        raise Refused(f"'tools' cannot be read: {error}.", param="tools") from None


def _model_object(name: str) -> dict[str, Any]:
    known = prices.model_named(name)
    return {
        "id": name,
        "object": "model",
        "created": _MODELS_CREATED,
        "owned_by": "simulator",
        "context_window": known.context_tokens,
        "input_nanousd_per_token": known.input_nanousd,
        "output_nanousd_per_token": known.output_nanousd,
    }
