"""Puts the answer together: a part for each need, out of tool results, documents, memories and earlier turns."""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from services.simulator import arithmetic, evidence, matching
from services.simulator.chat_request import ChatRequest
from services.simulator.evidence import Evidence
from services.simulator.given import Given
from services.simulator.needs import Kind, Need
from services.simulator.refusals import Refused
from services.simulator.schema_values import SchemaFiller
from services.simulator.tool_fit import PlannedCall, expression_in
from services.simulator.tool_results import ToolResult

SELF_DESCRIPTION = "I am Bulkhead's model simulator: I follow rules and quote what I am given."
_OPENINGS = ("", "Here is what I have. ", "This is what I found. ", "In short: ")
_WORDS_TEXT = (
    "harbour lantern keel tide compass anchor bulkhead rudder signal deck mast current chart voyage beacon cargo hull pilot "
    "watch storm channel bridge engine cabin sail rope wave coast crew captain"
)
_WORDS = tuple(_WORDS_TEXT.split())
_MAX_WORDS = 20_000


@dataclass(frozen=True, slots=True)
class Bound:
    """A need with the call that serves it, None where no tool does."""

    need: Need
    call: PlannedCall | None


def compose(request: ChatRequest, bound: Sequence[Bound], given: Given, found: Evidence) -> str:
    """The answer to the last user message."""
    used: list[ToolResult] = []
    parts: list[str] = []
    missed: list[str] = []
    for item in bound:
        for part in _parts(item, given, found, used, request.seed):
            if part not in parts:
                parts.append(part)
        if not item.call and item.need.kind in (Kind.KNOWLEDGE, Kind.RECALL) and not found.best_for(item.need):
            missed.append(item.need.clause)
    for result in given.results:
        if not any(result is one for one in used):
            parts.append(_plain_result(result))
    if not parts and not missed and request.asked.strip():
        missed.append(request.asked)
    if missed and not (parts and _is_quiet(bound)):
        parts.append(_not_found(missed[0]))
    text = "\n".join(parts) or f"{SELF_DESCRIPTION} Nothing was asked."
    if request.seed is not None and bound and bound[0].need.kind not in (Kind.ECHO, Kind.LENGTH):
        text = _OPENINGS[zlib.crc32(str(request.seed).encode()) % len(_OPENINGS)] + text
    return text


def structured(schema: Mapping[str, Any], request: ChatRequest, answer: str) -> str:
    """JSON that fits the schema of a `response_format`; `{}` asks for any object and gets `{"answer": …}`."""
    if not schema:
        return orjson.dumps({"answer": answer}).decode()
    value = SchemaFiller(request.asked, schema, whole_text=answer).fill()
    try:
        return orjson.dumps(value).decode()
    except orjson.JSONEncodeError as error:
        raise Refused(
            f"The schema of 'response_format' asks for a value that JSON cannot hold: {error}.", param="response_format"
        ) from None


def _is_quiet(bound: Sequence[Bound]) -> bool:
    """Whether what was not found can go unsaid: it was only guessed that the conversation might hold something on it too."""
    kinds = {item.need.clause: set[Kind]() for item in bound}
    for item in bound:
        kinds[item.need.clause].add(item.need.kind)
    return all({Kind.KNOWLEDGE, Kind.RECALL} <= found or not found & {Kind.KNOWLEDGE, Kind.RECALL} for found in kinds.values())


def _not_found(clause: str) -> str:
    return f'{SELF_DESCRIPTION} I found nothing in what I was given about: "{matching.shorten(clause, 120)}"'


def _parts(item: Bound, given: Given, found: Evidence, used: list[ToolResult], seed: int | None) -> Iterator[str]:
    need = item.need
    if need.kind is Kind.ECHO:
        yield need.value
    elif need.kind is Kind.LENGTH:
        yield _words(min(int(need.value), _MAX_WORDS), seed)
    elif need.kind is Kind.GREETING:
        yield f"Hello. {SELF_DESCRIPTION}"
    elif need.kind is Kind.STATEMENT:
        yield f'Noted: "{matching.shorten(need.value)}"'
    else:
        result = _result_for(item, given, need)
        if result is not None:
            used.append(result)
        yield from _answered(need, result, found)


def _answered(need: Need, result: ToolResult | None, found: Evidence) -> Iterator[str]:
    if result is not None and result.error:
        yield f"The {result.name} tool failed: {matching.shorten(result.error)}"
    if need.kind in (Kind.KNOWLEDGE, Kind.RECALL):
        quotes = evidence.quote(found.best_for(need))
        yield from quotes
        if result is not None and not result.error and not quotes:
            if result.passages or not result.value or result.value in ("[]", "{}"):
                yield f'The {result.name} tool found nothing that answers: "{matching.shorten(need.clause, 120)}"'
            else:
                yield _plain_result(result)
    elif result is None:
        yield _no_tool(need)
    elif not result.error:
        yield _value_part(need, result)


def _value_part(need: Need, result: ToolResult) -> str:
    if need.kind is Kind.CALCULATION:
        return f"{need.value} = {matching.shorten(result.value)}"
    if need.kind is Kind.FETCH:
        return f'{need.value} says: "{_best_sentence(need, result.value)}"'
    return _plain_result(result)


def _best_sentence(need: Need, text: str) -> str:
    candidates = list(matching.sentence_list("tool", text[:200_000]))
    if not candidates:
        return matching.shorten(text)
    asked = matching.terms(need.clause.replace(need.value, " "))
    ranked = matching.Matcher(candidates).rank(asked, weights={"tool": 1.0})
    return matching.shorten((ranked[0].sentence if ranked else candidates[0]).text)


def _plain_result(result: ToolResult) -> str:
    if result.error:
        return f"The {result.name} tool failed: {matching.shorten(result.error)}"
    expression = expression_in(result.arguments or {})
    if expression:
        return f"{expression} = {matching.shorten(result.value)}"
    return f"The {result.name} tool says: {matching.shorten(result.value) or 'nothing'}"


def _no_tool(need: Need) -> str:
    if need.kind is Kind.CALCULATION and arithmetic.PREVIOUS in need.value:
        return "I could not go on with a result that I do not have."
    if need.kind is Kind.CALCULATION:
        return f"I have no tool to calculate {need.value}."
    if need.kind is Kind.TIME:
        return "I have no tool that tells the time."
    if need.kind is Kind.FETCH:
        return f"I have no tool to open {need.value}."
    return "I have no tool to run code."


def _result_for(item: Bound, given: Given, need: Need) -> ToolResult | None:
    """The result of the need's call, or of any call that was given the need's value."""
    call = item.call
    if call is not None:
        for result in given.results:
            if result.name == call.tool and result.arguments == call.arguments:
                return result
    if not need.value:
        return None
    return next((result for result in given.results if result.arguments and need.value in result.arguments.values()), None)


def _words(count: int, seed: int | None) -> str:
    start = zlib.crc32(str(seed).encode()) if seed is not None else 0
    chosen = [_WORDS[(start + 7 * index + index // len(_WORDS)) % len(_WORDS)] for index in range(count)]
    if chosen:
        chosen[0] = chosen[0].capitalize()
    return " ".join(chosen)
