"""The degradation ladder: what a turn gives up when a part of it fails, in which order, and how it says so.

Every rung that is taken is one `warning` event of the same form, out of one table (docs/degradation.md shows it), and is counted. The
order for a model that fails follows design page "governance"; which rung can help depends on the cause, so that a model which is
down is not answered with a request to say it differently. Human hands are the last rung of every run: see `turn/handoff.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import structlog
from opentelemetry.metrics import get_meter

from services.common.errors import (
    BudgetExceeded,
    BulkheadError,
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    PermissionDenied,
    QuotaExceeded,
    UpstreamFailed,
)
from services.orchestrator.ports import Message, ModelFinished, ToolDefinition
from services.orchestrator.turn import limits
from services.orchestrator.turn.state import RunStopped, Turn

# Name of what the ladder keeps among the parts of a turn's state: `recalled` [first, last + 1] of the messages that memory gave,
# `model` that is asked instead, and what later steps go without.
PART = "ladder"
# What is kept of a tool's result, and of the recalled turns, in a shortened conversation.
SHORT_OUTPUT_CHARS = 2_000
SHORT_TURN_MESSAGES = 2
# An answer that would have to be shorter is not worth its prompt.
LEAST_OUTPUT_TOKENS = 64
_NO_TOOLS = "No tools can be called any more. Answer now with what you have, and say what you could not find out."
log = structlog.get_logger("bulkhead.degradation")
_taken = get_meter("bulkhead.orchestrator").create_counter(
    "bulkhead_degradations_total", description="Warnings about what turns went without, by rung of the ladder and by code."
)


class Concluded(RunStopped):
    """The run ends without the answer that was asked for, and yet in a declared way: with `text` for its user.

    `finish_reason` is rephrase or handed_off; `handoff` is the data of handoff_requested, empty for the former.
    """

    def __init__(self, reason: str, text: str, finish_reason: str, handoff: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason, text)
        self.finish_reason = finish_reason
        self.handoff = handoff or {}


@dataclass(frozen=True, slots=True)
class Code:
    """What a code stands for. `rung` is its place on the ladder, `none` where nothing was given up for another thing."""

    rung: str
    capability_lost: str
    fallback: str
    user_message: str


# Raised by the turn itself.
OWN: Mapping[str, Code] = {
    "cheaper_model": Code("cheaper_model", "usual_model", "cheaper_model", "Little money is left, so a cheaper model answers."),
    "tools_unavailable": Code(
        "without_tools", "tools", "answer_without_tools", "Tools are not available, so this answer is made without them."
    ),
    "tool_missing": Code("without_tools", "tool", "answer_without_it", "The agent names a tool that does not exist."),
    "answered_without_tools": Code(
        "without_tools", "tools", "answer_without_tools", "No model could answer with tools, so this answer is made without them."
    ),
    "last_step": Code("without_tools", "tools", "answer_without_tools", "A limit of this run is reached, so no tools are used any more."),
    "memory_unavailable": Code(
        "without_memory", "memory", "answer_without_memory",
        "Memory is not available, so earlier turns and documents are missing from this answer.",
    ),
    "memory_behind": Code(
        "without_memory", "recent_turns", "answer_without_memory",
        "The last turn of this conversation is not stored yet and may be missing from the context.",
    ),
    "answered_without_memory": Code(
        "without_memory", "memory", "answer_without_memory",
        "No model could answer with what memory holds of this conversation, so this answer is made without it.",
    ),
    "memory_reset": Code("memory_reset", "recent_turns", "new_session", "The earlier turns of this conversation are forgotten."),
    "memory_reset_postponed": Code(
        "memory_reset", "memory", "answer_without_memory",
        "Memory is not available; the earlier turns are left out of this answer and are forgotten as soon as it is back.",
    ),
    "answer_shortened": Code("shorter_answer", "long_answer", "shorter_answer", "Little money is left, so answers are kept short."),
    "context_shortened": Code(
        "shorter_context", "full_context", "shorter_context", "The conversation is too long for the model, so older parts are left out."
    ),
    "tool_unavailable": Code("tell_model", "tool", "answer_without_it", "A tool did not work, and the model was told so."),
    "content_unavailable": Code(
        "tell_model", "content", "answer_without_it", "Something that a tool gave could not be kept, so it is not shown."
    ),
    "content_refused": Code("none", "", "", "Something that a tool gave to be shown is not what it says, and is not shown."),
    "answer_filtered": Code("none", "full_answer", "", "The model's content filter held the answer back, or a part of it."),
    "image_gone": Code("tell_model", "image", "answer_without_it", "An image is no longer there, and the model was told so."),
    "image_left_out": Code(
        "tell_model", "image", "answer_without_it", "There are too many images for one request, so the oldest are left out."
    ),
    "answer_asked_again": Code("none", "", "", "The answer did not have the form that was asked for, so the model is asked again."),
    "asked_to_rephrase": Code("rephrase", "answer", "rephrase", "The request could not be answered as it stands."),
    "handed_off": Code("human", "answer", "human", "A person will take over."),
    "abnormal_usage": Code("none", "", "", "The run goes round in circles."),
    "citation_unresolved": Code("none", "", "", "The answer cites a source that it was not given."),
}  # fmt: skip
# Told by other services and relayed: what they leave open of the form is filled in from here.
RELAYED: Mapping[str, Code] = {
    "model_retry": Code("retry", "", "same_model", "The model failed and is asked again."),
    "model_fallback": Code("other_model", "primary_model", "other_model", "Another model answers."),
    "model_defaulted": Code("none", "", "", "No model was named."),
    "stale_answer": Code("stale_answer", "current_answer", "stale_answer", "No model answers at the moment; this is an older answer."),
    "answer_continued": Code("other_model", "", "other_model", "The answer broke off and was continued."),
    "event_skipped": Code("none", "", "", "A part of the model's stream could not be read."),
    "request_adapted": Code("none", "", "", "The request was adapted to what the model can take."),
    "price_unknown": Code("none", "", "", "Not all that the model bills has a price."),
    "arguments_coerced": Code("none", "", "", "Some arguments were converted to the type that the tool declares."),
    "tool_retried": Code("retry", "", "same_tool", "The tool is tried again."),
    "tool_fallback": Code("fallback_tool", "tool", "fallback_tool", "Another tool answers in the place of one that failed."),
    "tool_stale_result": Code("stale_tool_result", "current_result", "stale_result", "A tool failed; this is an older result of it."),
    "embeddings_unavailable": Code("partial_memory", "semantic_search", "keyword_search", "Search went by keywords only."),
    "memory_store_degraded": Code("partial_memory", "search", "other_search", "Search was incomplete."),
    "memory_store_unavailable": Code("partial_memory", "long_term_memory", "", "A part of memory could not be searched."),
    "scope_missing": Code("none", "", "", "This key may not read a part of memory."),
}  # fmt: skip
CODES: Mapping[str, Code] = {**OWN, **RELAYED}

# By cause: the rungs that may help, in order, then what the user reads where none is left.
RUNGS: Mapping[str, Sequence[str]] = {
    "model": ("without_tools", "without_memory"),
    "request": ("without_tools",),
    "policy": ("without_memory",),
    "access": (),
    "context": ("shorter_context", "without_memory"),
    "budget": ("cheaper_model", "shorter_answer"),
    "quota": (),
    "internal": (),
}
# The causes for which it helps to say it differently.
REPHRASED = frozenset({"request", "policy", "context"})
MESSAGES: Mapping[str, str] = {
    "model": "The model is not available at the moment. Please try again later.",
    "request": "The model could not take this request as it stands. Please put it differently.",
    "policy": "The model's content policy does not allow an answer to this. Please put it differently.",
    "access": "Your access does not include the model of this agent.",
    "context": "The conversation is too long for the model. Please shorten your message or begin a new conversation.",
    "budget": "The budget for model calls is used up.",
    "quota": "Too many model calls were made in a short time. Please try again later.",
    "internal": "Something went wrong while the model was asked.",
}
# Rungs that no agent has to allow.
_OF_MONEY = frozenset({"cheaper_model", "shorter_answer"})
_POISONED = {"context": "context_too_long", "policy": "content_refused"}
_BUDGETS = frozenset({"MAX_COST_EXCEEDED", "BUDGET_EXCEEDED"})
_WITHHELD = "The answer was held back by the content filter of the model."


def cause_of(error: BulkheadError) -> str:
    """Why a model call failed, as far as it matters for what can be done."""
    if error.reason == "CONTEXT_LENGTH_EXCEEDED":
        return "context"
    if error.reason == "CONTENT_POLICY_VIOLATION":
        return "policy"
    if isinstance(error, BudgetExceeded) or error.reason in _BUDGETS:
        return "budget"
    if isinstance(error, QuotaExceeded):
        return "quota"
    if isinstance(error, PermissionDenied):
        return "access"
    if isinstance(error, InvalidInput):
        return "request"
    return "model" if isinstance(error, UpstreamFailed | DeadlineExceeded | Overloaded) else "internal"


def warn(turn: Turn, code: str, *, reason: str = "", user_message: str = "", **attributes: Any) -> None:
    """Tells of what a turn goes without, with the next write."""
    relay(turn, {"code": code, "user_message": user_message, "attributes": {"reason": reason, **attributes}})


def relay(turn: Turn, data: Mapping[str, Any]) -> None:
    """The same for what another service tells: `data` as of ports.Warned."""
    code = CODES.get(data["code"], _UNKNOWN)
    attributes = dict(data.get("attributes") or {})
    attributes["rung"] = code.rung
    attributes.setdefault("reason", "")
    told = {
        "code": data["code"],
        "capability_lost": data.get("capability_lost") or code.capability_lost,
        "fallback": data.get("fallback") or code.fallback,
        "user_message": data.get("user_message") or code.user_message,
        "attributes": attributes,
    }
    turn.writer.emit("warning", told)
    _taken.add(1, {"rung": code.rung, "code": data["code"] if data["code"] in CODES else "other"})


_UNKNOWN = Code("none", "", "", "")


def part(turn: Turn) -> dict[str, Any]:
    """What the ladder keeps in the turn's state."""
    found: dict[str, Any] = turn.state.parts.setdefault(PART, {})
    return found


def recalled(turn: Turn, first: int, count: int) -> None:
    """Notes where in the conversation stands what memory gave, so that it can be left out."""
    if count:
        part(turn)["recalled"] = [first, first + count]


def model_of(turn: Turn) -> str:
    """The model to ask next: the agent's, or its cheaper one from the time on when money is short."""
    cheaper = turn.agent.degradation.cheaper_model
    if cheaper and "model" not in part(turn):
        budget = next((b for b in limits.budgets(turn) if b.reason == "COST_LIMIT"), None)
        if budget is not None and budget.used >= limits.NEAR * budget.limit:
            _to_cheaper(turn, cheaper, "COST_LIMIT")
    model: str = part(turn).get("model", turn.agent.model)
    return model


def conversation(turn: Turn) -> list[Message]:
    """The messages as far as the model gets to see them."""
    kept = turn.state.parts.get(PART) or {}
    first, end = kept.get("recalled", (0, 0))
    messages = turn.messages
    if kept.get("without_memory"):
        messages = [*messages[:first], *messages[end:]]
    elif kept.get("shorter_context"):
        context = [message for message in messages[first:end] if message.role != "system"]
        messages = [*messages[:first], *context[-SHORT_TURN_MESSAGES:], *messages[end:]]
    if kept.get("shorter_context"):
        messages = [_shortened(message) for message in messages]
    return list(messages)


def _shortened(message: Message) -> Message:
    if message.role != "tool" or len(message.text) <= SHORT_OUTPUT_CHARS:
        return message
    return replace(message, text=message.text[:SHORT_OUTPUT_CHARS] + " …[cut: the conversation is too long]")


class Descent:
    """The way down of one model call. `tools` and `notes` are what is left to ask with."""

    def __init__(self, turn: Turn, tools: Sequence[ToolDefinition], notes: Sequence[str]) -> None:
        self._turn = turn
        self.tools, self.notes = tools, notes
        self._tools_given_up = False
        self._poison: str | None = None
        # Tokens of the answer, where the money of the run covers no more.
        self.most_output: int | None = None
        self._affordable = 0
        self._rungs: Mapping[str, Callable[[str], bool]] = {
            "without_tools": self._without_tools, "without_memory": self._without_memory,
            "shorter_context": self._shorter_context, "cheaper_model": self._cheaper_model,
            "shorter_answer": self._shorter_answer,
        }  # fmt: skip

    def marks(self) -> str:
        """What tells this call from the same one higher up, for its idempotency key: under that of another input it would be refused."""
        kept = self._turn.state.parts.get(PART) or {}
        marks = [name for name in ("model", "shorter_context", "without_memory") if kept.get(name)]
        own = [*(["without_tools"] if self._tools_given_up else []), *([f"most_{self.most_output}"] if self.most_output else [])]
        return "".join(f"/{mark}" for mark in [*marks, *own])

    def down(self, error: BulkheadError) -> bool:
        """Takes the next rung that the agent allows and that may help; False where none is left."""
        cause, allowed = cause_of(error), self._turn.agent.degradation.rungs
        self._affordable = int(error.metadata.get("affordable_output_tokens", "0")) if _of_run(error) else 0
        for rung in RUNGS[cause]:
            if (rung in _OF_MONEY or rung in allowed) and self._rungs[rung](error.reason):
                self._poison = _POISONED.get(cause) if rung == "without_memory" else None
                return True
        return False

    def end(self, error: BulkheadError) -> RunStopped:
        """How the run ends where no rung is left, in words for its user."""
        cause, rephrase = cause_of(error), self._turn.agent.degradation.rephrase
        log.warning("ladder_exhausted", run_id=self._turn.ref.run_id, cause=cause, reason=error.reason, message=error.message)
        if rephrase and cause in REPHRASED:
            return Concluded(error.reason, rephrase, "rephrase")
        if _of_run(error) and (stopped := limits.used_up(self._turn, "COST_LIMIT")) is not None:
            return stopped
        return RunStopped(error.reason, MESSAGES[cause], error.retryable)

    def poison(self) -> str | None:
        """Why memory is to forget the session, where the agent allows it and only leaving it out has brought the answer."""
        return self._poison if self._turn.agent.degradation.reset_memory else None

    def _without_tools(self, reason: str) -> bool:
        if not self.tools:
            return False
        self.tools, self.notes = (), [*self.notes, _NO_TOOLS]
        self._tools_given_up = True
        warn(self._turn, "answered_without_tools", reason=reason)
        return True

    def _without_memory(self, reason: str) -> bool:
        kept = part(self._turn)
        if kept.get("without_memory") or not kept.get("recalled"):
            return False
        kept["without_memory"] = True
        warn(self._turn, "answered_without_memory", reason=reason)
        return True

    def _shorter_context(self, reason: str) -> bool:
        turn, kept = self._turn, part(self._turn)
        if kept.get("shorter_context"):
            return False
        before = conversation(turn)
        kept["shorter_context"] = True
        if conversation(turn) == before:
            del kept["shorter_context"]
            return False
        warn(turn, "context_shortened", reason=reason)
        return True

    def _cheaper_model(self, reason: str) -> bool:
        cheaper = self._turn.agent.degradation.cheaper_model
        if not cheaper or "model" in part(self._turn):
            return False
        _to_cheaper(self._turn, cheaper, reason)
        return True

    def _shorter_answer(self, reason: str) -> bool:
        if self._affordable < LEAST_OUTPUT_TOKENS or (self.most_output is not None and self._affordable >= self.most_output):
            return False
        self.most_output = self._affordable
        kept = part(self._turn)
        if not kept.get("short_answers"):
            kept["short_answers"] = True
            warn(self._turn, "answer_shortened", reason=reason)
        return True


def _of_run(error: BulkheadError) -> bool:
    """Whether it is the money of the run itself that does not cover a call."""
    return isinstance(error, BudgetExceeded) and error.metadata.get("scope") == "run"


def _to_cheaper(turn: Turn, cheaper: str, reason: str) -> None:
    part(turn)["model"] = cheaper
    warn(turn, "cheaper_model", reason=reason, model=cheaper)


def filtered(turn: Turn, answer: ModelFinished) -> str:
    """What is to be added to an answer, so that nobody is left with an empty one that a content filter made; empty for any other."""
    if answer.finish_reason != "content_filter" or answer.message.tool_calls:
        return ""
    rephrase = turn.agent.degradation.rephrase
    warn(turn, "asked_to_rephrase" if rephrase else "answer_filtered", reason="content_filter")
    text = rephrase or ("" if answer.message.text else _WITHHELD)
    return f"\n\n{text}" if text and answer.message.text else text


def stand_in(data: Mapping[str, Any]) -> str:
    """What the model is told with the result of a tool call, where a warning says that something else than the tool answered."""
    code = CODES.get(data["code"], _UNKNOWN)
    return data.get("user_message") or code.user_message if code.rung in _STAND_INS else ""


def tool_failed(turn: Turn, tool: str, code: str) -> None:
    """Tells the user of a tool that did not work, unless the model asked for it in the wrong way or a person did not want it."""
    if not code.startswith(_NOT_AT_FAULT):
        warn(turn, "tool_unavailable", reason=code, tool=tool)


_STAND_INS = frozenset({"fallback_tool", "stale_tool_result"})
# The model can do better, and is told how; a person has decided; or the run's own limit is told elsewhere.
_NOT_AT_FAULT = (
    "input.", "upstream.bad_request", "upstream.not_found", "limit.tool_calls", "output.too_large", "refused.invalid_input",
    "policy.approval_rejected", "outcome.failed", "cancelled", "guard.",
)  # fmt: skip
