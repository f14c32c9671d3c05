"""What an agent is doing, as the event `agent_status` tells it: a state machine that the other events of its run feed.

A status is told right before the first event of what it stands for, and again only when it changes, so it costs no write of its own. Each
owner of a run begins anew. How a run ends has events of its own.
"""

from collections.abc import Mapping
from typing import Any

import orjson

from services.orchestrator.records import Draft

THINKING = "thinking"
SEARCHING = "searching"
CALLING_TOOL = "calling_tool"
WRITING = "writing"
WAITING_APPROVAL = "waiting_approval"
WAITING = "waiting"
STATUSES = (THINKING, SEARCHING, CALLING_TOOL, WRITING, WAITING_APPROVAL, WAITING)


class AgentStatus:
    """The status that was told last. Each method answers the event to be told now, None where nothing has changed."""

    def __init__(self) -> None:
        # Status and detail; empty before the first.
        self.told: tuple[str, str] = ("", "")

    def be(self, status: str, detail: str = "") -> Draft | None:
        """One of STATUSES from now on; `detail` names the tool or the step."""
        if self.told == (status, detail):
            return None
        self.told = (status, detail)
        return Draft("agent_status", orjson.dumps({"status": status, "detail": detail} if detail else {"status": status}))

    def before(self, kind: str, data: Mapping[str, Any]) -> Draft | None:
        """An event of another type is about to be told."""
        if kind == "tool_call_started":
            return self.be(CALLING_TOOL, data["tool"])
        # Only a model call has a key here; steps that call tools, or end a workflow, do not think.
        if kind == "step_started" and "idempotency_key" in data:
            return self.be(THINKING, data.get("name", ""))
        return None
