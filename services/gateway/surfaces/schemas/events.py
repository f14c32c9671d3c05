"""The JSON Schema of native events, version 1, as an object that is sent as it is.

SCHEMA                        # one event: the envelope, and `data` by `type`
SCHEMA["$defs"]["usage"]      # `data` of the events of type `usage`; shapes that several types share are in capitals
DATA                          # `data` by type, in the order of docs/api.md

Types and members may come to it, so an event of a type that is not listed is valid, and so are members that are not. What is listed
stays as it is within version 1: scripts/check_api.py holds it against the last release.
"""

from collections.abc import Mapping
from typing import Any

Shape = Mapping[str, Any]

TEXT: Shape = {"type": "string"}
FLAG: Shape = {"type": "boolean"}
COUNT: Shape = {"type": "integer", "minimum": 0}
NUMBER: Shape = {"type": "integer", "minimum": 1}
SCORE: Shape = {"type": "number"}
ANY: Shape = {}
OBJECT: Shape = {"type": "object"}
TEXTS: Shape = {"type": "array", "items": TEXT}
DIGEST: Shape = {"type": "string", "pattern": "^(sha256:)?[0-9a-f]{64}$"}


def one_of(*values: str) -> Shape:
    """A text of a closed list."""
    return {"enum": list(values)}


def many(item: Shape) -> Shape:
    """A list."""
    return {"type": "array", "items": item}


def shared(name: str) -> Shape:
    """A shape of _SHARED."""
    return {"$ref": f"#/$defs/{name}"}


def members(described: str, required: Mapping[str, Shape] | None = None, **optional: Shape) -> Shape:
    """An object: what it always has, and what it may have."""
    needed = dict(required or {})
    found: dict[str, Any] = {"type": "object", "description": described, "properties": {**needed, **optional}}
    return found | ({"required": list(needed)} if needed else {})


_TOKENS: Mapping[str, Shape] = {
    "input_tokens": COUNT, "output_tokens": COUNT, "cached_input_tokens": COUNT, "reasoning_tokens": COUNT, "cost_microusd": COUNT,
}  # fmt: skip
_SOURCE: Mapping[str, Shape] = {
    "citation_id": TEXT, "document_id": TEXT, "document_version": COUNT, "title": TEXT, "heading": TEXT, "char_start": COUNT,
    "char_end": COUNT, "content_hash": TEXT,
}  # fmt: skip
_ASKED: Mapping[str, Shape] = {"idempotency_key": TEXT, "request_digest": DIGEST}
_COUNTS: Shape = {"type": "object", "additionalProperties": COUNT}
_CALL: Mapping[str, Shape] = {"call_id": TEXT, "tool": TEXT}
_DECIDED: Mapping[str, Shape] = {
    "call_id": TEXT, "tool": TEXT, "verb": TEXT, "reason": TEXT, "delegated_to": TEXT, "decided_at_ms": COUNT, "arguments": ANY,
    "arguments_digest": DIGEST,
}  # fmt: skip
_KIND = one_of("tool_call", "outcome_unknown")
_HANDOFF: Mapping[str, Shape] = {
    "target": TEXT, "label": TEXT, "requested_by": one_of("model", "ladder"), "reason": TEXT, "summary": TEXT, "thread_id": TEXT,
    "run_id": TEXT, "user": TEXT,
}  # fmt: skip

_CONTENT: Mapping[str, Shape] = {"content_id": TEXT, "call_id": TEXT, "title": TEXT}
_BLOB: Mapping[str, Shape] = {"blob_id": TEXT, "mime_type": TEXT, "size": NUMBER, "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"}}
_CELL: Shape = {"type": ["string", "number", "boolean", "null"]}
_POINT: Shape = {"type": "array", "prefixItems": [{"type": ["string", "number"]}, SCORE], "minItems": 2, "maxItems": 2}

_SHARED: Mapping[str, Shape] = {
    "Usage": members("What a run has used so far; what is absent is none.", **_TOKENS, model_calls=COUNT, tool_calls=COUNT),
    "Citation": members("A source; the range counts Unicode code points of the document's text.", _SOURCE),
    "RunError": members("Why a run failed.", {"reason": TEXT, "message": TEXT, "retryable": FLAG}),
    "ToolError": members("Why a call has no output.", {"code": TEXT, "message": TEXT}),
    "Cancelled": members(
        "Of a call that somebody cancelled: the command, and what the tool executor said of the call.",
        {"number": NUMBER, "continuation": one_of("skip", "fail", "retry", "substitute"), "executor": TEXT},
    ),
    "PlanStep": members("A step of a plan.", {"title": TEXT, "status": one_of("pending", "in_progress", "done", "skipped", "failed")}),
    "Handoff": members("Who is to take over, why, and what there is to know.", _HANDOFF),
    "Message": members(
        "A message of the input.",
        {"role": TEXT, "text": TEXT},
        images=many(members("An image.", {"blob_id": TEXT}, detail=TEXT)),
        tool_calls=many(shared("ClientToolCall")),
        tool_call_id=TEXT,
    ),
    "ClientToolCall": members(
        "A call that the run's client makes; arguments are as the model wrote them.",
        {"tool_call_id": TEXT, "name": TEXT, "arguments": TEXT},
    ),
    "Attributes": {
        **members("Particulars of a warning; some codes have more.", {"reason": TEXT, "rung": TEXT}),
        "additionalProperties": True,
    },
    "StreamError": members(
        "Data of the server-sent event `stream_error`, which is none of the log and has no id: why the stream ends before its time.",
        {"detail": TEXT, "reason": TEXT, "retryable": FLAG},
    ),
}

DATA: Mapping[str, Shape] = {
    "run_queued": members(
        "A run was accepted.", {"agent": TEXT, "agent_version": TEXT, "input": many(shared("Message"))}, experiment=TEXT, arm=TEXT,
        queue_position=NUMBER, expected_wait_ms=COUNT, start_at_ms=COUNT, tool_choice=ANY, response_format=OBJECT,
        client_tools=many(members("A tool that the client calls.", {"name": TEXT}, description=TEXT, parameters=ANY, strict=FLAG)),
    ),
    "run_started": members("A run is at work."),
    "agent_status": members(
        "What the agent does from here on: thinking, searching, calling_tool, writing, waiting_approval or waiting; others may come.",
        {"status": TEXT}, detail=TEXT,
    ),
    "message_delta": members("A piece of an answer in the making.", {"text": TEXT, "message_id": TEXT}),
    "message_completed": members("A whole message.", {"text": TEXT, "message_id": TEXT}),
    "tool_call_started": members(
        "A call is about to be made.",
        {
            **_CALL, "version": TEXT, "arguments": ANY, "arguments_digest": DIGEST, "idempotency_key": TEXT,
            "side_effects": one_of("none", "idempotent", "once"),
        },
        timeout_ms=COUNT,
    ),
    "tool_call_progress": members("What a tool tells while it works.", {"call_id": TEXT}, fraction=SCORE, message=TEXT, text=TEXT),
    "tool_call_completed": members(
        "The result of a call. Of one that is lost there is `error`, and what is left as `preview`.",
        {**_CALL, "output": ANY, "duration_ms": COUNT}, note=TEXT, cancel=shared("Cancelled"), error=shared("ToolError"), preview=ANY,
    ),
    "tool_call_failed": members(
        "A call without a result.", {**_CALL, "error": shared("ToolError")}, note=TEXT, cancel=shared("Cancelled")
    ),
    "image": members(
        "A tool shows an image.", {**_CONTENT, **_BLOB, "name": TEXT, "alt": TEXT, "width": NUMBER, "height": NUMBER}
    ),
    "audio": members("A tool gives something to hear.", {**_CONTENT, **_BLOB, "name": TEXT, "transcript": TEXT}),
    "file": members("A tool gives a file.", {**_CONTENT, **_BLOB, "name": TEXT}),
    "table": members(
        "A tool shows a table; of one that is large, its first rows and a blob with all of it.",
        {**_CONTENT, "columns": TEXTS, "rows": many(many(_CELL)), "total_rows": COUNT}, **_BLOB,
    ),
    "code_block": members(
        "A tool shows code; of what is large, its beginning and a blob with all of it.",
        {**_CONTENT, "language": TEXT, "text": TEXT, "name": TEXT}, **_BLOB,
    ),
    "chart": members(
        "A tool shows a chart.",
        {
            **_CONTENT, "chart_type": one_of("line", "bar", "area", "scatter", "pie"), "x_label": TEXT, "y_label": TEXT, "alt": TEXT,
            "series": many(members("Points that belong together.", {"name": TEXT, "points": many(_POINT)})),
        },
    ),
    "step_started": members("A step begins; of a model call, as it is about to be made.", {"step": NUMBER}, name=TEXT, **_ASKED),
    "step_completed": members("A step has ended.", {"step": COUNT, "usage": shared("Usage")}, name=TEXT),
    "memory_recalled": members("What memory gave for the turn, by kind.", {"parts": COUNT, "kinds": _COUNTS}),
    "usage": members(
        "What a model call used; with `lost`, calls whose answer nobody got.", {"step": NUMBER, "model": TEXT, "provider": TEXT, **_TOKENS},
        finish_reason=TEXT, lost=FLAG, stopped=FLAG, estimated=FLAG, replayed=FLAG, model_calls=COUNT, **_ASKED,
    ),
    "child_run_started": members(
        "An agent asks another one.", {"call_id": TEXT, "run_id": TEXT, "thread_id": TEXT, "agent": TEXT}
    ),
    "child_run_finished": members(
        "The other one has ended.", {"agent": TEXT, "run_id": TEXT, "status": one_of("succeeded", "failed", "cancelled")},
        thread_id=TEXT, usage=shared("Usage"),
    ),
    "plan_updated": members("The plan as it is now.", {"version": NUMBER, "steps": many(shared("PlanStep"))}, by=TEXT, number=NUMBER),
    "plan_update_dropped": members("A caller's plan came too late; `version` stands.", {"number": NUMBER, "version": COUNT}),
    "citation": members("A source of the answer.", _SOURCE),
    "warning": members(
        "A degradation, for the user.",
        {"code": TEXT, "capability_lost": TEXT, "fallback": TEXT, "user_message": TEXT, "attributes": shared("Attributes")},
    ),
    "handoff_requested": members("A person is to take over.", _HANDOFF),
    "memory_reset": members("Earlier turns are forgotten.", {"reason": TEXT, "ended_before_ms": COUNT}),
    "interrupt_raised": {
        "description": "The run waits for somebody.",
        "anyOf": [
            members(
                "Something is asked of people.",
                {
                    "interrupt_id": TEXT, "kind": _KIND, "call_id": TEXT, "tool": TEXT, "version": TEXT, "arguments": ANY,
                    "arguments_digest": DIGEST, "schema": ANY, "reason": TEXT, "expires_at_ms": COUNT, "on_expiry": TEXT, "four_eyes": FLAG,
                    "approvers": members("Who may answer.", {"users": TEXTS, "scopes": TEXTS, "requester": FLAG}),
                },
            ),
            members(
                "The run's client is to make these calls; the run ends with it, and the thread's next one brings their results.",
                {"kind": {"const": "client_tools"}, "calls": many(shared("ClientToolCall"))},
            ),
        ],
    },
    "interrupt_updated": members(
        "Somebody did something with it, and it is open still.",
        {"interrupt_id": TEXT, "kind": _KIND, "outcome": TEXT, "by": TEXT, **_DECIDED},
    ),
    "interrupt_resolved": members(
        "It is answered, or not asked any more.", {"interrupt_id": TEXT, "kind": _KIND, "outcome": TEXT, "by": TEXT}, **_DECIDED
    ),
    "stop_received": members("A stop was recorded.", {"number": NUMBER}),
    "tool_cancel_received": members("The cancel of a call was recorded.", {"number": NUMBER}, call_id=TEXT),
    "tool_cancel_ignored": members("There was no such call at work.", {"number": NUMBER, "call_id": TEXT}),
    "tool_call_retried": members("A cancelled call is made again.", {**_CALL, "cancel": shared("Cancelled")}),
    "steer_received": members("A message to the run was recorded.", {"number": NUMBER}),
    "steer_applied": members("Its model reads it before this step.", {"number": NUMBER, "step": NUMBER, "text": TEXT}),
    "steer_dropped": members("The run ended before.", {"number": NUMBER}),
    "guard_triggered": members(
        "A guardrail had something to say; spans are places, never words.",
        {
            "stage": one_of("input", "context", "output", "arguments", "result"), "action": one_of("allow", "refuse", "replace"),
            "reason": TEXT, "detector": TEXT, "version": TEXT, "spans": many({"type": "array", "items": COUNT}),
        },
        kind=TEXT, tool=TEXT, call_id=TEXT, number=NUMBER, score=SCORE, threshold=SCORE,
    ),
    "attempt_superseded": members("Provisional text from this number on no longer holds.", {"from_seq": NUMBER}),
    "log_gap": members("The store lost the events from this number up to its own.", {"from_seq": NUMBER}),
    "feedback": members(
        "What somebody thinks of a run.",
        {"feedback_id": TEXT, "run_id": TEXT, "agent": TEXT, "agent_version": TEXT, "agent_digest": TEXT, "model": TEXT, "canary": FLAG},
        experiment=TEXT, arm=TEXT, rating=NUMBER, thumbs=one_of("up", "down"), text=TEXT, corrected_answer=TEXT, signal=TEXT,
        dwell_ms=COUNT,
    ),
    "thread_forked": members("What the thread began with.", {"parent_thread_id": TEXT, "forked_at_seq": COUNT}),
    "thread_rolled_back": members(
        "What comes after `to_seq` is no longer said; `run_ids` are the newest of the runs that it takes back.",
        {"to_seq": COUNT, "run_ids": TEXTS, "run_id": TEXT, "step": COUNT},
    ),
    "thread_deleted": members("The end of the thread."),
    "run_finished": members(
        "The answer.", {"output_text": TEXT, "finish_reason": TEXT, "usage": shared("Usage"), "citations": many(shared("Citation"))},
        handoff=shared("Handoff"), client_tool_calls=many(shared("ClientToolCall")),
    ),
    "run_failed": members("The run failed.", {"error": shared("RunError"), "usage": shared("Usage")}),
    "run_cancelled": members("The run was ended, with its text so far.", {"output_text": TEXT, "usage": shared("Usage")}, given_up=FLAG),
}  # fmt: skip

_TIME: Shape = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$", "description": "UTC, in microseconds."}
_ENVELOPE: Mapping[str, Shape] = {
    "seq": {**COUNT, "description": "Its number in the thread."},
    "ts": _TIME,
    "thread_id": TEXT,
    "run_id": {"type": ["string", "null"], "description": "null: of the thread."},
    "attempt": {**COUNT, "description": "Which owner of the run wrote it; 0 before the first."},
    "type": {"type": "string", "description": "Types that you do not know are to be ignored."},
    "data": OBJECT,
    "provisional": {"type": "boolean", "description": "Whether `attempt_superseded` may take it back."},
    "trace_id": {"type": ["string", "null"]},
    "schema_version": {**NUMBER, "description": "Of the record in the log."},
}

SCHEMA: Shape = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "urn:bulkhead:schema:events:v1",
    "title": "A native event of Bulkhead",
    **members("One event of a thread's log, as streams, replays and the WebSocket send it.", _ENVELOPE),
    "allOf": [
        {
            "if": {"required": ["type"], "properties": {"type": {"const": kind}}},
            "then": {"properties": {"data": {"$ref": f"#/$defs/{kind}"}}},
        }
        for kind in DATA
    ],
    "$defs": {**_SHARED, **DATA},
}
