"""Estimated tokens of a text: a quarter of its ASCII bytes, half of other alphabets' letters, one for each CJK character.

An estimate that needs no vocabulary. Tokenizers of current models give 3.5 to 4.5 characters a token for English prose
and about one for a Han character; a bound is meant, so it leans upward.
"""

import re

_WIDE = re.compile(r"[\u1100-\u11ff\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U0001f000-\U0003ffff]")


def estimate(text: str) -> int:
    """Estimated tokens of `text`; 0 only for the empty text."""
    if not text:
        return 0
    if text.isascii():
        return (len(text) + 3) // 4
    wide = len(_WIDE.findall(text))
    ascii_chars = len(text.encode("ascii", "ignore"))
    other = len(text) - wide - ascii_chars
    return wide + (other + 1) // 2 + (ascii_chars + 3) // 4


def clip(text: str, tokens: int) -> str:
    """The longest start of `text` that fits `tokens`, with an ellipsis when something was cut."""
    if estimate(text) <= tokens:
        return text
    if tokens <= 1:
        return ""
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if estimate(text[:middle]) < tokens:
            low = middle
        else:
            high = middle - 1
    return text[:low].rstrip() + "…"
