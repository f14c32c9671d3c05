"""Joins a stream that was started again to what had been delivered: what repeats word for word is dropped."""

from collections.abc import Mapping
from typing import Any

from services.llm_gateway.chat import Chunk
from services.llm_gateway.failures import FailureClass


class Diverged(Exception):
    """The new answer differs from the text that the caller already has; joining them would invent an answer."""


class Stitch:
    """What a caller has got of one streamed answer, over all attempts.

    Only plain text can be joined: tool calls have ids of their own in each answer, and other content cannot be compared.
    """

    def __init__(self) -> None:
        self._delivered: list[str] = []
        self._expected = ""
        self._restarted = False
        self._comparable = True
        self.delivered_any = False

    @property
    def delivered_text(self) -> str:
        """The text that the caller has."""
        return "".join(self._delivered)

    @property
    def delivered_chunks(self) -> int:
        """Pieces of text that the caller has: about as many tokens, and never more."""
        return len(self._delivered)

    @property
    def can_continue(self) -> bool:
        """Whether an answer could be gone on with from the delivered text alone."""
        return self._comparable and bool(self._delivered)

    @property
    def can_restart(self) -> bool:
        """Whether a new attempt could be joined to what was delivered."""
        return self._comparable

    def continuing(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The request with the delivered text as the beginning of the answer, and with what is left of its bound."""
        made = {**body, "messages": [*body["messages"], {"role": "assistant", "content": self.delivered_text}]}
        for name in ("max_completion_tokens", "max_tokens"):
            if type(body.get(name)) is int:
                made[name] = max(body[name] - self.delivered_chunks, 1)
        return made

    def restart(self, *, continues: bool = False) -> None:
        """A new attempt begins; with `continues` it goes on where the delivered text ends."""
        self._expected = "" if continues else "".join(self._delivered)
        self._restarted = self.delivered_any

    def feed(self, batch: list[Chunk]) -> list[Chunk]:
        """What of `batch` is new to the caller. Raises Diverged."""
        found = []
        for chunk in batch:
            if self._restarted:
                joined = self._join(chunk)
                if joined is None:
                    continue
                chunk = joined
            if chunk.text:
                self._delivered.append(chunk.text)
            if chunk.tool_calls or chunk.opaque:
                self._comparable = False
            self.delivered_any = True
            found.append(chunk)
        return found

    def _join(self, chunk: Chunk) -> Chunk | None:
        if self._expected:
            if chunk.tool_calls or chunk.opaque:
                raise Diverged
            known, text = self._expected, chunk.text
            if text.startswith(known):
                self._expected = ""
                text = text[len(known) :]
            elif known.startswith(text):
                self._expected = known[len(text) :]
                text = ""
            else:
                raise Diverged
            if chunk.finish_reason and self._expected:
                raise Diverged
            if not text:
                # A finish or a usage that rides on repeated text is still news.
                if not chunk.finish_reason and not chunk.usage:
                    return None
                # One without text stays as it is: it may have no choice at all, as a usage that comes early.
                return chunk.with_text("") if chunk.text else chunk
            return chunk.with_text(text) if text != chunk.text else chunk
        return chunk if chunk.meaningful or chunk.usage is not None else None


# After these the delivered part is right as far as it goes, so a repeat can complete it.
RECOVERABLE = frozenset(
    {
        FailureClass.CUT,
        FailureClass.STALLED,
        FailureClass.TRANSIENT,
        FailureClass.RATE_LIMITED,
        FailureClass.MALFORMED,
        FailureClass.UNKNOWN,
    }
)
