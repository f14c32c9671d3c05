"""Anthropic's Message Batches. A batch runs in a task of its own, a request after the other, at half price."""

import time
from typing import Any

import orjson

from services.simulator.anthropic_request import parse_messages
from services.simulator.anthropic_wire import request_id
from services.simulator.batches import MAX_BATCHES
from services.simulator.chat_request import parse_object
from services.simulator.dialects import ANTHROPIC
from services.simulator.faults import Faults
from services.simulator.message_batches import MessageBatch, Request, parse_requests
from services.simulator.refusals import Refused
from services.simulator.simulator import Simulator
from services.simulator.stored_files import MAX_FILE_BYTES
from services.simulator.surfaces import batch_lines
from services.simulator.surfaces.exchange import Exchange
from services.simulator.surfaces.generation import Asked

PATH = "/v1/messages/batches"
_LINES = b"application/x-jsonl"


class MessageBatchSurface:
    """Message batches of one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator
        self._batches: dict[str, MessageBatch] = {}
        self._running = batch_lines.Tasks()

    def stop(self) -> None:
        """End the batches that run: the process is to end."""
        self._running.stop()

    async def call(self, exchange: Exchange, method: str) -> None:
        """Any method on /v1/messages/batches and what lies below it."""
        batch_id = f"msgbatch_sim_{self._simulator.next_id()}"
        exchange.more_headers = ((b"request-id", request_id(batch_id).encode()),)
        try:
            await self._call(exchange, method, batch_id)
        except Refused as refused:
            status, body, headers = ANTHROPIC.refusal(refused, batch_id)
            await exchange.respond(status, body, headers)

    async def _call(self, exchange: Exchange, method: str, new_id: str) -> None:
        named, _, verb = exchange.path.removeprefix(PATH).lstrip("/").partition("/")
        if method == "POST" and not named:
            await self._create(exchange, new_id)
        elif method == "GET" and not named:
            self._simulator.check_key(_key(exchange), {})
            await exchange.respond(200, orjson.dumps(self._page(exchange)))
        elif method == "GET" and verb == "results":
            found = self._found(named)
            if found.ended_s is None:
                raise Refused(f"Message Batch {found.id} is still in progress and has no results yet.", status=404)
            await exchange.respond(200, b"".join(found.results), content_type=_LINES)
        elif method == "GET" and not verb:
            await self._tell(exchange, self._found(named))
        elif method == "POST" and verb == "cancel":
            found = self._found(named)
            if found.ended_s is not None:
                raise Refused(f"Message Batch {found.id} has already ended and cannot be canceled.")
            found.cancel()
            await self._tell(exchange, found)
        elif method == "DELETE" and not verb:
            found = self._found(named)
            if found.ended_s is None:
                raise Refused(f"Message Batch {found.id} cannot be deleted while it is processing.")
            del self._batches[found.id]
            await exchange.respond(200, orjson.dumps({"id": found.id, "type": "message_batch_deleted"}))
        else:
            raise Refused("Not Found", status=404)

    async def _create(self, exchange: Exchange, batch_id: str) -> None:
        requests = parse_requests(parse_object(await exchange.body(limit=MAX_FILE_BYTES)))
        asked = await batch_lines.asked_faults(self._simulator, exchange, ANTHROPIC, _key(exchange), batch_id)
        if asked is None:
            return
        if len(self._batches) >= MAX_BATCHES:
            raise Refused(f"There are {MAX_BATCHES} batches already.", status=429)
        batch = self._batches[batch_id] = MessageBatch(batch_id, requests, _key(exchange))
        self._running.begin(self._work(batch, asked))
        await self._tell(exchange, batch)

    async def _tell(self, exchange: Exchange, batch: MessageBatch) -> None:
        await exchange.respond(200, orjson.dumps(batch.as_dict(_results_url(exchange, batch))))

    def _page(self, exchange: Exchange) -> dict[str, Any]:
        limit, after = exchange.query("limit") or "20", exchange.query("after_id")
        if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= 1_000:
            raise Refused("limit: Input should be from 1 to 1000")
        newest = list(self._batches.values())[::-1]
        if after is not None:
            newest = newest[next((number for number, batch in enumerate(newest, 1) if batch.id == after), len(newest)) :]
        page = [batch.as_dict(_results_url(exchange, batch)) for batch in newest[: int(limit)]]
        ends = {"first_id": page[0]["id"] if page else None, "last_id": page[-1]["id"] if page else None}
        return {"data": page, "has_more": len(newest) > len(page), **ends}

    def _found(self, batch_id: str) -> MessageBatch:
        found = self._batches.get(batch_id)
        if found is None:
            raise Refused(f"Message Batch {batch_id[:100]} not found.", status=404)
        return found

    async def _work(self, batch: MessageBatch, asked: Faults) -> None:
        ended = await batch_lines.through(batch.requests, asked, batch.cancel_asked, lambda request: self._answer(batch, request))
        left = "expired" if ended == batch_lines.EXPIRED else "canceled"
        for request in batch.requests[len(batch.results) :]:
            self._keep(batch, request, {"type": left})
        batch.ended_s = time.time()

    def _answer(self, batch: MessageBatch, request: Request) -> None:
        answer_id = ""
        try:
            with batch_lines.visiting(self._simulator, ANTHROPIC, batch.id) as visit:
                answer_id = visit.id
                asked = parse_messages(request.params, orjson.dumps(request.params))
                wanted = Asked(asked.chat, asked.tools_json, asked.boundaries)
                message = batch_lines.generated(self._simulator, visit, ANTHROPIC, wanted, batch.key)
        except Refused as refused:
            _, body, _ = ANTHROPIC.refusal(refused, answer_id)
            self._keep(batch, request, {"type": "errored", "error": orjson.loads(body)})
            return
        if "usage" in message:
            message["usage"]["service_tier"] = "batch"
        self._keep(batch, request, {"type": "succeeded", "message": message})

    def _keep(self, batch: MessageBatch, request: Request, result: dict[str, Any]) -> None:
        batch.counts[result["type"]] += 1
        batch.results.append(orjson.dumps({"custom_id": request.custom_id, "result": result}) + b"\n")


def _results_url(exchange: Exchange, batch: MessageBatch) -> str:
    return f"http://{exchange.headers.get('host', 'localhost')}{PATH}/{batch.id}/results"


def _key(exchange: Exchange) -> str:
    return exchange.headers.get("x-api-key") or exchange.bearer_key
