"""Gemini's endpoints: content, whole and streamed, its tokens, and embeddings."""

import re
from collections.abc import Mapping
from typing import Any

import orjson

from services.simulator import embeddings, faults
from services.simulator.chat_request import parse_object
from services.simulator.dialects import GEMINI
from services.simulator.fault_book import Subject
from services.simulator.gemini_embeddings import embeddings_body, parse_batch, parse_embed
from services.simulator.gemini_request import named, parse_generate
from services.simulator.plans import Ending, StreamPlan
from services.simulator.prices import MODELS, model_named
from services.simulator.refusals import Refused
from services.simulator.simulator import Simulator, labels_of
from services.simulator.surfaces import delivery, generation
from services.simulator.surfaces.exchange import JSON, Exchange
from services.simulator.surfaces.generation import Asked

_PATH = re.compile(r"/v1(?:beta)?/models/(.+):([a-zA-Z]+)")


class GeminiSurface:
    """Answers Gemini's endpoints out of one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator

    async def call(self, exchange: Exchange) -> None:
        """POST /v1beta/models/{model}:{method}"""
        found = _PATH.fullmatch(exchange.path)
        model, method = found.groups() if found else ("", "")
        if method in ("generateContent", "streamGenerateContent"):
            await self._generate(exchange, model, method == "streamGenerateContent")
        elif method in ("embedContent", "batchEmbedContents"):
            await self._embed(exchange, model, method == "batchEmbedContents")
        elif method == "countTokens":
            await self._count(exchange, model)
        else:
            status, body, headers = GEMINI.refusal(Refused(f"Unknown method: {exchange.path[:200]}", status=404), "")
            await exchange.respond(status, body, headers)

    async def models(self, exchange: Exchange) -> None:
        """GET /v1beta/models"""
        await exchange.respond(200, orjson.dumps({"models": [_model_object(name) for name in MODELS]}))

    async def model(self, exchange: Exchange) -> None:
        """GET /v1beta/models/{model}; any model is served, so any name is known."""
        await exchange.respond(200, orjson.dumps(_model_object(exchange.path.removeprefix("/v1beta/models/"))))

    async def _generate(self, exchange: Exchange, model: str, stream: bool) -> None:
        visit = generation.begin(self._simulator, exchange, GEMINI.endpoint, GEMINI.id_prefix)
        try:
            if await delivery.closed_early(self._simulator, exchange, GEMINI.endpoint):
                return
            request, tools_json = parse_generate(parse_object(await exchange.body()), model, stream)
            dialect = GEMINI
            if stream and exchange.query("alt") != "sse":
                dialect = generation.with_stream(GEMINI, _as_array, JSON)
            await generation.generate(self._simulator, exchange, visit, dialect, Asked(request, tools_json), _key(exchange))
        except Refused as refused:
            await generation.refuse(exchange, visit, GEMINI, refused)
        finally:
            self._simulator.log.end(visit)

    async def _embed(self, exchange: Exchange, model: str, batch: bool) -> None:
        visit = generation.begin(self._simulator, exchange, "embeddings", "embd-sim-")
        try:
            if await delivery.closed_early(self._simulator, exchange, "embeddings"):
                return
            body = parse_object(await exchange.body())
            request = parse_batch(body, model) if batch else parse_embed(body, model)
            visit.requested_model = model
            base_model, of_model = faults.split_model(model)
            visit.model = model_named(base_model)
            visit.asked = request.inputs[0]
            subject = Subject("embeddings", base_model, request.inputs[0], labels_of(exchange.headers))
            visit.faults = asked_faults = self._simulator.faults_for(subject, exchange.headers, of_model)
            self._simulator.check_key(_key(exchange), asked_faults)
            visit.prompt_tokens = request.prompt_tokens
            if not await delivery.before_answer(exchange, visit, GEMINI, asked_faults):
                return
            visit.billed = not generation.costs_nothing(asked_faults)
            vectors = [embeddings.embed(text, size).tolist() for text, size in zip(request.inputs, request.sizes, strict=True)]
            await delivery.send_body(exchange, visit, embeddings_body(vectors, batch, request.prompt_tokens, asked_faults), asked_faults)
        except Refused as refused:
            await generation.refuse(exchange, visit, GEMINI, refused)
        finally:
            self._simulator.log.end(visit)

    async def _count(self, exchange: Exchange, model: str) -> None:
        """Nothing is generated, billed or logged."""
        try:
            body = named(parse_object(await exchange.body()), None, "")
            wrapped: Mapping[str, Any] = body.get("generateContentRequest") or {"contents": body.get("contents")}
            request, tools_json = parse_generate(named(wrapped, None, ""), model, False)
            self._simulator.check_key(_key(exchange), {})
        except Refused as refused:
            status, told, headers = GEMINI.refusal(refused, "")
            await exchange.respond(status, told, headers)
            return
        total = request.prompt_tokens(tools_json)
        details = [{"modality": "TEXT", "tokenCount": total}]
        await exchange.respond(200, orjson.dumps({"totalTokens": total, "promptTokensDetails": details}))


def _as_array(plan: StreamPlan) -> StreamPlan:
    """The stream as it comes without `alt=sse`: one JSON array that grows."""
    chunks = [event.replace(b"data: ", b"").strip() for event in plan.events]
    events = [(b",\r\n" if index else b"[") + chunk for index, chunk in enumerate(chunks)]
    tokens = list(plan.tokens)
    if plan.ending is Ending.ORDERLY:
        events.append(b"\r\n]" if events else b"[]")
        tokens.append(tokens[-1] if tokens else 0)
    return StreamPlan(events, tokens, plan.ending, plan.usage_sent, plan.finish_reason)


def _key(exchange: Exchange) -> str:
    return exchange.headers.get("x-goog-api-key") or exchange.query("key") or exchange.bearer_key


def _model_object(name: str) -> dict[str, Any]:
    known = model_named(name)
    methods = ["embedContent", "batchEmbedContents"] if known.embeds else ["generateContent", "streamGenerateContent", "countTokens"]
    return {
        "name": f"models/{name}",
        "displayName": name,
        "version": "1",
        "inputTokenLimit": known.context_tokens,
        "outputTokenLimit": known.context_tokens,
        "supportedGenerationMethods": methods,
    }
