"""Logs for the tests of the console, as runs leave them, and how a test gets to them in a browser."""

import json
import struct
import uuid
import zlib
from typing import Any

from bulkhead.orchestrator.v1 import approvals_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway.fake_scripts import FakeRun
from services.gateway.fakes import Gateway
from tests.system.browser import Page

TENANT = "acme"
ENDS = {
    "run_finished": pb.RUN_STATUS_SUCCEEDED,
    "run_failed": pb.RUN_STATUS_FAILED,
    "run_cancelled": pb.RUN_STATUS_CANCELLED,
}
USAGE = {"input_tokens": 1480, "output_tokens": 312, "cost_microusd": 5310, "model_calls": 2, "tool_calls": 2}


def record(front: Gateway, thread: str, events: list[tuple[str, dict[str, Any]]], *, agent: str = "assistant", every_ms: int = 150) -> str:
    """A run of the thread with these events behind `run_queued` and `run_started`, one each `every_ms`, the last of them now."""
    front.log.make_thread(TENANT, thread)
    run_id = f"run_{uuid.uuid4().hex}"
    queued = {"agent": agent, "agent_version": "1", "input": [{"role": "user", "text": "How did the harbour do this week?"}]}
    given = dict(events[:1]).get("run_queued")
    whole = [("run_queued", {**queued, **(given or {})}), ("run_started", {}), *(events[1:] if given else events)]
    run = pb.Run(run_id=run_id, thread_id=thread, agent=agent, agent_version="1", status=pb.RUN_STATUS_RUNNING, attempt=1)
    front.log.runs[(TENANT, run_id)] = FakeRun(pb.CreateRunRequest(run_id=run_id), run)
    for number, (kind, data) in enumerate(whole):
        event = front.log.append(TENANT, thread, run_id, kind, data, provisional=kind == "message_delta")
        event.occurred_at.FromMilliseconds(event.occurred_at.ToMilliseconds() - (len(whole) - number) * every_ms)
        run.first_seq = run.first_seq or event.seq
        if number == 0:
            run.created_at.CopyFrom(event.occurred_at)
            run.started_at.CopyFrom(event.occurred_at)
        if kind in ENDS:
            run.status, run.terminal_seq = ENDS[kind], event.seq
            run.ended_at.CopyFrom(event.occurred_at)
            for name, value in USAGE.items():
                setattr(run.usage, name, value)
    return run_id


def finished(text: str, **more: Any) -> tuple[str, dict[str, Any]]:
    """The end of a run that answered."""
    return "run_finished", {"output_text": text, "finish_reason": "stop", "usage": USAGE, "citations": [], **more}


def png(width: int = 480, height: int = 240) -> bytes:
    """A picture: bands of colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0"
        + b"".join(bytes((16 + x * 160 // width, 60 + y * 120 // height, 110 + (x + y) * 100 // (width + height))) for x in range(width))
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


CHARTS = {
    "line": [
        {"name": "Arrivals", "points": [[day, 20 + day * day % 17] for day in range(1, 15)]},
        {"name": "Departures", "points": [[day, 18 + day * 3 % 13] for day in range(1, 15)]},
    ],
    "bar": [
        {"name": "2025", "points": [["North", 41], ["East", 25], ["South", 58], ["West", -6]]},
        {"name": "2026", "points": [["North", 47], ["East", 31], ["South", 49], ["West", 8]]},
    ],
    "area": [{"name": "Water level", "points": [[hour, 3 + (hour % 12) * 0.4] for hour in range(25)]}],
    "scatter": [{"name": "Ships", "points": [[length, length * 0.31 + length % 7] for length in range(20, 300, 7)]}],
    "pie": [{"name": "Cargo", "points": [["Grain", 44], ["Ore", 27], ["Containers", 21], ["Other", 8]]}],
}
TABLE = {
    "content_id": "c2/0",
    "call_id": "c2",
    "title": "Berths this week",
    "columns": ["Berth", "Ships", "Tonnes", "Free"],
    "rows": [["A1", 12, 48210.5, True], ["A2", 7, 9120, False], ["B1", 31, 120400, None], ["B2", 2, 310, True]],
    "total_rows": 4,
}
CODE = """def tide(hour: int) -> float:
    # metres above the chart datum; the moon does the rest
    return 3.0 + 0.4 * (hour % 12)
"""
ANSWER = """## The week in short

The harbour took **52 ships**, eleven more than the week before [c1]. Three things stand out:

1. Berth *B1* carries more than half of all tonnes.
2. The lock gate was late twice; see `gate.log`.
   - Tuesday, 06:52
   - Friday, 07:10
3. Water was low on Thursday.

> The lock gate opens at 06:40 every morning.

| Day | Ships |
|---|---:|
| Monday | 9 |
| Tuesday | 14 |

```python
print(sum([9, 14]))  # so far
```
"""
CITED = {
    "citation_id": "c1",
    "document_id": "doc_1",
    "document_version": 1,
    "title": "harbour-rules.md",
    "heading": "Opening hours",
    "char_start": 120,
    "char_end": 310,
    "content_hash": "x",
}


def call(call_id: str, tool: str, arguments: Any, output: Any, *content: tuple[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """A tool call with its content."""
    started = {"call_id": call_id, "tool": tool, "version": "1.0.0", "arguments": arguments, "side_effects": "none"}
    ended = {"call_id": call_id, "tool": tool, "output": output, "duration_ms": 118}
    return [("tool_call_started", started), ("tool_call_completed", ended), *content]


def usage(step: int, tokens: int, cost_microusd: int) -> tuple[str, dict[str, Any]]:
    """The end of a model call."""
    served = {"step": step, "model": "assistant-model", "provider": "simulator"}
    return "usage", {**served, "input_tokens": tokens, "output_tokens": tokens // 5, "cost_microusd": cost_microusd}


def step(number: int) -> tuple[str, dict[str, Any]]:
    """The beginning of a step with a model call."""
    return "step_started", {"step": number, "idempotency_key": f"k{number}", "request_digest": "d" * 64}


def blob(content_id: str, title: str, name: str, mime_type: str, blob_id: str, **more: Any) -> dict[str, Any]:
    """The data of a content event that is kept as a blob."""
    about = {"content_id": content_id, "call_id": content_id.split("/")[0], "title": title, "size": 20_480, "sha256": "a" * 64}
    return {**about, "name": name, "mime_type": mime_type, "blob_id": blob_id, **more}


def chart(kind: str, series: list[dict[str, Any]], number: int = 0) -> tuple[str, dict[str, Any]]:
    """A chart."""
    about = {"content_id": f"c3/{number}", "call_id": "c3", "title": f"A {kind} chart", "alt": f"A {kind} chart of the harbour"}
    return "chart", {**about, "chart_type": kind, "x_label": "Day", "y_label": "Ships", "series": series}


PICTURE = blob("c4/0", "Berth B1", "b1.png", "image/png", "blob_1", alt="Berth B1 at noon, two ships", width=480, height=240)
SOUND = blob("c5/1", "Radio, 06:52", "radio.wav", "audio/wav", "blob_2", transcript="Gate is late. Hold position.")
SHEET = blob("c5/2", "", "week-46.pdf", "application/pdf", "blob_3")


def week() -> list[tuple[str, dict[str, Any]]]:
    """A run with one of everything."""
    plan = [{"title": "Read the log", "status": "done"}, {"title": "Draw it", "status": "in_progress"}]
    lost = {"code": "memory_unavailable", "capability_lost": "long_term_memory", "fallback": "window_only", "attributes": {}}
    code = {"content_id": "c5/0", "call_id": "c5", "title": "", "language": "python", "text": CODE, "name": "tide.py"}
    charts = [chart(kind, series, number) for number, (kind, series) in enumerate(CHARTS.items())]
    return [
        ("memory_recalled", {"parts": 3, "kinds": {"long_term": 2, "window": 1}}),
        step(1),
        ("plan_updated", {"version": 1, "steps": plan}),
        usage(1, 900, 2100),
        *call("c1", "search_documents", {"query": "lock gate"}, {"hits": 2}),
        *call("c2", "harbour_table", {"week": 46}, {"rows": 4}, ("table", TABLE)),
        *call("c3", "harbour_charts", {"week": 46}, {"charts": 5}, *charts),
        *call("c4", "camera", {"berth": "B1"}, {"pictures": 1}, ("image", PICTURE)),
        *call("c5", "notes", {}, {"files": 3}, ("code_block", code), ("audio", SOUND), ("file", SHEET)),
        ("hologram", {"content_id": "c5/3", "call_id": "c5", "title": "A kind of next year"}),
        ("warning", {**lost, "user_message": "I cannot remember earlier talks for now."}),
        ("step_completed", {"step": 1, "usage": USAGE}),
        step(2),
        ("message_delta", {"text": ANSWER[:40], "message_id": "m1"}),
        ("message_delta", {"text": ANSWER[40:], "message_id": "m1"}),
        ("citation", CITED),
        usage(2, 580, 3210),
        ("message_completed", {"text": ANSWER, "message_id": "m1"}),
        ("step_completed", {"step": 2, "usage": USAGE}),
        finished(ANSWER, citations=[CITED]),
    ]


def asked(front: Gateway, kind: type) -> list[Any]:
    """What the orchestrator was asked of this kind."""
    return [request for request in front.log.desk.asked if isinstance(request, kind)]


def ask_for(front: Gateway, run_id: str, thread: str, number: int = 0, **arguments: Any) -> str:
    """A run asks for an approval, in its log and in the list."""
    approval_id, digest = f"{run_id}/1/{number}", "d" * 64
    front.log.desk.raise_approval(TENANT, approvals_pb2.Approval(
        approval_id=approval_id, run_id=run_id, thread_id=thread, tool="wipe", arguments_json=json.dumps(arguments).encode(),
        arguments_digest=digest, decidable=True, state=approvals_pb2.APPROVAL_STATE_OPEN, input_schema_json=b"{}",
        kind=approvals_pb2.APPROVAL_KIND_TOOL_CALL,
    ))  # fmt: skip
    asking = {"interrupt_id": approval_id, "kind": "tool_call", "call_id": f"c{number}", "tool": "wipe", "version": "1"}
    rules = {"schema": {}, "reason": "tool", "expires_at_ms": 4_000_000_000_000, "on_expiry": "reject", "four_eyes": False}
    approvers = {"users": [], "scopes": [], "requester": True}
    data = {**asking, **rules, "arguments": arguments, "arguments_digest": digest, "approvers": approvers}
    front.log.append(TENANT, thread, run_id, "interrupt_raised", data)
    return approval_id


def blobs(url: str, authorization: str) -> tuple[int, str, bytes]:
    """What the blob store would answer, to a caller with a key alone."""
    if not authorization.startswith("Bearer bh_"):
        return 401, "application/problem+json", b"{}"
    return (200, "image/png", png()) if "blob_1" in url else (200, "text/html", b"<script>window.ran = 1</script>")


async def enter(
    page: Page,
    front: Gateway,
    place: str = "",
    *,
    scheme: str = "light",
    width: int = 1280,
    height: int = 860,
    blobs: Any = blobs,
) -> None:
    """Signs in and goes to a place. `blobs` answers for the blob store; None leaves that to the gateway."""
    await page.scheme(scheme)
    await page.size(width, height)
    if blobs is not None:
        await page.serve("*/v1/blobs/*", blobs)
    await page.open(front.url + "/" + place)
    await page.until("document.documentElement.dataset.ready !== undefined", "the page is up")
    await page.js(f"localStorage.clear(), sessionStorage.setItem('bulkhead.key', {json.dumps(front.key)}), location.reload()")
    await page.until("document.body.classList.contains('signed-in') && document.documentElement.dataset.ready !== undefined", "signed in")


def quiet(page: Page, front: Gateway) -> None:
    """Nothing was refused or thrown, and nobody else was asked."""
    assert page.complaints == []
    foreign = [url for url in page.requests if not url.startswith((front.url + "/", "about:", f"blob:{front.url}"))]
    assert foreign == []


async def drawn(page: Page, what: str = ".turn .foot") -> None:
    """Waits until something is there."""
    await page.until(f"document.querySelector({json.dumps(what)}) !== null", f"{what} is drawn")
