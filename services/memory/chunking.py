"""Structure-aware passages of a text: spans that follow headings, paragraphs, code blocks and tables.

Every passage is a span of the original, so `text[p.start:p.end]` is its text, in Unicode code points. Sections are never
mixed; code blocks and tables stay whole where they fit; a section that is cut overlaps with its next passage.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

# A code block or a table longer than this is cut at a line.
WHOLE_BLOCK_CHARS = 4_000
HEADING_CHARS = 300

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_ATX = re.compile(r" {0,3}(#{1,6})(?:[ \t]+(.*?))?[ \t]*#*[ \t]*$")
_SENTENCE_END = re.compile(r"[.!?](?=\s)|[。！？；]|\n")
_MARKUP = re.compile(r"[`*_]|!?\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True, slots=True)
class Passage:
    """A span of the text, from `start` to before `end`, under a heading path such as "Architecture > Layout"."""

    start: int
    end: int
    heading: str


@dataclass(frozen=True, slots=True)
class _Block:
    start: int
    end: int
    kind: str  # heading, code, table, prose
    level: int = 0
    title: str = ""


def passages(text: str, content_type: str, size: int, overlap: int) -> list[Passage]:
    """Cuts `text` into passages of about `size` characters, in order; content types text/plain and text/markdown."""
    blocks = list(_markdown_blocks(text) if content_type == "text/markdown" else _plain_blocks(text))
    found: list[Passage] = []
    path: list[tuple[int, str]] = []
    section: list[_Block] = []
    for block in blocks:
        if block.kind == "heading":
            # A heading directly below another belongs to the same passage, so that no passage is a bare heading.
            if any(b.kind != "heading" for b in section):
                found += _section(text, section, _path(path), size, overlap)
                section = []
            while path and path[-1][0] >= block.level:
                path.pop()
            path.append((block.level, block.title))
        section.append(block)
    found += _section(text, section, _path(path), size, overlap)
    return found


def _path(path: list[tuple[int, str]]) -> str:
    return " > ".join(title for _, title in path if title)[:HEADING_CHARS]


def _lines(text: str) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(text):
        newline = text.find("\n", start)
        end = len(text) if newline < 0 else newline + 1
        yield start, end
        start = end


def _plain_blocks(text: str) -> Iterator[_Block]:
    begin: int | None = None
    end = 0
    for start, stop in _lines(text):
        if text[start:stop].isspace():
            if begin is not None:
                yield _Block(begin, end, "prose")
            begin = None
        else:
            begin = start if begin is None else begin
            end = stop
    if begin is not None:
        yield _Block(begin, end, "prose")


def _kind(line: str) -> str:
    if line.isspace():
        return "blank"
    return "table" if line.lstrip().startswith("|") else "prose"


def _markdown_blocks(text: str) -> Iterator[_Block]:
    fence = ""
    begin, kind, end = 0, "blank", 0
    for start, stop in _lines(text):
        line = text[start:stop].rstrip("\r\n")
        if fence:
            end = stop
            closing = line.strip()
            if closing.startswith(fence) and not closing.strip(fence[0]):
                yield _Block(begin, end, "code")
                fence, kind = "", "blank"
            continue
        opening = _FENCE.match(line)
        heading = _ATX.match(line)
        now = "code" if opening else "heading" if heading else _kind(text[start:stop])
        if kind != "blank" and now != kind:
            yield _Block(begin, end, kind)
            kind = "blank"
        if opening:
            fence, begin, kind, end = opening.group(1), start, "code", stop
        elif heading:
            title = _MARKUP.sub(lambda m: m.group(1) or "", heading.group(2) or "").strip()
            yield _Block(start, stop, "heading", len(heading.group(1)), title)
        elif now != "blank":
            begin = start if kind == "blank" else begin
            kind, end = now, stop
    if kind != "blank":
        yield _Block(begin, end, kind)


def _section(text: str, blocks: list[_Block], heading: str, size: int, overlap: int) -> list[Passage]:
    """Packs the blocks of one section greedily; each piece is a contiguous span."""
    pieces: list[tuple[int, int, str]] = []
    for block in blocks:
        whole = block.kind in ("code", "table") and block.end - block.start <= max(size, WHOLE_BLOCK_CHARS)
        if whole or block.end - block.start <= size:
            pieces.append((block.start, block.end, block.kind))
        else:
            pieces += ((start, end, block.kind) for start, end in _cut(text, block, size - overlap))
    found: list[Passage] = []
    start = end = -1
    last = "heading"
    for piece_start, piece_end, kind in pieces:
        # What follows a heading stays with it at any length: a bare heading answers no question.
        if start >= 0 and piece_end - start > size and last != "heading":
            found += _trimmed(text, start, end, heading)
            reach = min(overlap, max(0, size - (piece_end - piece_start)))
            start = _overlap_start(text, start, piece_start, reach) if last == "prose" else piece_start
        elif start < 0:
            start = piece_start
        end, last = piece_end, kind
    if start >= 0:
        found += _trimmed(text, start, end, heading)
    return found


def _cut(text: str, block: _Block, size: int) -> Iterator[tuple[int, int]]:
    start = block.start
    while block.end - start > size:
        window = text[start : start + size]
        if block.kind == "prose":
            ends = [m.end() for m in _SENTENCE_END.finditer(window)]
            at = next((e for e in reversed(ends) if e >= size // 2), 0) or max(window.rfind(" "), window.rfind("\n")) + 1
        else:
            at = window.rfind("\n") + 1
        at = at or size
        yield start, start + at
        start += at
    if start < block.end:
        yield start, block.end


def _overlap_start(text: str, earliest: int, start: int, reach: int) -> int:
    """A start up to `reach` characters before `start`, at a sentence if there is one, else at a word."""
    low = max(earliest + 1, start - reach)
    if low >= start:
        return start
    window = text[low:start]
    sentence = next((m.end() for m in _SENTENCE_END.finditer(window) if window[m.end() :].strip()), None)
    if sentence is not None:
        return low + sentence
    space = window.find(" ")
    return low + space + 1 if 0 <= space < len(window) - 1 else start


def _trimmed(text: str, start: int, end: int, heading: str) -> list[Passage]:
    span = text[start:end]
    left = len(span) - len(span.lstrip())
    right = len(span.rstrip())
    return [Passage(start + left, start + right, heading)] if right > left else []
