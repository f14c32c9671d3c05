"""A run on a screen: what it is at, its steps and tool calls, what they cost, and the end of what it says."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from services.cli.rendering import CLIENT_TOOLS, ENDINGS, brief, calls_of
from services.cli.terminal import printable

ENDED = {"run_finished": ("finished", "green"), "run_failed": ("failed", "red"), "run_cancelled": ("cancelled", "yellow")}
MOST_LINES = 12


@dataclass
class Line:
    """One thing that happened or goes on."""

    mark: str
    text: str
    style: str = ""
    key: str = ""


class RunView:
    """What is known of a run, event by event; rich shows it."""

    def __init__(self, run: Mapping[str, Any], console: Console) -> None:
        self._run_id, self._thread_id, self._agent = str(run["run_id"]), str(run["thread_id"]), str(run.get("agent") or "")
        self._console = console
        self._state, self._style = str(run.get("status") or ""), "cyan"
        self._begun = self._last = _moment(run.get("started_at") or run.get("created_at"))
        self._ended = False
        self._lines: list[Line] = []
        self._said: dict[str, str] = {}
        self._whole = ""
        self._tokens = self._cost_microusd = 0
        self._spinner = Spinner("dots")

    def take(self, event: Mapping[str, Any]) -> None:
        """One event of the native API. Types that are not known change nothing."""
        data = event.get("data") or {}
        self._last = _moment(event.get("ts")) or self._last
        match event.get("type"):
            case "run_queued":
                self._agent = str(data.get("agent") or self._agent)
                self._be(f"queued, position {data['queue_position']}" if data.get("queue_position") else "queued", "dim")
            case "run_started":
                self._begun = self._last
                self._be("working")
            case "agent_status" if data.get("status") == "searching":
                self._be("searching its memory")
            case "step_started":
                self._be(f"step {data.get('step', '')}: {data.get('name') or 'thinking'}")
            case "message_delta":
                self._be("writing")
                message = str(data.get("message_id", ""))
                self._said[message] = self._said.get(message, "") + str(data.get("text", ""))
            case "message_completed":
                self._said[str(data.get("message_id", ""))] = str(data.get("text", ""))
            case "attempt_superseded" | "log_gap" as kind:
                self._said.clear()
                self._add("!", "another attempt takes over" if kind == "attempt_superseded" else "the store lost the last events", "yellow")
            case "tool_call_started":
                self._be(f"calling {data.get('tool')}")
                self._add("→", f"{data.get('tool')} {brief(data.get('arguments'))}", "cyan", key=str(data.get("call_id")))
            case "tool_call_completed":
                self._end_call(data, "✓", brief(data.get("output")), "green")
            case "tool_call_failed":
                error = data.get("error") or {}
                self._end_call(data, "✗", str(error.get("message") or error.get("code") or "failed"), "red")
            case "interrupt_raised" if data.get("kind") == CLIENT_TOOLS:
                self._add("?", f"the application that started the run is to call {calls_of(data)}", "yellow")
            case "interrupt_raised":
                self._be("waiting for an approval", "yellow")
                asked = f"{data.get('tool')} {brief(data.get('arguments'))} asks: `bulkhead approvals approve {data.get('interrupt_id')}`"
                self._add("?", asked, "yellow", key=str(data.get("interrupt_id")))
            case "interrupt_resolved":
                self._be("working")
                self._replace(str(data.get("interrupt_id")), "·", f"{data.get('tool') or 'approval'}: {data.get('outcome')}", "dim")
            case "child_run_started":
                self._add("→", f"{data.get('agent')} works in {data.get('run_id')}", "cyan", key=str(data.get("run_id")))
            case "child_run_finished":
                self._replace(str(data.get("run_id")), "✓", f"{data.get('agent') or 'child run'} {data.get('status')}", "green")
            case "warning":
                self._add("!", str(data.get("user_message") or data.get("code")), "yellow")
            case "usage":
                self._tokens += int(data.get("input_tokens") or 0) + int(data.get("output_tokens") or 0)
                self._cost_microusd += int(data.get("cost_microusd") or 0)
            case kind if kind in ENDINGS:
                self._end(kind, data)

    def _end(self, kind: Any, data: Mapping[str, Any]) -> None:
        self._ended = True
        self._be(*ENDED[kind])
        usage = data.get("usage") or {}
        self._tokens = int(usage.get("input_tokens") or 0) + int(usage.get("output_tokens") or 0) or self._tokens
        self._cost_microusd = int(usage.get("cost_microusd") or 0) or self._cost_microusd
        self._whole = str(data.get("output_text") or "") or "".join(self._said.values())
        if kind == "run_failed":
            error = data.get("error") or {}
            self._add("✗", str(error.get("message") or error.get("reason") or "no reason given"), "red")
        for citation in data.get("citations") or []:
            where = " › ".join(part for part in (citation.get("title"), citation.get("heading")) if part)
            self._add(f"[{citation.get('citation_id')}]", where, "dim")

    def _be(self, state: str, style: str = "cyan") -> None:
        self._state, self._style = state, style

    def _add(self, mark: str, text: str, style: str, key: str = "") -> None:
        self._lines.append(Line(mark, text, style, key))

    def _replace(self, key: str, mark: str, text: str, style: str) -> None:
        line = next((line for line in reversed(self._lines) if line.key and line.key == key), None)
        if line is None:
            self._add(mark, text, style)
        else:
            line.mark, line.text, line.style = mark, text, style

    def _end_call(self, data: Mapping[str, Any], mark: str, result: str, style: str) -> None:
        took = f" ({data['duration_ms']} ms)" if "duration_ms" in data else ""
        self._replace(str(data.get("call_id")), mark, f"{data.get('tool')} {result}{took}", style)
        self._be("working")

    def __rich__(self) -> RenderableType:
        room = max(3, self._console.height - 4)
        lines = self._lines[-min(MOST_LINES, room // 2) :]
        # More lines than there is room for need not be looked at, many times a second.
        last = "".join(self._said.values()).rsplit("\n", room)[-room:]
        tail = Text(printable("\n".join(last))).wrap(self._console, max(20, self._console.width - 1))[-max(1, room - len(lines)) :]
        return Group(self._head(), self._table(lines), *tail)

    def print_whole(self) -> None:
        """The run as it stands, with the whole answer, to stay on the screen."""
        self._console.print(Group(self._head(), self._table(self._lines)))
        if self._whole:
            self._console.print(Text(printable(self._whole)), soft_wrap=True)

    def _head(self) -> Table:
        head = Table.grid(padding=(0, 1))
        for _ in range(3):
            head.add_column(no_wrap=True, overflow="ellipsis")
        mark: RenderableType = Text({"green": "✓", "red": "✗"}.get(self._style, "·"), style=self._style) if self._ended else self._spinner
        spent = [f"{self._tokens} tokens"] if self._tokens else []
        spent += [f"${self._cost_microusd / 1e6:.4f}"] if self._cost_microusd else []
        about = Text(printable(" · ".join((self._run_id, self._agent, self._thread_id, self._age(), *spent))), "dim")
        head.add_row(mark, Text(printable(self._state), style=self._style), about)
        return head

    def _table(self, lines: list[Line]) -> Table:
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis")
        for line in lines:
            table.add_row(Text(printable(line.mark), style=line.style), Text(printable(line.text)))
        return table

    def _age(self) -> str:
        if self._begun is None:
            return "0.0 s"
        until = self._last if self._ended and self._last else datetime.datetime.now(datetime.UTC)
        return f"{max(0.0, (until - self._begun).total_seconds()):.1f} s"


def _moment(text: Any) -> datetime.datetime | None:
    try:
        return datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None
