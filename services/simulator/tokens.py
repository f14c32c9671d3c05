"""Token counts without a tokenizer: cheap, deterministic, and the same in both stream modes."""

import re

# One token is a word with the white space before it, at most 16 characters of it; scripts beyond Latin come
# to one token for two characters. What is left of the text is white space at its very end.
_PIECE = re.compile(r"\s*[^\s\u0250-\U0010ffff]{1,16}|\s*[^\s\u0000-\u024f]{1,2}|\s+")

MESSAGE_OVERHEAD_TOKENS = 4
"""What each message costs beyond its text, as OpenAI's own counting guide has it (3 to 4)."""

IMAGE_TOKENS = 85
"""OpenAI's price of one low-detail image."""


def split(text: str) -> list[str]:
    """The tokens of generated text, in order; joined they are the text again."""
    return _PIECE.findall(text)


def count_prompt(text: str) -> int:
    """Tokens of text that was sent in: a quarter of its UTF-8 bytes, rounded up.

    Prompts may hold megabytes, so this must not look at each word.
    """
    size_bytes = len(text) if text.isascii() else len(text.encode())
    return (size_bytes + 3) // 4
