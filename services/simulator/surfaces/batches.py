"""OpenAI's files and batches. A batch runs in a task of its own, a line after the other, at half price."""

from collections.abc import Sequence
from typing import Any

import orjson

from services.simulator import embeddings, faults, openai_wire
from services.simulator.batches import ENDPOINTS, MAX_BATCHES, Batch, Line, parse_batch, read_lines, result_line
from services.simulator.chat_request import parse_chat, parse_object
from services.simulator.dialects import OPENAI
from services.simulator.fault_book import Subject
from services.simulator.faults import Faults
from services.simulator.prices import model_named
from services.simulator.refusals import Refused
from services.simulator.served_log import Visit
from services.simulator.simulator import Simulator
from services.simulator.stored_files import MAX_FILE_BYTES, FileStore, listed, parse_upload
from services.simulator.surfaces import batch_lines
from services.simulator.surfaces.exchange import Exchange
from services.simulator.surfaces.generation import Asked
from services.simulator.surfaces.openai import tools_json

FAULT_METADATA = "sim_fault"
"""The key of a batch's metadata that may name its faults, as the header `x-sim-fault` does."""


class BatchSurface:
    """Files and batches of one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator
        self._files = FileStore()
        self._batches: dict[str, Batch] = {}
        self._running = batch_lines.Tasks()

    def stop(self) -> None:
        """End the batches that run: the process is to end."""
        self._running.stop()

    async def upload(self, exchange: Exchange) -> None:
        """POST /v1/files"""
        content = await exchange.body(limit=MAX_FILE_BYTES)
        self._simulator.check_key(exchange.bearer_key, faults.NO_FAULTS)
        form = parse_upload(exchange.headers.get("content-type", ""), content)
        stored = self._files.add(f"file-{self._simulator.next_id()}", form.name, form.purpose, form.content)
        await exchange.respond(200, orjson.dumps(stored.as_dict()))

    async def files(self, exchange: Exchange) -> None:
        """GET /v1/files"""
        await exchange.respond(200, orjson.dumps(_page(exchange, [stored.as_dict() for stored in self._files.all()])))

    async def file(self, exchange: Exchange) -> None:
        """GET /v1/files/{id} and GET /v1/files/{id}/content"""
        file_id, _, part = exchange.path.removeprefix("/v1/files/").partition("/")
        stored = self._files.get(file_id)
        if part == "content":
            await exchange.respond(200, stored.content, content_type=b"application/octet-stream")
        elif part:
            raise Refused(f"Unknown request URL: {exchange.path[:200]}.", status=404, code="unknown_url")
        else:
            await exchange.respond(200, orjson.dumps(stored.as_dict()))

    async def delete_file(self, exchange: Exchange) -> None:
        """DELETE /v1/files/{id}"""
        file_id = exchange.path.removeprefix("/v1/files/")
        self._files.remove(file_id)
        await exchange.respond(200, orjson.dumps({"id": file_id, "object": "file", "deleted": True}))

    async def create(self, exchange: Exchange, endpoints: Sequence[str] = ENDPOINTS) -> None:
        """POST /v1/batches"""
        body = parse_object(await exchange.body())
        batch = parse_batch(body, f"batch_{self._simulator.next_id()}", exchange.bearer_key, endpoints)
        labels = tuple((batch.metadata or {}).values())
        told = faults.parse_text((batch.metadata or {}).get(FAULT_METADATA, ""), "metadata")
        asked = await batch_lines.asked_faults(self._simulator, exchange, OPENAI, exchange.bearer_key, batch.id, told, labels)
        if asked is None:
            return
        self._files.get(batch.input_file_id)
        if len(self._batches) >= MAX_BATCHES:
            oldest = next((found.id for found in self._batches.values() if found.ended), None)
            if oldest is None:
                raise Refused(f"There are {MAX_BATCHES} batches that run already.", status=429, code="batch_limit")
            del self._batches[oldest]
        self._batches[batch.id] = batch
        self._running.begin(self._run(batch, asked))
        await exchange.respond(200, orjson.dumps(batch.as_dict()))

    async def batches(self, exchange: Exchange) -> None:
        """GET /v1/batches"""
        await exchange.respond(200, orjson.dumps(_page(exchange, [batch.as_dict() for batch in self._batches.values()])))

    async def batch(self, exchange: Exchange) -> None:
        """GET /v1/batches/{id}"""
        await exchange.respond(200, orjson.dumps(self._found(exchange.path.removeprefix("/v1/batches/")).as_dict()))

    async def cancel(self, exchange: Exchange) -> None:
        """POST /v1/batches/{id}/cancel"""
        batch_id, _, verb = exchange.path.removeprefix("/v1/batches/").partition("/")
        batch = self._found(batch_id)
        if verb != "cancel":
            raise Refused(f"Unknown request URL: {exchange.path[:200]}.", status=404, code="unknown_url")
        if batch.ended:
            raise Refused(f"Cannot cancel a batch with status '{batch.status}'.", status=409, code="batch_ended")
        batch.cancel()
        await exchange.respond(200, orjson.dumps(batch.as_dict()))

    def _found(self, batch_id: str) -> Batch:
        batch = self._batches.get(batch_id)
        if batch is None:
            raise Refused(f"No batch found with id '{batch_id[:100]}'.", status=404, param="batch_id")
        return batch

    async def _run(self, batch: Batch, asked: Faults) -> None:
        try:
            await self._work(batch, asked)
        except Refused as refused:
            # Its file was deleted meanwhile, or there is no room for its output.
            batch.errors = [{"code": refused.code or refused.type, "message": refused.message, "param": refused.param, "line": None}]
            batch.enter("failed")

    async def _work(self, batch: Batch, asked: Faults) -> None:
        lines, problems = read_lines(self._files.get(batch.input_file_id), batch.endpoint)
        batch.total = len(lines)
        if problems:
            batch.errors = problems
            batch.enter("failed")
            return
        results: list[bytes] = []
        errors: list[bytes] = []

        def answer(line: Line) -> None:
            if batch.status == "validating":
                batch.enter("in_progress")
            failed, told = self._answer(batch, line)
            (errors if failed else results).append(told)
            batch.completed += not failed
            batch.failed += failed

        final = await batch_lines.through(lines, asked, batch.cancel_asked, answer)
        if final == "completed":
            batch.enter("finalizing")
        batch.output_file_id = self._leave(batch, "output", results)
        batch.error_file_id = self._leave(batch, "error", errors)
        batch.enter(final)

    def _leave(self, batch: Batch, kind: str, lines: list[bytes]) -> str | None:
        if not lines:
            return None
        content = b"\n".join(lines) + b"\n"
        return self._files.add(f"file-{self._simulator.next_id()}", f"{batch.id}_{kind}.jsonl", "batch_output", content).id

    def _answer(self, batch: Batch, line: Line) -> tuple[bool, bytes]:
        """Whether it failed, and the result line of one request."""
        request_id = self._simulator.next_id()
        try:
            with batch_lines.visiting(self._simulator, OPENAI, batch.id) as visit:
                return False, result_line(line, request_id, 200, self._body(batch, line, visit))
        except Refused as refused:
            return True, result_line(line, request_id, refused.status, orjson.loads(refused.body()))

    def _body(self, batch: Batch, line: Line, visit: Visit) -> Any:
        if batch.endpoint == "/v1/embeddings":
            return self._embed(batch, line, visit)
        return batch_lines.generated(self._simulator, visit, OPENAI, Asked(parse_chat(line.body), tools_json(line.body)), batch.key)

    def _embed(self, batch: Batch, line: Line, visit: Visit) -> Any:
        request = embeddings.parse_embeddings(line.body)
        visit.requested_model = request.model
        base_model, of_model = faults.split_model(request.model)
        visit.model = model_named(base_model)
        visit.asked = request.inputs[0]
        visit.faults = self._simulator.faults_for(Subject("batch", base_model, request.inputs[0], ()), {}, of_model)
        self._simulator.check_key(batch.key, visit.faults)
        batch_lines.raise_fault(visit.faults)
        visit.prompt_tokens = request.prompt_tokens
        visit.billed = visit.usage_sent = True
        vectors = [embeddings.encoded(embeddings.embed(text, request.dimensions), request.as_base64) for text in request.inputs]
        return orjson.loads(openai_wire.embeddings_body(visit.model.name, vectors, request.prompt_tokens, faults.NO_FAULTS).body)


def _page(exchange: Exchange, items: list[dict[str, Any]]) -> dict[str, Any]:
    limit = exchange.query("limit") or "20"
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= 10_000:
        raise Refused("'limit' must be a whole number from 1 to 10000.", param="limit")
    return listed(items, limit=int(limit[:9]), after=exchange.query("after"))
