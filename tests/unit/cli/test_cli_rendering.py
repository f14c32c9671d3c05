"""Events as a person reads them."""

import io
import json

import pytest
from rich.console import Console

from services.cli.rendering import Renderer, brief, print_json_lines, print_thing, table_of
from services.cli.replay import line
from services.cli.run_view import RunView
from services.cli.terminal import printable

HOSTILE = "\x1b]0;owned\x07\x1b[2J\x9b1mfine\u202e"


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
    screen.show("run_queued")
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


def test_what_waits_for_a_person_is_told_with_the_command_that_answers(screen):
    screen.show("interrupt_raised", interrupt_id="run_1/1/0", tool="wipe", arguments={"n": 1})
    screen.show("interrupt_resolved", interrupt_id="run_1/1/0", tool="wipe", outcome="approved")
    assert screen.notes.getvalue().splitlines() == [
        '? wipe {"n": 1} waits for an approval: `bulkhead approvals approve run_1/1/0`',
        "· wipe: approved",
    ]


CALLS = {"kind": "client_tools", "calls": [{"tool_call_id": "c", "name": "open_door", "arguments": '{"door":\x1b[2J1}'}]}


def test_calls_that_wait_for_the_application_are_no_approvals(screen):
    screen.renderer.show({"type": "interrupt_raised", "data": CALLS})
    told = screen.notes.getvalue()
    live, _ = shown(("interrupt_raised", CALLS))
    for each in (told, live):
        assert "the application that started the run is to call open_door" in each
        assert ("approv" in each, "\x1b" in each) == (False, False)


def test_a_run_that_waits_tells_its_place_in_the_queue(screen):
    queued = {"agent": "a", "queue_position": 3, "expected_wait_ms": 1200}
    screen.show("run_queued", **queued)
    assert screen.notes.getvalue() == "waiting in the queue, position 3\n"
    assert "queued, position 3" in shown(("run_queued", queued))[0]


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_agents_say_commands_no_terminal_and_is_passed_on_whole():
    for out, heard in ((Terminal(), "]0;owned[2J1mfine\n"), (io.StringIO(), f"{HOSTILE}\n")):
        notes = io.StringIO()
        renderer = Renderer(out, Console(file=notes, highlight=False, width=200))
        renderer.show({"type": "message_completed", "data": {"text": HOSTILE, "message_id": "m"}})
        renderer.show({"type": "warning", "data": {"user_message": HOSTILE}})
        assert out.getvalue() == heard
        assert notes.getvalue() == "! ]0;owned[2J1mfine\n"
    assert printable("a\tb\nc é 😀 日本") == "a\tb\nc é 😀 日本"


def test_json_has_all_that_was_said_on_one_line_and_shows_what_a_terminal_would_obey_or_hide(capsys):
    said = {"text": f"{HOSTILE}\x85\u2028\u200b\U000e0041 é 日本"}
    print_json_lines([said, said])
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line) for line in lines] == [said, said]
    assert all(shown in lines[0] for shown in ("\\u009b", "\\u202e", "\\u200b", "é 日本"))
    print_thing(said, as_json=False)
    read = capsys.readouterr().out
    assert (json.loads(read), read.replace("\n", "").isprintable()) == (said, True)
    assert brief({"path": "a\u202etxt"}) == '{"path": "a\\u202etxt"}'


def test_what_has_lines_makes_no_rows_of_a_table():
    console = Console(file=io.StringIO(), width=60)
    console.print(table_of(("RUN", "STATUS", "LABELS"), [("run_1", "failed", "a=b\n\nrun_2\tsucceeded")], room=60))
    assert [line.split() for line in console.file.getvalue().splitlines()[1:]] == [["run_1", "failed", "a=b", "run_2", "succeeded"]]


def shown(*events):
    """What a live view makes of events that come a second apart, as text."""
    console = Console(file=io.StringIO(), width=100, height=20, highlight=False)
    run = {"run_id": "run_1", "thread_id": "t", "agent": "a", "status": "queued", "created_at": "2026-01-31T12:00:00.000000Z"}
    view = RunView(run, console)
    for second, (kind, data) in enumerate(events, 1):
        view.take({"type": kind, "ts": f"2026-01-31T12:00:{second:02}.000000Z", "data": data})
    console.print(view)
    live = console.file.getvalue()
    view.print_whole()
    return live, console.file.getvalue()[len(live) :]


def test_a_live_view_shows_what_goes_on_and_what_it_cost():
    live, _ = shown(
        ("run_started", {}),
        ("tool_call_started", {"call_id": "c1", "tool": "calculator", "arguments": {"e": "1+1"}}),
        ("tool_call_completed", {"call_id": "c1", "tool": "calculator", "output": {"result": 2}, "duration_ms": 7}),
        ("tool_call_started", {"call_id": "c2", "tool": "wipe", "arguments": {"n": 1}}),
        ("interrupt_raised", {"interrupt_id": "run_1/1/0", "tool": "wipe", "arguments": {"n": 1}}),
        ("usage", {"input_tokens": 7, "output_tokens": 5, "cost_microusd": 1200}),
    )
    for told in ("waiting for an approval", "run_1 · a · t", "12 tokens", "$0.0012", '✓ calculator {"result": 2} (7 ms)', "→ wipe"):
        assert told in live, told
    assert "`bulkhead approvals approve run_1/1/0`" in live


def test_a_live_view_shows_the_last_lines_of_a_long_text():
    live, _ = shown(("message_delta", {"message_id": "m", "text": "".join(f"line {n}\n" for n in range(900)) + f"{'long ' * 60}end"}))
    assert ("line 899" in live, "line 880" in live, live.rstrip().endswith("end"), live.count("\n") <= 20) == (True, False, True, True)


def test_a_live_view_ends_with_the_answer_and_takes_back_what_is_void():
    events = [
        ("message_delta", {"message_id": "m", "text": "void"}),
        ("attempt_superseded", {"from_seq": 1}),
        ("message_delta", {"message_id": "n", "text": f"good {HOSTILE}"}),
    ]
    live, _ = shown(*events)
    assert "void" not in live
    assert "good ]0;owned" in live
    assert "\x1b" not in live
    _, whole = shown(*events, ("run_finished", {"output_text": "good", "usage": {"input_tokens": 1, "output_tokens": 1}}))
    assert whole.splitlines()[-1] == "good"
    assert "✓ finished" in whole
    assert "4.0 s" in whole
    _, failed = shown(("run_failed", {"error": {"message": "It broke."}}))
    assert "✗ It broke." in failed


def test_an_id_and_a_status_are_whole_on_a_narrow_terminal():
    console = Console(file=io.StringIO(), width=60)
    run_id = f"run_{'7' * 32}"
    console.print(table_of(("RUN", "STATUS", "ANSWER"), [(run_id, "succeeded", "a long answer " * 9), ("run_1", "failed", None)], room=60))
    lines = console.file.getvalue().splitlines()
    assert lines[1].split()[:2] == [run_id, "succeeded"]
    assert lines[1].rstrip().endswith("…")
    assert len(lines) == 3
