"""What tools give to be shown: parts of their results become events of their own, and what is large or no text stands in blobs.

A tool gives a list `content`, as a result of MCP has one (docs/content.md). Blobs are kept before the write that tells of them, under a key
of their call and what they hold, so that an owner who makes the write again makes no blob again. What the model, the log and memory get of
a part has an id in the place of its bytes, also where those could not be kept.
"""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import structlog

from services.common.errors import BulkheadError, InvalidInput
from services.orchestrator.blobs import kinds
from services.orchestrator.blobs.ports import BlobRecord
from services.orchestrator.ports import ToolOutcome
from services.orchestrator.turn import degradation, tables
from services.orchestrator.turn.state import PendingCall, Turn
from services.orchestrator.turn.tables import Refused

MOST_PARTS = 64
# What a run waits for its blobs to be kept, for all those of a call together.
KEEP_WITHIN_S = 8.0
MOST_TITLE, MOST_ALT, MOST_TRANSCRIPT = 256, 2_000, 8_000
# Names that tools give to types that are taken.
_SAME = {"image/jpg": "image/jpeg", "audio/mp3": "audio/mpeg", "audio/x-wav": "audio/wav", "audio/wave": "audio/wav"}
_NOT_KEPT = "This content could not be kept, so it is not shown to anybody."
log = structlog.get_logger("bulkhead.content")


@dataclass(slots=True)
class _Taking:
    """The content of one call, as far as it is taken. `away` is why blobs cannot be kept, '' while they can."""

    turn: Turn
    call: PendingCall
    until: float
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    away: str = ""

    def told(self, title: str = "") -> dict[str, Any]:
        """What every event has."""
        return {"content_id": f"{self.call.call_id}/{len(self.events)}", "call_id": self.call.call_id, "title": title}

    def emit(self, kind: str, data: dict[str, Any]) -> None:
        """Has an event follow that of the call's result."""
        self.events.append((kind, data))

    async def keep(self, content: bytes, mime_type: str, name: str) -> BlobRecord | None:
        """A blob, None where none can be kept now. Raises Refused."""
        turn = self.turn
        if self.away or turn.services.blobs is None:
            self.away = self.away or "BLOBS_NOT_CONFIGURED"
            return None
        key = f"{turn.ref.run_id}/{turn.state.step}/{self.call.number}/{hashlib.sha256(content).hexdigest()}"
        tenant, thread_id, run_id = turn.ref
        user = turn.principal.user
        try:
            async with asyncio.timeout_at(self.until):
                return await turn.services.blobs.keep(tenant, user, thread_id, key, content, mime_type, name, run_id)
        except InvalidInput as error:
            raise Refused(error.violations[0].description if error.violations else error.message) from error
        except BulkheadError as error:
            self.away = error.reason
        except TimeoutError:
            self.away = "BLOBS_UNAVAILABLE"
        log.warning("content_not_kept", run_id=turn.ref.run_id, reason=self.away)
        return None


async def taken(turn: Turn, call: PendingCall, outcome: ToolOutcome, within_s: float | None = None) -> ToolOutcome:
    """The outcome of a call with ids in the place of bytes, and the events that are to follow its own as its `content`. Blobs are waited
    for `within_s`, else KEEP_WITHIN_S."""
    # Most results are none of these, and need not be parsed.
    if outcome.outcome != "done" or not outcome.output.startswith(b"{") or b'"content"' not in outcome.output:
        return outcome
    try:
        output = orjson.loads(outcome.output)
    except orjson.JSONDecodeError:
        # An output that is no JSON after all is told as it is.
        return outcome
    parts = output.get("content")
    if not isinstance(parts, list):
        return outcome
    taking = _Taking(turn, call, asyncio.get_running_loop().time() + (KEEP_WITHIN_S if within_s is None else within_s))
    output["content"] = [await _part(taking, number, part) for number, part in enumerate(parts)]
    changed = output["content"] != parts
    events = taking.events + _warnings(taking)
    return replace(outcome, output=orjson.dumps(output) if changed else outcome.output, content=tuple(events))


def tell(turn: Turn, outcome: ToolOutcome) -> None:
    """Puts the events of a result into the next write, which is that of the result."""
    for kind, data in outcome.content:
        if kind == "warning":
            degradation.relay(turn, data)
        else:
            turn.writer.emit(kind, data)


async def _part(taking: _Taking, number: int, part: Any) -> Any:
    """What stands for a part in the result."""
    make = _MAKERS.get(part.get("type", "")) if isinstance(part, dict) and isinstance(part.get("type"), str) else None
    if make is None:
        return part
    try:
        if number >= MOST_PARTS:
            raise Refused(f"a result shows at most {MOST_PARTS} parts")
        return await make(taking, part)
    except Refused as refused:
        taking.refused.append((number, str(refused)))
        return _without_bytes(part, str(refused))


def _without_bytes(part: Mapping[str, Any], why: str) -> dict[str, Any]:
    """A part that is not taken, as it is but for what is no text for anybody."""
    left = {name: {"refused": why} if name in ("data", "blob") else value for name, value in part.items()}
    if isinstance(left.get("resource"), dict):
        left["resource"] = _without_bytes(left["resource"], why)
    return left


def _warnings(taking: _Taking) -> list[tuple[str, dict[str, Any]]]:
    found = []
    if taking.refused:
        numbers = [number for number, _ in taking.refused]
        attributes = {"reason": taking.refused[0][1], "call_id": taking.call.call_id, "tool": taking.call.name, "parts": numbers}
        found.append(("warning", {"code": "content_refused", "attributes": attributes}))
    if taking.away:
        attributes = {"reason": taking.away, "call_id": taking.call.call_id, "tool": taking.call.name}
        found.append(("warning", {"code": "content_unavailable", "attributes": attributes}))
    return found


# --- one part ---


async def _image(taking: _Taking, part: Mapping[str, Any]) -> Any:
    content, mime_type = _decoded(part, "data"), _mime(part)
    if mime_type not in kinds.IMAGES:
        raise Refused(f"an image must be one of {', '.join(sorted(kinds.IMAGES))}")
    alt = _text(part, "alt", MOST_ALT)
    blob = await taking.keep(content, mime_type, _name(part))
    if blob is not None:
        width, height = kinds.size_of(content, mime_type) or (0, 0)
        data = {**taking.told(_text(part, "title", MOST_TITLE)), **_of(blob), "alt": alt, "width": width, "height": height}
        taking.emit("image", data)
    return _stands_for("image", blob, mime_type, len(content), {"alt": alt})


async def _audio(taking: _Taking, part: Mapping[str, Any]) -> Any:
    content, mime_type = _decoded(part, "data"), _mime(part)
    if not mime_type.startswith("audio/"):
        raise Refused("audio must be one of audio/mpeg, audio/ogg, audio/wav")
    transcript = _text(part, "transcript", MOST_TRANSCRIPT)
    blob = await taking.keep(content, mime_type, _name(part))
    if blob is not None:
        data = {**taking.told(_text(part, "title", MOST_TITLE)), **_of(blob), "transcript": transcript}
        taking.emit("audio", data)
    return _stands_for("audio", blob, mime_type, len(content), {"transcript": transcript})


async def _file(taking: _Taking, part: Mapping[str, Any]) -> Any:
    return await _as_file(taking, part, _decoded(part, "data"), _mime(part), _name(part))


async def _as_file(taking: _Taking, part: Mapping[str, Any], content: bytes, mime_type: str, name: str) -> Any:
    # What nobody knows how to show is a download.
    mime_type = mime_type if mime_type in kinds.TYPES else kinds.OPAQUE
    blob = await taking.keep(content, mime_type, name)
    if blob is not None:
        taking.emit("file", {**taking.told(_text(part, "title", MOST_TITLE)), **_of(blob)})
    return _stands_for("file", blob, mime_type, len(content), {"name": name})


async def _resource(taking: _Taking, part: Mapping[str, Any]) -> Any:
    resource = part.get("resource")
    if not isinstance(resource, dict):
        raise Refused("a resource is an object")
    mime_type, name = _mime(resource), _name(resource) or kinds.shown_name(_text(resource, "uri", 2_000).partition("?")[0])
    if "blob" not in resource:
        text = resource.get("text")
        if not isinstance(text, str):
            raise Refused("a resource has a blob or a text")
        known = mime_type if mime_type in ("text/csv", "text/markdown", "application/json") else "text/plain"
        await _as_file(taking, resource, _utf8(text), known, name)
        # It is text for the model as well.
        return part
    content = _decoded(resource, "blob")
    given = {**resource, "data": resource["blob"], "name": name}
    if mime_type in kinds.IMAGES:
        stands = await _image(taking, given)
    elif mime_type.startswith("audio/") and mime_type in kinds.TYPES:
        stands = await _audio(taking, given)
    else:
        stands = await _as_file(taking, resource, content, mime_type, name)
    return {**stands, "uri": resource["uri"]} if isinstance(resource.get("uri"), str) else stands


async def _table(taking: _Taking, part: Mapping[str, Any]) -> Any:
    columns, rows = tables.checked_table(part)
    data = {**taking.told(_text(part, "title", MOST_TITLE)), "columns": columns, "rows": rows, "total_rows": len(rows)}
    if not tables.fits(data):
        blob = await taking.keep(tables.csv_of(columns, rows), "text/csv", _name(part) or "table.csv")
        data |= _reference(blob)
        data["rows"] = tables.first_rows(data, rows)
    taking.emit("table", data)
    return part


async def _code(taking: _Taking, part: Mapping[str, Any]) -> Any:
    text = part.get("text")
    if not isinstance(text, str):
        raise Refused("code has a text")
    name = _name(part)
    data = {**taking.told(_text(part, "title", MOST_TITLE)), "language": _text(part, "language", 64), "text": text, "name": name}
    if not tables.fits(data):
        blob = await taking.keep(_utf8(text), "text/plain", name or "code.txt")
        data |= _reference(blob)
        data["text"] = tables.beginning(data, text)
    taking.emit("code_block", data)
    return part


async def _chart(taking: _Taking, part: Mapping[str, Any]) -> Any:
    chart = tables.checked_chart(part)
    data = {**taking.told(_text(part, "title", MOST_TITLE)), **chart, "alt": _text(part, "alt", MOST_ALT)}
    if not tables.fits(data):
        raise Refused("a chart takes at most 32 KiB")
    taking.emit("chart", data)
    return part


_MAKERS: Mapping[str, Callable] = {
    "image": _image, "audio": _audio, "file": _file, "resource": _resource, "table": _table, "code": _code, "chart": _chart,
}  # fmt: skip


# --- what parts are made of ---


def _stands_for(kind: str, blob: BlobRecord | None, mime_type: str, size: int, more: Mapping[str, str]) -> dict[str, Any]:
    """What the model gets of a part that is no text."""
    where = {"unavailable": _NOT_KEPT} if blob is None else {"blob_id": blob.blob_id}
    told = {name: value for name, value in more.items() if value or name == "alt"}
    return {"type": kind, **where, "mimeType": mime_type, "size": size, **told}


def _of(blob: BlobRecord) -> dict[str, Any]:
    return {"blob_id": blob.blob_id, "mime_type": blob.mime_type, "size": blob.size, "sha256": blob.sha256, "name": blob.name}


def _reference(blob: BlobRecord | None) -> dict[str, Any]:
    """What leads to the whole of something."""
    return {} if blob is None else {name: value for name, value in _of(blob).items() if name != "name"}


def _decoded(part: Mapping[str, Any], name: str) -> bytes:
    data = part.get(name)
    if not isinstance(data, str):
        raise Refused(f"{name} must be base64")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refused(f"{name} is no base64") from error


def _mime(part: Mapping[str, Any]) -> str:
    named = part.get("mimeType")
    mime_type = kinds.mime_of(named) if isinstance(named, str) else ""
    return _SAME.get(mime_type, mime_type)


def _text(part: Mapping[str, Any], name: str, most: int) -> str:
    value = part.get(name)
    return value[:most] if isinstance(value, str) else ""


def _name(part: Mapping[str, Any]) -> str:
    return kinds.shown_name(_text(part, "name", 4_096))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise Refused("the text has half of a character") from error
