"""Events as a person reads them: the answer on stdout, everything about it on stderr, so that the answer can be piped."""

import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

MAX_DETAIL_CHARS = 160
ENDINGS = ("run_finished", "run_failed", "run_cancelled")


class Renderer:
    """Shows the events of a run as they come. `verbose` shows the quiet ones too, as a timeline needs."""

    def __init__(self, out: TextIO | None = None, notes: Console | None = None) -> None:
        self._out = out or sys.stdout
        self._notes = notes or Console(stderr=True, highlight=False, soft_wrap=True)
        self._open_line = False
        self._said: set[str] = set()
        self._answered = False
        self._simulated = False

    def show(self, event: Mapping[str, Any]) -> None:
        """One event of the native API. Types that are not known are left out."""
        data = event.get("data") or {}
        match event.get("type"):
            case "message_delta":
                self._say(str(data.get("text", "")), str(data.get("message_id", "")))
            case "message_completed":
                if data.get("message_id", "") not in self._said:
                    self._say(str(data.get("text", "")), str(data.get("message_id", "")))
                self._end_line()
            case "attempt_superseded":
                self._note("another attempt takes over; the text above is void", "yellow")
                self._said.clear()
                self._answered = False
            case "log_gap":
                self._note("the store has lost the last of the text above; it is void", "yellow")
                self._said.clear()
                self._answered = False
            case "tool_call_started":
                self._note(f"→ {data.get('tool')} {brief(data.get('arguments'))}", "cyan")
            case "tool_call_completed":
                took = f" ({data['duration_ms']} ms)" if "duration_ms" in data else ""
                self._note(f"← {data.get('tool')} {brief(data.get('output'))}{took}", "cyan")
            case "tool_call_failed":
                error = data.get("error") or {}
                self._note(f"← {data.get('tool')} failed: {error.get('message') or error.get('code')}", "red")
            case "usage":
                self._simulated = self._simulated or data.get("provider") == "simulator"
            case "warning":
                self._note(f"! {data.get('user_message') or data.get('code')}", "yellow")
            case "run_queued" if data.get("position"):
                self._note(f"waiting in the queue, position {data['position']}", "dim")
            case "run_finished":
                self._finished(data)
            case "run_failed":
                error = data.get("error") or {}
                self._note(f"the run failed: {error.get('message') or error.get('reason') or 'no reason given'}", "red")
            case "run_cancelled":
                self._note("cancelled", "yellow")

    def note(self, text: str) -> None:
        """A line about the conversation that is no part of it."""
        self._note(text, "dim")

    def _finished(self, data: Mapping[str, Any]) -> None:
        if not self._answered and data.get("output_text"):
            self._say(str(data["output_text"]), "")
        self._end_line()
        if self._simulated:
            self._note("answered by the SIMULATOR, by rules; no model was asked", "magenta")
        for citation in data.get("citations") or []:
            where = " › ".join(part for part in (citation.get("title"), citation.get("heading")) if part)
            self._note(f"[{citation.get('citation_id')}] {where}", "dim")

    def _say(self, text: str, message_id: str) -> None:
        if text:
            self._said.add(message_id)
            self._answered = True
            self._out.write(text)
            self._out.flush()
            self._open_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._open_line:
            self._out.write("\n")
            self._out.flush()
            self._open_line = False

    def _note(self, text: str, style: str) -> None:
        self._end_line()
        self._notes.print(Text(text, style=style))


def brief(value: Any) -> str:
    """A value on one short line."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(", ", ": "))
    text = " ".join(text.split())
    return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 1] + "…"


def wide_console() -> Console:
    """stdout; where it is no terminal nothing is cut to 80 columns, as other programs read it."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)
