"""Passages: exact spans, nothing lost, sections kept apart, code and tables kept whole."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.memory.chunking import WHOLE_BLOCK_CHARS, passages

LINES = st.lists(
    st.one_of(
        st.text(max_size=120),
        st.sampled_from(
            ["# One", "## Two", "### Three ###", "```", "```python", "~~~", "| a | b |", "", "   ", "数据库。句子。", "😀 a", "\r"]
        ),
        st.text(alphabet="abc .!?", min_size=50, max_size=900),
    ),
    max_size=40,
)


@given(LINES, st.sampled_from(["text/plain", "text/markdown"]), st.integers(50, 500), st.integers(0, 25))
@settings(max_examples=150, deadline=None)
def test_passages_are_trimmed_spans_in_order_that_cover_every_word(lines, content_type, size, overlap):
    text = "\n".join(lines)
    found = passages(text, content_type, size, overlap)
    covered = set()
    for passage in found:
        span = text[passage.start : passage.end]
        assert span
        assert span == span.strip()
        covered.update(range(passage.start, passage.end))
    assert [p.start for p in found] == sorted(p.start for p in found)
    assert [p.end for p in found] == sorted(p.end for p in found)
    assert all(character.isspace() for place, character in enumerate(text) if place not in covered)
    assert all(p.end - p.start <= max(size, WHOLE_BLOCK_CHARS) + size + sum(len(x) for x in lines if x.startswith("#")) for p in found)


MARKDOWN = """Intro text.

# Guide

## Setup

Install it.

```bash
# not a heading
make run

make test
```

## Tables

| a | b |
|---|---|
| 1 | 2 |

After the table.
"""


def test_headings_make_a_path_and_a_hash_inside_code_is_none():
    found = passages(MARKDOWN, "text/markdown", 1000, 100)
    assert [p.heading for p in found] == ["", "Guide > Setup", "Guide > Tables"]
    setup = MARKDOWN[found[1].start : found[1].end]
    assert setup.startswith("# Guide")
    assert setup.endswith("make test\n```")


def test_a_code_block_longer_than_a_passage_stays_whole_and_with_its_heading():
    code = "```\n" + "\n".join(f"line {n} of the program" for n in range(100)) + "\n```"
    text = f"# Code\n\n{code}\n\nAfter.\n"
    found = passages(text, "text/markdown", 500, 50)
    assert text[found[0].start : found[0].end] == f"# Code\n\n{code}"
    assert text[found[1].start : found[1].end] == "After."


def test_a_table_too_long_to_keep_is_cut_at_rows():
    table = "\n".join(f"| row {n} | {'x' * 60} |" for n in range(200))
    found = passages(table, "text/markdown", 1000, 100)
    assert len(found) > 5
    assert all(table[p.start : p.end].startswith("|") and table[p.start : p.end].endswith("|") for p in found)


def test_a_long_section_overlaps_at_a_sentence_and_sections_never_do():
    sentences = " ".join(f"Sentence number {n} says something." for n in range(60))
    text = f"# A\n\n{sentences}\n\n# B\n\nShort.\n"
    found = passages(text, "text/markdown", 400, 80)
    inside = [p for p in found if p.heading == "A"]
    assert len(inside) > 3
    for before, after in itertools.pairwise(inside):
        assert before.end - 80 <= after.start < before.end
        assert text[after.start :].startswith("Sentence number")
    assert text[found[-1].start : found[-1].end] == "# B\n\nShort."


@pytest.mark.parametrize("text", ["", " \n\t\n ", "\u3000"])
def test_a_text_without_words_has_no_passages(text):
    assert passages(text, "text/markdown", 1000, 100) == []
