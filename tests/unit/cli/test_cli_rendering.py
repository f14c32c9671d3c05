"""Events as a person reads them."""

import io

import pytest
from rich.console import Console

from services.cli.rendering import Renderer, brief
from services.cli.replay import line


class Screen:
    def __init__(self) -> None:
        self.out, self.notes = io.StringIO(), io.StringIO()
        self.renderer = Renderer(self.out, Console(file=self.notes, highlight=False, width=200))

    def show(self, kind: str, **data):
        self.renderer.show({"type": kind, "data": data})


@pytest.fixture
def screen():
    return Screen()


def test_the_answer_is_streamed_to_stdout_and_everything_else_goes_to_stderr(screen):
    screen.show("run_queued", position=0)
    screen.show("tool_call_started", tool="calculator", arguments={"expression": "1+1"})
    screen.show("tool_call_completed", tool="calculator", output={"result": "2"}, duration_ms=3)
    screen.show("message_delta", text="It is ", message_id="m")
    assert screen.out.getvalue() == "It is "
    screen.show("message_delta", text="2 [c1].", message_id="m")
    screen.show("message_completed", text="It is 2 [c1].", message_id="m")
    screen.show("run_finished", output_text="It is 2 [c1].", citations=[{"citation_id": "c1", "title": "README.md", "heading": "Sums"}])
    assert screen.out.getvalue() == "It is 2 [c1].\n"
    assert screen.notes.getvalue().splitlines() == [
        '→ calculator {"expression": "1+1"}',
        '← calculator {"result": "2"} (3 ms)',
        "[c1] README.md › Sums",
    ]


def test_warnings_failures_and_cancels_are_shown(screen):
    screen.show("warning", code="MEMORY_DOWN", user_message="Answering without memory.")
    screen.show("tool_call_failed", tool="http_fetch", error={"code": "TIMEOUT", "message": "took too long"})
    screen.show("run_failed", error={"reason": "UPSTREAM_FAILED", "message": "no model answers"})
    screen.show("run_cancelled", output_text="")
    told = screen.notes.getvalue()
    for text in ("Answering without memory.", "http_fetch failed: took too long", "no model answers", "cancelled"):
        assert text in told


def test_a_superseded_attempt_is_said_to_be_void_and_the_next_one_is_shown(screen):
    screen.show("message_delta", text="half an ans", message_id="m")
    screen.show("attempt_superseded", from_seq=3)
    screen.show("message_delta", text="The whole answer", message_id="m")
    screen.show("message_completed", text="The whole answer", message_id="m")
    assert screen.out.getvalue() == "half an ans\nThe whole answer\n"
    assert "void" in screen.notes.getvalue()


def test_an_answer_without_deltas_is_shown_once(screen):
    screen.show("message_completed", text="All at once", message_id="m")
    screen.show("run_finished", output_text="All at once")
    assert screen.out.getvalue() == "All at once\n"


def test_an_answer_that_was_resumed_past_its_text_is_still_shown(screen):
    screen.show("run_finished", output_text="Only the end was seen")
    assert screen.out.getvalue() == "Only the end was seen\n"


def test_markup_and_unknown_types_do_no_harm(screen):
    screen.show("something_new", text="?")
    screen.show("tool_call_started", tool="[red]x[/red]", arguments={"a": "[/nope]"})
    assert "[red]x[/red]" in screen.notes.getvalue()


def test_long_values_are_cut_to_one_line():
    assert brief({"text": "a\nb" * 200}).endswith("…")
    assert len(brief("x" * 1000)) == 160


def test_a_line_of_the_timeline_tells_when_what_and_the_gist():
    event = {
        "seq": 12,
        "ts": "2026-01-31T12:00:00.000001Z",
        "type": "tool_call_started",
        "data": {"tool": "calculator", "arguments": {"e": 1}},
    }
    assert str(line(event, 1.5)).split() == ["12", "1.500", "s", "tool_call_started", "calculator", '{"e":', "1}"]
