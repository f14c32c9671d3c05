"""How recalled context is put before a model."""

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from services.orchestrator.ports import Message, RecalledPart


def context_message(parts: Sequence[RecalledPart]) -> Message | None:
    """Memories and documents as one system message; None when there are none."""
    lines = []
    for part in parts:
        if part.kind == "memory":
            lines.append(f"<memory id={_attribute(part.source_id)}>{escape(part.text)}</memory>")
        elif part.kind == "document":
            citation = part.citation
            attributes = f"citation={_attribute(citation['citation_id'])} title={_attribute(citation['title'])}"
            attributes += f" heading={_attribute(citation['heading'])}"
            lines.append(f"<document {attributes}>{escape(part.text)}</document>")
    if not lines:
        return None
    body = "\n".join(lines)
    return Message("system", f"<context>\n{body}\n</context>\nCite documents as [c1].")


def earlier_turns(parts: Sequence[RecalledPart]) -> list[Message]:
    """Recent turns as the messages they were."""
    messages = []
    for part in parts:
        if part.kind == "turn":
            messages.append(Message("user", part.text))
            messages.append(Message("assistant", part.assistant_text))
    return messages


def _attribute(value: str) -> str:
    # Always in double quotes: what reads it back need not know of the other kind.
    quoted = quoteattr(value)
    return quoted if quoted[0] == '"' else '"' + quoted[1:-1].replace('"', "&quot;") + '"'
