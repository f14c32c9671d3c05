"""Events as a person reads them: the answer on stdout, everything about it on stderr, so that the answer can be piped."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.highlighter import JSONHighlighter
from rich.table import Table
from rich.text import Text

from services.cli.terminal import printable

MAX_DETAIL_CHARS = 160
# Of the columns of a table, in characters.
GAP, LEAST_WIDTH = 2, 3
# The kind of an interrupt that nobody decides: what started the run makes these calls itself, and the run has ended with them.
CLIENT_TOOLS = "client_tools"
ENDINGS = ("run_finished", "run_failed", "run_cancelled")


class Renderer:
    """Shows the events of a run as they come."""

    def __init__(self, out: TextIO | None = None, notes: Console | None = None) -> None:
        self._out = out or sys.stdout
        # What is piped on stays as it is; a terminal would obey it.
        self._terminal = self._out.isatty()
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
            case "interrupt_raised" if data.get("kind") == CLIENT_TOOLS:
                self._note(f"? the application that started the run is to call {calls_of(data)}, and to bring the results", "yellow")
            case "interrupt_raised":
                asked = f"{data.get('tool')} {brief(data.get('arguments'))} waits for an approval"
                self._note(f"? {asked}: `bulkhead approvals approve {data.get('interrupt_id')}`", "yellow")
            case "interrupt_resolved":
                self._note(f"· {data.get('tool') or 'the approval'}: {data.get('outcome')}", "yellow")
            case "run_queued" if data.get("queue_position"):
                self._note(f"waiting in the queue, position {data['queue_position']}", "dim")
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
            self._out.write(printable(text) if self._terminal else text)
            self._out.flush()
            self._open_line = not text.endswith("\n")

    def _end_line(self) -> None:
        if self._open_line:
            self._out.write("\n")
            self._out.flush()
            self._open_line = False

    def _note(self, text: str, style: str) -> None:
        self._end_line()
        self._notes.print(Text(printable(text), style=style))


def calls_of(data: Mapping[str, Any]) -> str:
    """The calls that an interrupt of the kind CLIENT_TOOLS asks for, on one line."""
    calls = [call for call in data.get("calls") or () if isinstance(call, Mapping)]
    return ", ".join(f"{one_line(str(call.get('name')))} {brief(call.get('arguments'))}" for call in calls)


def brief(value: Any) -> str:
    """A value on one short line."""
    if value is None:
        return ""
    text = one_line(value if isinstance(value, str) else json_text(value))
    return text if len(text) <= MAX_DETAIL_CHARS else text[: MAX_DETAIL_CHARS - 1] + "…"


def one_line(text: str) -> str:
    """`text` as `printable` has it, on one line."""
    return " ".join(printable(text).split())


def table_of(titles: Sequence[str], rows: Iterable[Sequence[Any]], room: int | None = None) -> Table:
    """Rows under titles; cells are texts, rich texts, or None. Where the terminal, or `room` in columns, is too narrow, the widest of the
    columns behind the second are cut: an id is there to be copied, and a status to be known."""
    cells = [[cell if isinstance(cell, Text) else Text(one_line("" if cell is None else str(cell))) for cell in row] for row in rows]
    widths = [max(cell_len(title), *(cell_len(row[n].plain) for row in cells), 0) for n, title in enumerate(titles)]
    excess = sum(widths) + GAP * len(widths) - (room or wide_console().width)
    for _ in range(excess):
        widest = max(range(2, len(widths)), key=widths.__getitem__)
        widths[widest] = max(LEAST_WIDTH, widths[widest] - 1)
    table = Table(box=None, padding=(0, GAP, 0, 0))
    for title, width in zip(titles, widths, strict=True):
        table.add_column(title, no_wrap=True, overflow="ellipsis", width=width)
    for row in cells:
        table.add_row(*row)
    return table


def print_table(titles: Sequence[str], rows: Iterable[Sequence[Any]], empty: str) -> None:
    """Prints `table_of`, or what is said where there are no rows."""
    table = table_of(titles, rows)
    wide_console().print(table if table.row_count else Text(empty, style="dim"))


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON. What a terminal would obey or hide is escaped, as `\\u202e`: who reads it sees that it is there, and who
    parses it has the same value. U+2028, which some take for the end of a line, is escaped as well."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text)


def print_json(value: Any) -> None:
    """A value as one line of JSON, at once."""
    print(json_text(value), flush=True)


def print_json_lines(items: Iterable[Any]) -> None:
    """One JSON value a line, for other programs."""
    for item in items:
        print_json(item)


def print_list(items: Iterable[Any], titles: Sequence[str], row: Callable[[Any], Sequence[Any]], empty: str, as_json: bool) -> None:
    """Things of a list: a table with what `row` makes of each, or a line of JSON for each."""
    if as_json:
        print_json_lines(items)
    else:
        print_table(titles, map(row, items), empty)


def print_answer(answer: Any, text: str, as_json: bool) -> None:
    """What came of a change: in words, or as the API answered it."""
    if as_json:
        print_json(answer)
    else:
        print(printable(text))


def print_thing(thing: Any, as_json: bool) -> None:
    """A thing as JSON: indented for reading, or on one line."""
    if as_json:
        print_json(thing)
    else:
        wide_console().print(JSONHighlighter()(json_text(thing, indent=2)), soft_wrap=True)


def when(moment: Any) -> str:
    """A time of the API to the second, in UTC; empty for none."""
    return str(moment or "").replace("T", " ")[:19]


def note(text: str) -> None:
    """A line for the person, on stderr, so that stdout has what was asked for alone."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text(printable(text), style="dim"))


def wide_console() -> Console:
    """stdout; where it is no terminal nothing is cut to 80 columns, as other programs read it."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=1000)
