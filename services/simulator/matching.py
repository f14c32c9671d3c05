"""Word overlap with idf weights: how the simulator finds the sentence that answers a question.

Scores follow Robertson and Spärck Jones' idf over the candidate sentences of this one request; there is no index.
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

_WORD = re.compile(r"[^\W_]+")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")
_BEGINS_BLOCK = re.compile(r"\s*(?:[#>*+|-]|\d+[.)]\s)")
_WRAPPED_CHARS = 60  # shorter lines end where they end, longer ones were broken by an editor
_MARKUP = re.compile(r"^(?:[#>*\-+|\s]+|\d+[.)]\s+)+")
_EAST_ASIAN = re.compile(r"[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff]")

STOPWORDS_TEXT = """a about after again all also am an and any are as ask at be because been before being between both but by can could
    did do does doing down during each else ever few for from further get give go got had has have having he her here hers
    him his how i if in into is it its just know let like lot made make many may me might mine more most much must my need
    no nor not now of off on once one only or other our ours out over own please same say says said shall she should show
    so some such tell tells than that the their theirs them then there these they this those through to told too under
    until up upon us use used uses using very want was we well were what when where which while who whom whose why will
    with would yes you your yours exactly according explain describe mention mentioned mentions question answer called
    current currently earlier previously remember recall remind s t d m ll re ve"""
STOPWORDS = frozenset(STOPWORDS_TEXT.split())

DOCUMENT_WORDS_TEXT = "document documents documentation doc docs file files page pages passage readme text section manual handbook guide"
DOCUMENT_WORDS = frozenset(DOCUMENT_WORDS_TEXT.split())
"""Words that name where to look, not what to look for."""

MAX_QUOTE_CHARS = 400


def stem(word: str) -> str:
    """`word` without the commonest English endings; only has to be the same on both sides of a comparison."""
    if len(word) < 4 or not word.isascii():
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    for ending in ("ing", "ed", "es", "s"):
        if word.endswith(ending) and not word.endswith("ss") and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            break
    # "storing", "stored", "stores" and "store" must meet.
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def words(text: str) -> list[str]:
    """The words of `text` in lower case; East Asian runs come as pairs of characters."""
    found = _WORD.findall(text.lower())
    if text.isascii():
        return found
    split_words: list[str] = []
    for word in found:
        if len(word) > 2 and _EAST_ASIAN.search(word):
            split_words.extend(word[i : i + 2] for i in range(len(word) - 1))
        else:
            split_words.append(word)
    return split_words


def terms(text: str) -> frozenset[str]:
    """The stems of `text` that carry meaning."""
    return frozenset(stem(word) for word in words(text) if word not in STOPWORDS)


def sentences(text: str) -> list[str]:
    """The sentences of `text`: its own words in their order, without Markdown signs at the start and with plain spaces."""
    found: list[str] = []
    for block in _blocks(text):
        plain = _MARKUP.sub("", " ".join(block.split()))
        found.extend(part.strip() for part in _SENTENCE_END.split(plain) if part.strip())
    return found


def _blocks(text: str) -> Iterator[str]:
    """Paragraphs, list items, headings and lines; a line that goes on with a wrapped one belongs to it."""
    block = ""
    wrapped = False
    for line in text.split("\n"):
        if not wrapped or not line.strip() or _BEGINS_BLOCK.match(line):
            if block:
                yield block
            block = line
        else:
            block = f"{block} {line}"
        wrapped = len(line) >= _WRAPPED_CHARS and not line.startswith("#")
    if block:
        yield block


def shorten(quote: str, limit_chars: int = MAX_QUOTE_CHARS) -> str:
    """`quote` cut at a word so that it has at most `limit_chars` characters."""
    if len(quote) <= limit_chars:
        return quote
    head = quote[:limit_chars]
    return (head.rsplit(" ", 1)[0] or head) + " …"


@dataclass(slots=True)
class Sentence:
    """One sentence that may answer. `source` is user, assistant, memory, document or tool; `label` cites or names it."""

    source: str
    text: str
    terms: frozenset[str]
    label: str = ""
    title: str = ""
    context_terms: frozenset[str] = field(default_factory=frozenset)  # of the title and heading it stands under


@dataclass(frozen=True, slots=True)
class Match:
    """A sentence with the terms of the question it holds; `coverage` is their share (0 to 1) of the question's weight."""

    sentence: Sentence
    score: float
    coverage: float
    hits: frozenset[str]


class Matcher:
    """Ranks the given sentences against questions."""

    def __init__(self, candidates: Sequence[Sentence]):
        self._candidates = candidates
        self._document_frequency: dict[str, int] = {}
        for candidate in candidates:
            for term in candidate.terms | candidate.context_terms:
                self._document_frequency[term] = self._document_frequency.get(term, 0) + 1

    def rank(self, question: frozenset[str], *, weights: dict[str, float]) -> list[Match]:
        """The sentences that share a term with `question`, best first.

        `weights` gives each source's factor. Of equals the later one wins: what was said last holds.
        """
        total = sum(map(self._idf, question)) or 1.0
        matches = []
        for position, candidate in enumerate(self._candidates):
            hits = question & candidate.terms
            beside = (question & candidate.context_terms) - hits
            if not hits:
                continue
            weight = sum(map(self._idf, hits)) + 0.4 * sum(map(self._idf, beside))
            # A long sentence holds more words by chance.
            score = weight * weights.get(candidate.source, 0.0) / (1.0 + 0.01 * len(candidate.terms))
            matches.append((score, position, Match(candidate, score, weight / total, hits | beside)))
        matches.sort(key=lambda found: (-found[0], -found[1]))
        return [match for _, _, match in matches]

    def _idf(self, term: str) -> float:
        frequency = self._document_frequency.get(term, 0)
        if not frequency:
            return 1.0
        return math.log(1.0 + len(self._candidates) / frequency)


def sentence_list(source: str, text: str, *, label: str = "", title: str = "", heading: str = "") -> Iterable[Sentence]:
    """The sentences of one given text, ready to be matched; those without any term are left out."""
    context_terms = terms(f"{title} {heading}") if title or heading else frozenset()
    for part in sentences(text):
        found = terms(part)
        if found:
            yield Sentence(source, part, found, label, title, context_terms)
