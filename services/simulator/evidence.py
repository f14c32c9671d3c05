"""Which of the given sentences answer a clause, and how they are quoted with their source."""

from collections.abc import Mapping, Sequence

from services.simulator.given import Given
from services.simulator.matching import Match, Matcher, Sentence, shorten, words
from services.simulator.needs import Kind, Need, mentions_documents

# Each source's factor by what is asked: "what did I say" is answered by turns, "what do the docs say" by documents.
_KNOWLEDGE: Mapping[str, float] = {"document": 1.0, "tool": 1.0, "memory": 0.8, "user": 0.7, "assistant": 0.4}
_IN_DOCUMENTS: Mapping[str, float] = {"document": 1.0, "tool": 1.0, "memory": 0.3, "user": 0.3, "assistant": 0.2}
_RECALL: Mapping[str, float] = {"user": 1.0, "memory": 0.95, "assistant": 0.4, "document": 0.3, "tool": 0.3}

# The share of the question's weight a sentence must hold. Documents were retrieved for the question, so less is enough there.
_ENOUGH: Mapping[str, float] = {"document": 0.2, "tool": 0.2, "memory": 0.3, "user": 0.3, "assistant": 0.5}
_ENOUGH_DOCUMENT_FOR_RECALL = 0.6
_SECOND_ADDS = 0.3
# A sentence that holds a question of fewer words may well answer it.
_REPEATED_WORDS = 5


class Evidence:
    """The sentences of one request, ready to answer clauses."""

    def __init__(self, given: Given):
        self._sentences = given.sentences()
        self._matcher = Matcher(self._sentences)

    def best_for(self, need: Need) -> list[Sentence]:
        """The sentence that answers best, and a second from another source where it answers more of the clause."""
        if not need.terms:
            # "What did I just say?" asks for nothing but the last thing said.
            said = [sentence for sentence in self._sentences if sentence.source == "user"]
            return said[-1:] if need.kind is Kind.RECALL else []
        documents_named = mentions_documents(need.clause)
        weights = _RECALL if need.kind is Kind.RECALL else _IN_DOCUMENTS if documents_named else _KNOWLEDGE
        matches = [match for match in self._matcher.rank(need.terms, weights=dict(weights)) if _is_enough(match, need, documents_named)]
        if not matches:
            return []
        first = matches[0]
        for match in matches[1:]:
            new = match.hits - first.hits
            if new and match.sentence.source != first.sentence.source and match.coverage * len(new) / len(match.hits) >= _SECOND_ADDS:
                return [first.sentence, match.sentence]
        return [first.sentence]


def quote(sentences: Sequence[Sentence]) -> list[str]:
    """Each sentence, quoted word for word, with where it comes from and its citation."""
    return [_quoted(sentence) for sentence in sentences]


def _quoted(sentence: Sentence) -> str:
    text = shorten(sentence.text)
    if sentence.source == "user":
        return f'You said earlier: "{text}"'
    if sentence.source == "assistant":
        return f'I said earlier: "{text}"'
    if sentence.source == "memory":
        return f'From memory: "{text}"'
    if sentence.source == "tool":
        return f'The {sentence.label} tool brought: "{text}"'
    where = f"{sentence.title} says" if sentence.title else "The document says"
    cited = f" [{sentence.label}]" if sentence.label else ""
    return f'{where}: "{text}"{cited}'


def _is_enough(match: Match, need: Need, documents_named: bool) -> bool:
    source = match.sentence.source
    if source in ("document", "tool") and _repeats(match.sentence, need):
        return False
    if need.kind is Kind.RECALL and source in ("document", "tool"):
        return not documents_named and match.coverage >= _ENOUGH_DOCUMENT_FOR_RECALL
    if need.kind is Kind.KNOWLEDGE and documents_named and source not in ("document", "tool"):
        return False
    return match.coverage >= _ENOUGH[source]


def _repeats(sentence: Sentence, need: Need) -> bool:
    """Whether it only shows the question, as a page of examples does: that is no answer."""
    asked = words(need.clause)
    return len(asked) >= _REPEATED_WORDS and f" {' '.join(asked)} " in f" {' '.join(words(sentence.text))} "
