"""A text without a title is called by its first heading."""

import time

import pytest

from services.gateway.surfaces.native.documents import MAX_TITLE_CHARS, first_heading


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Refunds\n\nText", "Refunds"),
        ("Text\n\n## Refunds and returns ##\r\n", "Refunds and returns"),
        ("#\tRefunds\tand\x00returns", "Refunds and returns"),
        ("#\n\nText", ""),
        ("#hashtag", ""),
        ("Text", ""),
        ("# " + "x" * 2_000, "x" * MAX_TITLE_CHARS),
    ],
)
def test_the_title_is_the_first_heading(text, title):
    assert first_heading(text) == title


@pytest.mark.parametrize("line", ["#" + " " * 20_000 + "a" * 600, "# " + "a " * 20_000, "# " + "# " * 20_000, "#\n" * 20_000])
def test_no_heading_takes_long(line):
    begun = time.perf_counter()
    first_heading(line)
    assert time.perf_counter() - begun < 1.0
