"""OpenAI's files and batches. A batch runs in a task of its own, a line after the other, at half price."""

import asyncio
import contextlib
import time
from typing import Any

import orjson

from services.simulator import embeddings, faults, openai_wire
from services.simulator.batches import MAX_BATCHES, Batch, Line, parse_batch, read_lines, result_line
from services.simulator.chat_request import parse_chat, parse_object
from services.simulator.dialects import OPENAI
from services.simulator.fault_answers import error_answer
from services.simulator.fault_book import Subject
from services.simulator.faults import Faults, count
from services.simulator.plans import Ending
from services.simulator.prices import model_named
from services.simulator.refusals import Refused
from services.simulator.served_log import Visit
from services.simulator.simulator import Simulator, labels_of
from services.simulator.stored_files import MAX_FILE_BYTES, FileStore, listed, parse_upload
from services.simulator.surfaces import generation
from services.simulator.surfaces.exchange import Exchange
from services.simulator.surfaces.generation import Asked, Prepared
from services.simulator.surfaces.openai import tools_json

FAULT_METADATA = "sim_fault"
"""The key of a batch's metadata that may name its faults, as the header `x-sim-fault` does."""


class BatchSurface:
    """Files and batches of one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator
        self._files = FileStore()
        self._batches: dict[str, Batch] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def stop(self) -> None:
        """End the batches that run: the process is to end."""
        for task in self._running.values():
            task.cancel()

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

    async def create(self, exchange: Exchange) -> None:
        """POST /v1/batches"""
        body = parse_object(await exchange.body())
        batch = parse_batch(body, f"batch_{self._simulator.next_id()}", exchange.bearer_key)
        told = faults.parse_text((batch.metadata or {}).get(FAULT_METADATA, ""), "metadata")
        labels = labels_of(exchange.headers, *(batch.metadata or {}).values())
        asked = self._simulator.faults_for(Subject("batch", "", "", labels), exchange.headers, told)
        self._simulator.check_key(exchange.bearer_key, asked)
        error = error_answer(asked)
        if error is not None:
            status, refusal, headers = OPENAI.refusal(error.refused, batch.id)
            await exchange.respond(status, refusal, (*error.headers, *headers))
            return
        self._files.get(batch.input_file_id)
        if len(self._batches) >= MAX_BATCHES:
            oldest = next((found.id for found in self._batches.values() if found.ended), None)
            if oldest is None:
                raise Refused(f"There are {MAX_BATCHES} batches that run already.", status=429, code="batch_limit")
            del self._batches[oldest]
        self._batches[batch.id] = batch
        task = asyncio.create_task(self._run(batch, asked))
        self._running[batch.id] = task
        task.add_done_callback(lambda _: self._running.pop(batch.id, None))
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
        await _pause(batch, asked, "batch_delay")
        results: list[bytes] = []
        errors: list[bytes] = []
        if batch.status != "cancelling":
            batch.enter("in_progress")
        ends_after = count(asked, "batch_expires_after")
        expired = False
        for done, line in enumerate(lines):
            expired = ends_after is not None and done >= ends_after
            if expired or batch.status == "cancelling":
                break
            status, told = self._answer(batch, line)
            (results if status < 400 else errors).append(told)
            batch.completed += status < 400
            batch.failed += status >= 400
            await _pause(batch, asked, "batch_line_delay")
        final = "cancelled" if batch.status == "cancelling" else "expired" if expired else "completed"
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

    def _answer(self, batch: Batch, line: Line) -> tuple[int, bytes]:
        """The status and the result line of one request; its line in the log says that it was one of the batch."""
        request_id = self._simulator.next_id()
        visit = Visit(f"chatcmpl-sim-{request_id}", "batch", {}, time.time(), time.monotonic(), batch_id=batch.id)
        self._simulator.log.begin(visit)
        try:
            body = self._body(batch, line, visit)
            visit.status = 200
            return 200, result_line(line, request_id, 200, body)
        except Refused as refused:
            visit.status = refused.status
            visit.error_code = refused.code or refused.type
            return refused.status, result_line(line, request_id, refused.status, orjson.loads(refused.body()))
        finally:
            self._simulator.log.end(visit)

    def _body(self, batch: Batch, line: Line, visit: Visit) -> Any:
        if batch.endpoint == "/v1/embeddings":
            return self._embed(batch, line, visit)
        request = parse_chat(line.body)
        if request.stream:
            raise Refused("A request of a batch cannot be streamed.", param="stream")
        made = generation.prepare(self._simulator, visit, OPENAI, Asked(request, tools_json(line.body)), {}, batch.key)
        _raise_fault(made.faults)
        return self._told(visit, made)

    def _told(self, visit: Visit, made: Prepared) -> Any:
        plan = openai_wire.whole_body(made.replies, made.head, {name: made.faults[name] for name in made.faults if name in _OF_USAGE})
        assert plan.ending is Ending.ORDERLY
        generation.account(self._simulator, visit, made)
        visit.billed = True
        visit.usage_sent = plan.usage_sent
        visit.finish_reason = plan.finish_reason
        return orjson.loads(plan.body)

    def _embed(self, batch: Batch, line: Line, visit: Visit) -> Any:
        request = embeddings.parse_embeddings(line.body)
        visit.requested_model = request.model
        base_model, of_model = faults.split_model(request.model)
        visit.model = model_named(base_model)
        visit.asked = request.inputs[0]
        visit.faults = self._simulator.faults_for(Subject("batch", base_model, request.inputs[0], ()), {}, of_model)
        self._simulator.check_key(batch.key, visit.faults)
        _raise_fault(visit.faults)
        visit.prompt_tokens = request.prompt_tokens
        visit.billed = visit.usage_sent = True
        vectors = [embeddings.encoded(embeddings.embed(text, request.dimensions), request.as_base64) for text in request.inputs]
        return orjson.loads(openai_wire.embeddings_body(visit.model.name, vectors, request.prompt_tokens, faults.NO_FAULTS).body)


# Of the faults of an answer those that make sense where it is a line of a file.
_OF_USAGE = frozenset(("missing_usage", "usage_zero", "show_reasoning"))


def _raise_fault(asked: Faults) -> None:
    error = error_answer(asked)
    if error is not None:
        raise error.refused


async def _pause(batch: Batch, asked: Faults, name: str) -> None:
    """Wait as the fault says, or until the batch is cancelled; at least let others have a turn."""
    await asyncio.sleep(0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout((count(asked, name) or 0) / 1000):
            await batch.cancel_asked.wait()


def _page(exchange: Exchange, items: list[dict[str, Any]]) -> dict[str, Any]:
    limit = exchange.query("limit") or "20"
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= 10_000:
        raise Refused("'limit' must be a whole number from 1 to 10000.", param="limit")
    return listed(items, limit=int(limit[:9]), after=exchange.query("after"))
