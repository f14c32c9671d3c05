"""Gemini's files and batches of content. A batch runs in a task of its own, a request after the other, at half price."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.simulator.batches import MAX_BATCHES
from services.simulator.chat_request import parse_object
from services.simulator.content_batches import ContentBatch, Entry, file_entries, inline_entries, parse_config, status_of
from services.simulator.dialects import GEMINI
from services.simulator.faults import Faults
from services.simulator.gemini_request import named, parse_generate
from services.simulator.refusals import Refused
from services.simulator.simulator import Simulator
from services.simulator.stored_files import MAX_FILE_BYTES, FileStore, StoredFile
from services.simulator.surfaces import batch_lines
from services.simulator.surfaces.exchange import Exchange
from services.simulator.surfaces.generation import Asked

BASE = "/v1beta/"
CREATE = ":batchGenerateContent"
UPLOAD = "/upload/v1beta/files"


class ContentBatchSurface:
    """Files and batches of one simulator."""

    def __init__(self, simulator: Simulator):
        self._simulator = simulator
        self._files = FileStore()
        self._uploads: dict[str, tuple[str, bytearray]] = {}
        self._batches: dict[str, ContentBatch] = {}
        self._running = batch_lines.Tasks()

    def stop(self) -> None:
        """End the batches that run: the process is to end."""
        self._running.stop()

    async def call(self, exchange: Exchange, method: str) -> None:
        """Any method on files and batches, and the beginning of a batch."""
        try:
            await self._call(exchange, method)
        except Refused as refused:
            status, body, headers = GEMINI.refusal(refused, "")
            await exchange.respond(status, body, headers)

    async def _call(self, exchange: Exchange, method: str) -> None:
        path = exchange.path
        if path == UPLOAD:
            await self._upload(exchange)
            return
        kind, _, name = path.removeprefix(BASE).partition("/")
        name, _, verb = name.partition(":")
        match method, kind, verb:
            case "POST", "models", "batchGenerateContent":
                await self._create(exchange, name)
            case "GET", "files", "download":
                stored = self._files.get(name)
                if stored.purpose != "generated":
                    raise Refused("Only generated files can be downloaded.")
                await exchange.respond(200, stored.content, content_type=b"application/octet-stream")
            case "GET", "files", "" if name:
                await exchange.respond(200, orjson.dumps(_file(self._files.get(name))))
            case "GET", "files", "":
                await exchange.respond(200, orjson.dumps({"files": [_file(stored) for stored in self._files.all()]}))
            case "DELETE", "files", "":
                self._files.remove(name)
                await exchange.respond(200, b"{}")
            case "GET", "batches", "" if name:
                await exchange.respond(200, orjson.dumps(self._found(name).as_dict()))
            case "GET", "batches", "":
                await exchange.respond(200, orjson.dumps(self._page(exchange)))
            case "POST", "batches", "cancel":
                self._found(name).cancel_asked.set()
                await exchange.respond(200, b"{}")
            case "DELETE", "batches", "":
                found = self._found(name)
                found.cancel_asked.set()
                del self._batches[found.name]
                await exchange.respond(200, b"{}")
            case _:
                raise Refused("The requested URL was not found on this server.", status=404)

    async def _upload(self, exchange: Exchange) -> None:
        command = {word.strip() for word in exchange.headers.get("x-goog-upload-command", "").split(",")}
        content = await exchange.body(limit=MAX_FILE_BYTES)
        if command == {"start"}:
            self._simulator.check_key(_key(exchange), {})
            about = named(named(parse_object(content or b"{}"), None, "").get("file"), None, "file")
            upload_id = self._simulator.next_id()
            self._uploads[upload_id] = (str(about.get("displayName") or ""), bytearray())
            url = f"http://{exchange.headers.get('host', 'localhost')}{UPLOAD}?upload_id={upload_id}"
            headers = ((b"x-goog-upload-url", url.encode()), (b"x-goog-upload-status", b"active"))
            await exchange.respond(200, b"{}", headers)
            return
        upload_id = exchange.query("upload_id") or ""
        if upload_id not in self._uploads or "upload" not in command:
            raise Refused("There is no such upload.", status=404)
        display_name, received = self._uploads[upload_id]
        if exchange.headers.get("x-goog-upload-offset") != str(len(received)) or len(received) + len(content) > MAX_FILE_BYTES:
            raise Refused("The offset is not where the upload is, or the file is too large.")
        received += content
        if "finalize" not in command:
            await exchange.respond(200, b"{}", ((b"x-goog-upload-status", b"active"),))
            return
        del self._uploads[upload_id]
        stored = self._files.add(self._simulator.next_id(), display_name, "uploaded", bytes(received))
        await exchange.respond(200, orjson.dumps({"file": _file(stored)}), ((b"x-goog-upload-status", b"final"),))

    async def _create(self, exchange: Exchange, model: str) -> None:
        display_name, file, requests = parse_config(parse_object(await exchange.body(limit=MAX_FILE_BYTES)))
        name = f"batches/{self._simulator.next_id()}"
        asked = await batch_lines.asked_faults(self._simulator, exchange, GEMINI, _key(exchange), name, labels=(display_name,))
        if asked is None:
            return
        if len(self._batches) >= MAX_BATCHES:
            raise Refused(f"There are {MAX_BATCHES} batches already.", status=429)
        entries = file_entries(self._files.get(file.removeprefix("files/")).content) if file else inline_entries(requests)
        batch = self._batches[name] = ContentBatch(name, model, display_name, _key(exchange), file, entries)
        self._running.begin(self._work(batch, asked))
        await exchange.respond(200, orjson.dumps(batch.as_dict()))

    def _page(self, exchange: Exchange) -> dict[str, Any]:
        size, token = exchange.query("pageSize") or "50", exchange.query("pageToken") or "0"
        if not size.isdecimal() or not token.isdecimal():
            raise Refused("* ListOperationsRequest: page_size and page_token must be numbers.")
        newest = list(self._batches.values())[::-1]
        begin, end = int(token[:9]), int(token[:9]) + max(int(size[:9]), 1)
        told: dict[str, Any] = {"operations": [batch.as_dict() for batch in newest[begin:end]]}
        return {**told, "nextPageToken": str(end)} if end < len(newest) else told

    def _found(self, name: str) -> ContentBatch:
        found = self._batches.get(f"batches/{name}")
        if found is None:
            raise Refused("Requested entity was not found.", status=404)
        return found

    async def _work(self, batch: ContentBatch, asked: Faults) -> None:
        if "batch_expires_after" in asked:
            # As Google has it, nothing of an expired batch can be had, so that nothing of it is done here.
            batch.enter("EXPIRED")
            return

        def answer(entry: Entry) -> None:
            batch.enter("RUNNING")
            result = self._answer(batch, entry)
            batch.succeeded += "response" in result
            batch.failed += "error" in result
            batch.results.append({**entry.about, **result})

        ended = await batch_lines.through(batch.entries, asked, batch.cancel_asked, answer)
        if batch.results and not batch.file:
            batch.output = {"inlinedResponses": {"inlinedResponses": batch.results}}
        elif batch.results:
            content = b"".join(orjson.dumps(result) + b"\n" for result in batch.results)
            stored = self._files.add(f"batch-{self._simulator.next_id()}", batch.display_name, "generated", content)
            batch.output = {"responsesFile": f"files/{stored.id}"}
        batch.enter("SUCCEEDED" if ended == batch_lines.COMPLETED else "CANCELLED")

    def _answer(self, batch: ContentBatch, entry: Entry) -> Mapping[str, Any]:
        try:
            with batch_lines.visiting(self._simulator, GEMINI, batch.name) as visit:
                request, tools_json = parse_generate(entry.request, batch.model, False)
                return {"response": batch_lines.generated(self._simulator, visit, GEMINI, Asked(request, tools_json), batch.key)}
        except Refused as refused:
            return {"error": status_of(GEMINI.refusal(refused, "")[1])}


def _file(stored: StoredFile) -> dict[str, Any]:
    return {
        "name": f"files/{stored.id}",
        "displayName": stored.name,
        "mimeType": "application/jsonl",
        "sizeBytes": str(len(stored.content)),
        "state": "ACTIVE",
        "source": stored.purpose.upper(),
    }


def _key(exchange: Exchange) -> str:
    return exchange.headers.get("x-goog-api-key") or exchange.query("key") or exchange.bearer_key
