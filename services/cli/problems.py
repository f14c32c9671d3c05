"""A refusal of the gateway (RFC 9457) as one line: what it says, what is wrong with which field, and the way out."""

import json
from collections.abc import Mapping
from typing import Any

from services.cli.failure import CommandFailure, Conflict, Denied, InFlight, Later, NotThere, UsageProblem
from services.cli.terminal import printable

MAX_CHARS = 2_000
# By the reason; what stands in braces is a member of the problem.
WAYS_OUT = {
    "SCOPE_MISSING": "use a key that has it: `bulkhead keys create --user NAME --scope {missing_scopes}`",
    "API_KEY_MISSING": "set BULKHEAD_API_KEY",
    "AGENT_NOT_FOUND": "`bulkhead doctor` names the agents that there are",
    "QUOTA_EXCEEDED": "`bulkhead quota` shows the limits",
    "BUDGET_EXCEEDED": "`bulkhead quota` shows what is spent",
    "RUN_ENDED": "say something new with `bulkhead chat --thread {thread_id}`",
    "RUN_NOT_STARTED": "end it with `bulkhead runs cancel`",
    "RUN_WAITING": "answer what it waits for (`bulkhead approvals list --decidable`), steer it or cancel it",
    "RUN_IS_WORKFLOW": "end it with `bulkhead runs cancel`",
    "TOOL_CALL_NOT_FOUND": "`bulkhead runs watch RUN` shows the calls that it makes",
    "TOOL_CALL_IS_RUN": "end that run with `bulkhead runs cancel {run_id}`",
    "PLAN_CHANGED": "look with `bulkhead runs plan RUN`, and change the plan that stands now",
    "ALREADY_DECIDED": "{decided_by} was first, with {verb}",
    "ARGUMENTS_CHANGED": "look with `bulkhead approvals show ID`, and decide with `--digest`",
    "ARGUMENTS_DIGEST_REQUIRED": "look with `bulkhead approvals show ID`, and decide with `--digest`",
    "RESUME_GAP": "the log begins at {oldest_seq} now; `bulkhead threads snapshot THREAD` shows how the thread stands",
    "WEBHOOK_DISABLED": "make another one with `bulkhead webhooks create`",
    "CHECKPOINT_ROLLED_BACK": "name an earlier checkpoint",
    "SEQ_INSIDE_STEP": "name the end of a step: `bulkhead replay THREAD` shows the numbers",
    "SCHEDULE_CHANGED": "look with `bulkhead schedules show ID`, and change it as it stands now",
    "THREAD_CHANGING": "another change of the thread is under way; try again in a moment",
    "INTERNAL": "look for {error_id} in the gateway's log",
}
# What lists the things of a path, for those that are not there.
LISTS = {
    "/v1/runs": "runs list", "/v1/threads": "threads list", "/replay": "threads list", "/v1/approvals": "approvals list",
    "/v1/webhooks": "webhooks list", "/v1/deliveries": "webhooks deliveries WEBHOOK", "/v1/feedback": "runs list",
    "/v1/schedules": "schedules list", "/v1/memories": "memories list", "/v1/hooks": "hooks list",
}  # fmt: skip
_WRONG = (400, 405, 413, 415, 422)
_NOT_NOW = (408, 429, 502, 503, 504)


def failure_of(status: int, raw: bytes, *, url: str, retry_after: str = "") -> CommandFailure:
    """The failure that an answer of 400 and above means. `url` is the gateway's; `retry_after` the header, in seconds."""
    problem = _parsed(raw)
    message = _line(status, problem, retry_after)
    if status in (401, 403):
        return Denied(f"{message} (key from dev.env or BULKHEAD_API_KEY, for {url})")
    if status == 404:
        return NotThere(message)
    if status == 409:
        return InFlight(message) if problem.get("reason") == "IDEMPOTENCY_IN_FLIGHT" else Conflict(message)
    if status in _WRONG:
        return UsageProblem(message)
    # A budget that is used up does not come back by itself.
    later = status in _NOT_NOW and problem.get("reason") != "BUDGET_EXCEEDED"
    return Later(message) if later or problem.get("retryable") is True else CommandFailure(message)


def _parsed(raw: bytes) -> Mapping[str, Any]:
    try:
        problem = json.loads(raw)
    except ValueError:
        return {}
    return problem if isinstance(problem, dict) else {}


def _line(status: int, problem: Mapping[str, Any], retry_after: str) -> str:
    text = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    errors = problem.get("errors")
    fields = [_field(error) for error in (errors if isinstance(errors, list) else []) if isinstance(error, dict)]
    if more := "; ".join(field for field in fields if field and field not in text):
        text += f" ({more})"
    if way_out := _way_out(problem, retry_after):
        text += f" → {way_out}"
    if trace := problem.get("trace_id"):
        text += f" [trace {trace}]"
    return " ".join(printable(text).split())[:MAX_CHARS]


def _field(error: Mapping[str, Any]) -> str:
    return ": ".join(str(error[name]) for name in ("field", "detail") if error.get(name))


def _way_out(problem: Mapping[str, Any], retry_after: str) -> str:
    reason, path = str(problem.get("reason")), str(problem.get("instance"))
    known = ""
    if form := WAYS_OUT.get(reason):
        members = {name: str(value).replace(", ", " --scope ") for name, value in problem.items()}
        try:
            known = form.format_map(members)
        except KeyError:
            known = ""
    elif problem.get("status") == 404:
        known = next((f"`bulkhead {command}` shows what there is" for prefix, command in LISTS.items() if path.startswith(prefix)), "")
    if problem.get("retryable") is True:
        again = f"try again in {retry_after} s" if retry_after else "try again"
        return f"{again}; {known}" if known else again
    return known
