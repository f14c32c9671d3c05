"""`bulkhead feedback`: what the users of the tenant think of runs."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.cli.client import ask
from services.cli.connection import Connection
from services.cli.rendering import brief, print_list, when

TITLES = ("FEEDBACK", "RUN", "THUMBS", "RATING", "SIGNAL", "AGENT", "MODEL", "RECORDED", "TEXT")


def list_feedback(connection: Connection, *, limit: int, run: str = "", agent: str = "", since: str = "", as_json: bool = False) -> None:
    """The newest feedback on runs of all users of the tenant that fits. Raises CommandFailure."""
    query = {"run_id": run or None, "agent": agent or None, "since": since or None}
    found = ask(connection, lambda api: api.listed("/v1/feedback", limit, **query))
    print_list(found, TITLES, _row, "no feedback yet", as_json)


def _row(one: Mapping[str, Any]) -> Sequence[Any]:
    """Feedback as TITLES."""
    signal = f"dwell {one['dwell_ms']} ms" if one["dwell_ms"] else one["signal"]
    about = (one["thumbs"], one["rating"], signal, one["agent"], one["model"], when(one["recorded_at"]))
    return one["feedback_id"], one["run_id"], *about, brief(one["text"] or one["corrected_answer"])
