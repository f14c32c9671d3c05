"""What a request gave to answer from: the recalled <context>, earlier turns, and what tools brought back."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import unescape

from services.simulator import matching
from services.simulator.chat_request import ChatRequest, Message
from services.simulator.matching import Sentence
from services.simulator.tool_results import Passage, ToolResult, results_of_turn

# The texts inside are escaped, so that an item ends at its next "<". An expression that looks for the closing tag past it
# would take the square of the time for many opening tags.
_ITEM = re.compile(r"<(turn|memory|document)\b([^<>]*)>([^<]*)</\1>")
_ATTRIBUTE = re.compile(r'([a-z_]+)="([^"]*)"')
_QUESTION = re.compile(
    r"^(?:what|who|where|when|which|why|how|is|are|do|does|did|can|could|will|would|please|tell|calculate|compute)\b", re.I
)
_OWN_FAILURE = re.compile(r"found nothing|no tool (?:for|to)|model simulator|You said earlier|From memory")

# Sentences beyond this many are not looked at: the newest and the first documents matter.
_MAX_SENTENCES = 600


@dataclass(slots=True)
class Given:
    """All that may be quoted. Texts of `memories`, `passages` and earlier `turns` are unescaped and whole."""

    memories: list[str] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    results: list[ToolResult] = field(default_factory=list)

    def sentences(self) -> list[Sentence]:
        """Every sentence that may answer; questions asked earlier are no answers and are left out."""
        return list(self._sentences())[-_MAX_SENTENCES:]

    def _sentences(self) -> Iterator[Sentence]:
        for result in self.results:
            for passage in result.passages:
                yield from _passage_sentences(passage)
            if not result.passages and not result.error and len(result.value) > 40:
                yield from matching.sentence_list("tool", result.value, label=result.name)
        for passage in self.passages:
            yield from _passage_sentences(passage)
        for memory in self.memories:
            yield from matching.sentence_list("memory", memory)
        for turn in self.turns:
            for sentence in matching.sentence_list(turn.role, turn.text):
                if (
                    not sentence.text.endswith(("?", "？"))
                    and not _QUESTION.match(sentence.text)
                    and not _OWN_FAILURE.search(sentence.text)
                ):
                    yield sentence


def gather(request: ChatRequest) -> Given:
    """Collect what the request gives; tool results are those of the turn that is being answered."""
    given = Given()
    asked_at = request.asked_at
    for index, message in enumerate(request.messages):
        if message.role in ("system", "developer"):
            if "<context>" in message.text:
                _read_context(message.text, given)
        elif message.text and index < asked_at and message.role in ("user", "assistant"):
            given.turns.append(message)
    given.results = results_of_turn(request.messages, max(asked_at, 0))
    return given


def last_words(messages: Sequence[Message]) -> str:
    """The text of an assistant message at the very end, which the answer has to go on from; empty without one."""
    last = messages[-1]
    return last.text if last.role == "assistant" and not last.tool_calls else ""


def _passage_sentences(passage: Passage) -> Iterator[Sentence]:
    return iter(matching.sentence_list("document", passage.text, label=passage.citation, title=passage.title, heading=passage.heading))


def _context_blocks(text: str) -> Iterator[str]:
    start = text.find("<context>")
    while start >= 0:
        end = text.find("</context>", start)
        if end < 0:
            return
        yield text[start:end]
        start = text.find("<context>", end)


def _read_context(text: str, given: Given) -> None:
    for block in _context_blocks(text):
        for kind, attributes_text, inner in _ITEM.findall(block):
            attributes = {name: unescape(value) for name, value in _ATTRIBUTE.findall(attributes_text)}
            content = unescape(inner).strip()
            if kind == "memory":
                given.memories.append(content)
            elif kind == "document":
                given.passages.append(
                    Passage(content, attributes.get("citation", ""), attributes.get("title", ""), attributes.get("heading", ""))
                )
            else:
                given.turns.append(Message("user" if attributes.get("role") == "user" else "assistant", content))
