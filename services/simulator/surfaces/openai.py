"""OpenAI's endpoints: chat completions, embeddings, models."""

import time
from collections.abc import Mapping
from typing import Any

import orjson

from services.simulator import embeddings, faults, planner, prices, wire
from services.simulator.chat_request import ChatRequest, parse_chat, parse_object
from services.simulator.fault_book import Subject
from services.simulator.faults import Faults
from services.simulator.prices import MODELS, Model, model_named
from services.simulator.refusals import Refused
from services.simulator.replies import Reply, call_reply
from services.simulator.scenarios import Step, step_text
from services.simulator.served_log import LOGGED_HEADERS, Visit
from services.simulator.simulator import Simulator, check_context, labels_of, scenario_header, tool_call_ids
from services.simulator.surfaces import delivery
from services.simulator.surfaces.exchange import Exchange

_MODELS_CREATED = 1_735_689_600


class OpenAiSurface:
    """Answers OpenAI's endpoints out of one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator

    async def chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions"""
        visit = self._begin(exchange, "chat", "chatcmpl-sim-")
        try:
            await self._chat(exchange, visit)
        except Refused as refused:
            await _refuse(exchange, visit, refused)
        finally:
            self._simulator.log.end(visit)

    async def embed(self, exchange: Exchange) -> None:
        """POST /v1/embeddings"""
        visit = self._begin(exchange, "embeddings", "embd-sim-")
        try:
            await self._embed(exchange, visit)
        except Refused as refused:
            await _refuse(exchange, visit, refused)
        finally:
            self._simulator.log.end(visit)

    async def models(self, exchange: Exchange) -> None:
        """GET /v1/models"""
        await exchange.respond(200, orjson.dumps({"object": "list", "data": [_model_object(name) for name in MODELS]}))

    async def model(self, exchange: Exchange) -> None:
        """GET /v1/models/{model}; any model is served, so any name is known."""
        await exchange.respond(200, orjson.dumps(_model_object(exchange.path.removeprefix("/v1/models/"))))

    def _begin(self, exchange: Exchange, endpoint: str, prefix: str) -> Visit:
        headers = {name: value for name, value in exchange.headers.items() if name in LOGGED_HEADERS}
        visit = Visit(prefix + self._simulator.next_id(), endpoint, headers, time.time(), time.monotonic())
        exchange.answer_id = visit.id
        self._simulator.log.begin(visit)
        return visit

    async def _chat(self, exchange: Exchange, visit: Visit) -> None:
        body = parse_object(await exchange.body())
        request = parse_chat(body)
        base_model, of_model = self._name_model(visit, request.model)
        visit.stream = request.stream
        visit.asked = request.asked
        model = _chat_model(base_model)
        visit.model = model
        scenario = self._simulator.scenarios.find(scenario_header(exchange.headers), base_model, request.asked)
        step = scenario.step_for(request) if scenario else None
        if scenario and step:
            visit.scenario = scenario.name
            of_model = {**step.faults, **of_model}
        subject = Subject("chat", base_model, request.asked, labels_of(exchange.headers, *request.labels))
        asked_faults = self._simulator.faults_for(subject, exchange.headers, of_model)
        visit.faults = asked_faults
        visit.prompt_tokens = request.prompt_tokens(_tools_json(body))
        check_context(visit.prompt_tokens, model.context_tokens)
        reply = self._reply(request, step, visit, asked_faults)
        if not await delivery.before_answer(exchange, visit, asked_faults):
            return
        visit.completion_tokens = reply.completion_tokens
        visit.tool_calls = len(reply.tool_calls()) if reply.finish_reason == "tool_calls" else 0
        visit.billed = "error_body" not in asked_faults and asked_faults.get("error_event_after") != 0
        head = wire.Head(visit.id, model.name, int(visit.received_unix_s), visit.prompt_tokens, request.include_usage)
        if request.stream and "error_body" not in asked_faults:
            await delivery.send_stream(exchange, visit, wire.stream(reply, head, asked_faults), asked_faults)
        else:
            plan = wire.whole_body(reply, head, asked_faults)
            await delivery.send_body(exchange, visit, plan, asked_faults)

    def _reply(self, request: ChatRequest, step: Step | None, visit: Visit, asked_faults: Faults) -> Reply:
        malformed = "malformed_tool_arguments" in asked_faults
        if step is None:
            reply = planner.reply_to(request, lambda wanted: tool_call_ids(request, visit.id, wanted), malformed_arguments=malformed)
        elif step.calls and request.tool_choice != "none":
            ids = tool_call_ids(request, visit.id, len(step.calls))
            text = step_text(step, request)
            reply = call_reply(step.calls, ids, text=text, max_tokens=request.max_tokens, malformed=malformed)
        else:
            reply = planner.finish_text(request, step_text(step, request))
        return wire.with_reply_faults(reply, asked_faults)

    async def _embed(self, exchange: Exchange, visit: Visit) -> None:
        request = embeddings.parse_embeddings(parse_object(await exchange.body()))
        base_model, of_model = self._name_model(visit, request.model)
        visit.model = model_named(base_model)
        visit.asked = request.inputs[0]
        subject = Subject("embeddings", base_model, request.inputs[0], labels_of(exchange.headers))
        asked_faults = self._simulator.faults_for(subject, exchange.headers, of_model)
        visit.faults = asked_faults
        visit.prompt_tokens = request.prompt_tokens
        if not await delivery.before_answer(exchange, visit, asked_faults):
            return
        visit.billed = "error_body" not in asked_faults
        plan = wire.embeddings_body(
            visit.model.name,
            [embeddings.encoded(embeddings.embed(text, request.dimensions), request.as_base64) for text in request.inputs],
            request.prompt_tokens,
            asked_faults,
        )
        await delivery.send_body(exchange, visit, plan, asked_faults)

    def _name_model(self, visit: Visit, requested: str) -> tuple[str, Faults]:
        visit.requested_model = requested
        base_model, of_model = faults.split_model(requested)
        return base_model, of_model


async def _refuse(exchange: Exchange, visit: Visit, refused: Refused) -> None:
    visit.status = refused.status
    visit.error_code = refused.code or refused.type
    await exchange.respond(refused.status, refused.body())


def _chat_model(name: str) -> Model:
    model = model_named(name)
    if model.embeds:
        raise Refused("This is not a chat model and thus not supported in the v1/chat/completions endpoint.", status=404, param="model")
    return model


def _tools_json(body: Mapping[str, Any]) -> bytes:
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
