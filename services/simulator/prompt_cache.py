"""What a provider's prompt cache would hold, by one rule: a marked prefix that was billed before is read, any other is written."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

MAX_PREFIXES = 10_000


@dataclass(frozen=True, slots=True)
class Boundary:
    """The end of one block of a prompt: the digest and the tokens of all up to it, and whether it is marked to be cached."""

    digest: bytes
    tokens: int
    marked: bool


@dataclass(frozen=True, slots=True)
class CacheUse:
    """Tokens of one prompt that were read from the cache and written to it; `digests` are what it holds once this is billed."""

    read_tokens: int = 0
    write_tokens: int = 0
    digests: tuple[bytes, ...] = ()


NO_USE = CacheUse()


class PromptCache:
    """The prefixes seen, the newest 10,000."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def use(self, boundaries: Sequence[Boundary], prompt_tokens: int) -> CacheUse:
        """What a prompt reads and writes: the longest prefix that is known is read, the rest up to the last mark is written.

        As with Anthropic, a known prefix counts at any block before the last mark, marked in this prompt or not.
        """
        last = max((index for index, boundary in enumerate(boundaries) if boundary.marked), default=-1)
        if last < 0:
            return NO_USE
        read = next((one.tokens for one in reversed(boundaries[: last + 1]) if one.digest in self._seen), 0)
        read = min(read, prompt_tokens)
        write = min(boundaries[last].tokens, prompt_tokens) - read
        return CacheUse(read, max(write, 0), tuple(boundary.digest for boundary in boundaries if boundary.marked))

    def prefix(self, digest: bytes, tokens: int) -> CacheUse:
        """A prefix that the provider caches by itself: nothing to pay for writing it."""
        return CacheUse(tokens if digest in self._seen else 0, 0, (digest,))

    def keep(self, use: CacheUse) -> None:
        """The prompt was billed."""
        for digest in use.digests:
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > MAX_PREFIXES:
            self._seen.popitem(last=False)
