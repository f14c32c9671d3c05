"""Decides the next step of a conversation: which tools to call now, or the answer."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import orjson

from services.simulator import answers, arithmetic, given, replies
from services.simulator.answers import Bound
from services.simulator.chat_request import ChatRequest
from services.simulator.evidence import Evidence
from services.simulator.given import Given
from services.simulator.needs import MAX_ASKED_CHARS, Kind, Need, find_needs, mentions_documents, recalls_the_conversation
from services.simulator.replies import Reply
from services.simulator.tool_fit import PlannedCall, Toolbox

_REPEATED = re.compile(
    r"\b(?:use|call|invoke|run)\s+(?:the\s+|a\s+|any\s+|your\s+)?(?:([\w-]+)\s+)?(?:tools?\s+)?(\d{1,3}|two|three|four|five|six|seven|eight|nine|ten)\s+"
    r"(?:more\s+|different\s+)?times\b",
    re.I,
)
_NUMBER_WORDS: Mapping[str, int] = {
    word: value for value, word in enumerate(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])
}
_MAX_REPEATS = 100

MakeIds = Callable[[int], Sequence[str]]
"""Makes that many ids for tool calls."""


def reply_to(request: ChatRequest, make_ids: MakeIds, *, malformed_arguments: bool = False) -> Reply:
    """The reply by rules. The same request has the same reply, but for the ids of tool calls.

    `malformed_arguments` spoils the JSON of the tool calls' arguments.
    """
    known = given.gather(request)
    calls, text = _decide(request, known)
    if calls:
        return replies.call_reply(calls, make_ids(len(calls)), max_tokens=request.max_tokens, malformed=malformed_arguments)
    return finish_text(request, text)


def finish_text(request: ChatRequest, text: str) -> Reply:
    """The text as the request wants it: as structured JSON, after a prefix, cut at stop sequences or `max_tokens`."""
    if request.response_schema is not None:
        text = answers.structured(request.response_schema, request, text)
    prefix = given.last_words(request.messages)
    if prefix and text.startswith(prefix):
        text = text[len(prefix) :]
    return replies.text_reply(text, stop=request.stop, max_tokens=request.max_tokens)


def _decide(request: ChatRequest, known: Given) -> tuple[list[PlannedCall], str]:
    asked = request.asked[-MAX_ASKED_CHARS:]
    toolbox = Toolbox(request.tools if request.tool_choice != "none" else (), asked)
    done = {_key(result.name, result.arguments) for result in known.results}
    found = Evidence(known)
    if request.tools and request.tool_choice in ("auto", "required") and (repeated := _REPEATED.search(asked)):
        call = _repetition(repeated, toolbox, len(known.results), done)
        return ([call], "") if call else ([], answers.compose(request, (), known, found))
    bound = list(_bind(find_needs(asked), toolbox, known, found))
    pending = _pending(bound, done)
    if request.tool_choice == "required" and not pending:
        pending = [toolbox.forced(None, len(done))]
    elif request.tool_choice.startswith("="):
        name = request.tool_choice[1:]
        pending = [call for call in pending if call.tool == name] or [toolbox.forced(name, len(done))]
    if pending:
        return (pending if request.parallel_tool_calls else pending[:1]), ""
    return [], answers.compose(request, bound, known, found)


def _repetition(match: re.Match[str], toolbox: Toolbox, made: int, done: set[bytes]) -> PlannedCall | None:
    """The next call of "use the calculator 5 times", one a step; None once all are made."""
    wanted = match.group(2).lower()
    times = min(_NUMBER_WORDS[wanted] if wanted in _NUMBER_WORDS else int(wanted), _MAX_REPEATS)
    if made >= times:
        return None
    call = toolbox.varied(toolbox.named_or_first(match.group(1) or ""), made)
    return None if _key(call.tool, call.arguments) in done else call


def _bind(needs: Sequence[Need], toolbox: Toolbox, known: Given, found: Evidence) -> Iterator[Bound]:
    previous: Bound | None = None
    page_asked = any(need.kind is Kind.FETCH for need in needs)
    for need in needs:
        if need.kind is Kind.CALCULATION:
            if arithmetic.PREVIOUS in need.value:
                need = _with_previous(need, previous, known)
            previous = Bound(need, None if arithmetic.PREVIOUS in need.value else toolbox.call_for(need))
            yield previous
        elif need.kind in (Kind.KNOWLEDGE, Kind.RECALL):
            if page_asked and not mentions_documents(need.clause):
                # "Fetch this page and tell me about whales": the page answers it.
                yield Bound(need, None)
                continue
            yield Bound(need, _lookup(need, toolbox, known, found))
        elif need.kind is Kind.STATEMENT:
            yield Bound(need, toolbox.other_for(need))
        else:
            yield Bound(need, toolbox.call_for(need))


def _with_previous(need: Need, previous: Bound | None, known: Given) -> Need:
    """The need with the result of the calculation before it put in, unchanged while there is none."""
    if previous is None:
        return need
    for result in known.results:
        call = previous.call
        if call and result.name == call.tool and result.arguments == call.arguments and not result.error and _is_number(result.value):
            return Need(need.kind, need.value.replace(arithmetic.PREVIOUS, result.value), need.clause, need.terms)
    return need


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(?:\.\d+)?", text) is not None


def _lookup(need: Need, toolbox: Toolbox, known: Given, found: Evidence) -> PlannedCall | None:
    """The call that would find what the clause asks; none while what was given already answers it."""
    other = toolbox.other_for(need)
    if other is not None:
        return other
    in_memory = need.kind is Kind.RECALL and not mentions_documents(need.clause)
    call = toolbox.search_for(need, in_memory=True) if in_memory else None
    if call is None and not (need.kind is Kind.RECALL and (recalls_the_conversation(need.clause) or mentions_documents(need.clause))):
        call = toolbox.search_for(need, in_memory=False)
    if call is None:
        return None
    # Once made, the call stays bound to the clause, so that its result or its error is told.
    if any(result.name == call.tool and result.arguments == call.arguments for result in known.results):
        return call
    return None if found.best_for(need) else call


def _pending(bound: Sequence[Bound], done: set[bytes]) -> list[PlannedCall]:
    pending: dict[bytes, PlannedCall] = {}
    for item in bound:
        if item.call is not None:
            key = _key(item.call.tool, item.call.arguments)
            if key not in done:
                pending.setdefault(key, item.call)
    return list(pending.values())


def _key(name: str, arguments: Mapping[str, Any] | None) -> bytes:
    try:
        return orjson.dumps((name, arguments), option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        # Deeper than orjson writes; no call of ours is.
        return name.encode()
