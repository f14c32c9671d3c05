"""What a user message asks for, clause by clause."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from services.simulator import arithmetic, matching


class Kind(StrEnum):
    """What a clause needs to be answered."""

    CALCULATION = "calculation"
    TIME = "time"
    FETCH = "fetch"
    CODE = "code"
    RECALL = "recall"
    KNOWLEDGE = "knowledge"
    STATEMENT = "statement"
    GREETING = "greeting"
    LENGTH = "length"
    ECHO = "echo"


@dataclass(frozen=True, slots=True)
class Need:
    """One thing to be answered. `value` is the expression, URL, code, wanted number of words or text; `clause` is where it was asked."""

    kind: Kind
    value: str
    clause: str
    terms: frozenset[str] = frozenset()


_SENTENCE = re.compile(r"(?<=[.?!;？！。])\s+|\n+")
_WH = (
    r"what(?:'s)?|who(?:se)?|where|when|which|why|how|tell me|can you|could you|please|calculate|compute|remind|fetch|look up|search|find"
    r"|summari[sz]e|explain|describe|multiply|divide|add|subtract"
)
_JOINT = re.compile(
    rf",?\s+(?:and|also|then|plus|as well as)\s+(?:also\s+|then\s+|please\s+)*(?=(?:{_WH})\b)|,\s+(?=(?:{_WH})\b)|;\s+", re.I
)
_URL = re.compile(r"https?://[^\s<>\"'`)\]]+")
_FENCE = re.compile(r"```(?:[a-zA-Z0-9_+-]*)\n(.*?)```", re.DOTALL)
_CODE_ASKED = re.compile(r"\b(?:run|execute|evaluate)\b.*`([^`]+)`", re.I | re.DOTALL)
_TIME = re.compile(
    r"\bwhat(?:'s| is)? (?:the )?(?:current )?(?:time|date|day)\b(?! (?:complexity|limit|zone))"
    r"|\b(?:current|local|exact) (?:time|date)\b|\bwhat time\b"
    r"|\bwhat day is (?:it|today)\b|\b(?:today'?s|the) date\b|\btime is it\b|\btime (?:is it )?(?:now|right now)\b",
    re.I,
)
_ZONE = re.compile(r"\b[A-Z][A-Za-z]+/[A-Z][A-Za-z_]+\b")
_RECALL = re.compile(
    r"\b(?:earlier|before|previously|remember|recall|remind|last time|did (?:i|we)|have i"
    r"|i (?:said|told|mentioned|asked|gave|wrote|like|prefer)"
    r"|we (?:said|discussed|talked|agreed|decided)|(?:told|gave) you|am i|do i|my|our|mine)\b",
    re.I,
)
_SAID_BEFORE = re.compile(
    r"\b(?:earlier|before|previously|remember|recall|remind|last time|did (?:i|we)"
    r"|i (?:said|told|mentioned|asked|gave)|told you|we (?:said|discussed))\b",
    re.I,
)
_ASKS = re.compile(
    rf"^\W*(?:(?:and|so|then|also|now|ok(?:ay)?|well)\W+)*(?:{_WH}|is|are|was|were|do|does|did|has|have"
    r"|will|would|should|give|show|list|name|quote|use|call)\b",
    re.I,
)
_STATES = re.compile(
    r"\b(?:is|are|was|were|am|'m|'s|has|have|had|like|likes|love"
    r"|prefer|prefers|live|lives|work|works|use|uses|named|called|remember that|note that)\b",
    re.I,
)
_GREETING = re.compile(r"^\W*(?:hi|hello|hey|good (?:morning|afternoon|evening)|thanks|thank you|bye|goodbye|ping)\b", re.I)
_LENGTH = re.compile(
    r"\b(?:write|say|produce|generate|give me|in|about|exactly|of)\s+(?:\w+\s+){0,3}?(\d{1,6})[- ]words?\b"
    r"|\b(\d{1,6})[- ]word (?:story|text|essay|answer)\b",
    re.I,
)
_ECHO = re.compile(
    r"\b(?:say|repeat|reply|answer|respond)(?: after me| exactly| only| with| with only| just| back)*\s*:\s*(.+)", re.I | re.DOTALL
)
_CITED_DOCUMENT = re.compile(r"\b(?:documents?|documentation|docs?|readme|handbook|manual|files?|pages?|guide|according to)\b", re.I)
_LONE_DOCUMENT_WORDS = frozenset(matching.stem(word) for word in matching.DOCUMENT_WORDS)

_MAX_CLAUSES = 24
MAX_ASKED_CHARS = 20_000
"""How much of the end of a message is read for what it asks."""


def find_needs(asked: str) -> list[Need]:
    """The needs of a message in the order they are asked; a huge paste counts by its last 20,000 characters."""
    text = asked[-MAX_ASKED_CHARS:].strip()
    if not text:
        return []
    echo = _ECHO.search(text)
    if echo:
        return [Need(Kind.ECHO, echo.group(1).strip().strip('"“”'), text)]
    needs: list[Need] = []
    for code in _FENCE.findall(text):
        needs.append(Need(Kind.CODE, code.strip("\n"), text))
    text = _FENCE.sub(" ", text)
    beside_code = bool(needs)
    for clause in _clauses(text):
        for need in _needs_of(clause):
            # "Run this:" beside a block of code asks for nothing more.
            if not beside_code or need.kind is not Kind.KNOWLEDGE or need.terms - _ONLY_ABOUT_ANOTHER_NEED:
                needs.append(need)
    return list(dict.fromkeys(needs))


def mentions_documents(clause: str) -> bool:
    """Whether the clause names documents as the place to look."""
    return _CITED_DOCUMENT.search(clause) is not None


def recalls_the_conversation(clause: str) -> bool:
    """Whether only the conversation itself can answer the clause, unlike "what is our refund policy"."""
    return _SAID_BEFORE.search(clause) is not None


def _clauses(text: str) -> Iterator[str]:
    count = 0
    for sentence in _SENTENCE.split(text):
        place = ""
        for clause in _JOINT.split(sentence):
            clause = clause.strip(" ,;")
            if not clause:
                continue
            if mentions_documents(clause) and not matching.terms(clause) - _LONE_DOCUMENT_WORDS:
                # "According to the docs," says where to look for what comes next.
                place = f"{clause}, "
                continue
            count += 1
            if count > _MAX_CLAUSES:
                return
            yield place + clause
            place = ""
        if place:
            yield place.rstrip(", ")


def _needs_of(clause: str) -> Iterator[Need]:
    code = _CODE_ASKED.search(clause)
    if code:
        yield Need(Kind.CODE, code.group(1), clause)
        return
    for url in _URL.findall(clause):
        yield Need(Kind.FETCH, url.rstrip(".,;:!?"), clause)
    without_urls, urls = _URL.subn(" ", clause)
    length = _LENGTH.search(without_urls)
    if length:
        yield Need(Kind.LENGTH, length.group(1) or length.group(2), clause)
        return
    expressions, rest = arithmetic.find_expressions(without_urls)
    for expression in expressions:
        yield Need(Kind.CALCULATION, expression, clause)
    told_time = _TIME.search(rest)
    if told_time:
        yield Need(Kind.TIME, "", clause)
        rest = _ZONE.sub(" ", _TIME.sub(" ", rest))
    yield from _residual(clause, rest, found_before=bool(expressions or urls or told_time))


_ONLY_ABOUT_ANOTHER_NEED = frozenset(
    matching.stem(word)
    for word in [
        "calculate",
        "compute",
        "evaluate",
        "result",
        "value",
        "sum",
        "calculator",
        "please",
        "fetch",
        "open",
        "url",
        "link",
        "read",
        "visit",
        "website",
        "site",
        "web",
        "work",
        "time",
        "date",
        "today",
        "right",
        "moment",
        "zone",
        "timezone",
        "tool",
        "answer",
        "number",
        "solve",
        "add",
        "multiply",
        "divide",
        "subtract",
        "python",
        "code",
        "run",
    ]
)


def _residual(clause: str, rest: str, *, found_before: bool) -> Iterator[Need]:
    """What is left of a clause once calculations, URLs and times are taken out."""
    found = matching.terms(rest)
    if found_before and len(found - _ONLY_ABOUT_ANOTHER_NEED) < 2 and not _RECALL.search(rest):
        # "the time in Tokyo" leaves Tokyo, which is part of the time question.
        return
    if _GREETING.match(rest) and len(found) <= 3 and "?" not in rest:
        yield Need(Kind.GREETING, "", clause)
        return
    asks = "?" in rest or "？" in rest or _ASKS.match(rest) is not None
    if not asks and _STATES.search(rest):
        yield Need(Kind.STATEMENT, clause, clause, found)
        return
    about = found - _LONE_DOCUMENT_WORDS
    if found_before:
        about -= _ONLY_ABOUT_ANOTHER_NEED
    if not found and asks and recalls_the_conversation(rest):
        yield Need(Kind.RECALL, clause, clause)
    if not found or (found_before and not about):
        return
    recalls = _RECALL.search(rest) is not None
    if mentions_documents(rest) or not recalls:
        yield Need(Kind.KNOWLEDGE, clause, clause, about or found)
    if recalls:
        yield Need(Kind.RECALL, clause, clause, about or found)
