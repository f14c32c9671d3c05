"""What is sent for an answer, in any dialect: whole bodies, and streams as lists of server-sent events, with the faults built in."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from services.simulator.faults import Faults, count
from services.simulator.replies import Reply

KEEPALIVE = b": keep-alive\n\n"


class Ending(StrEnum):
    """How the connection ends after the last event or byte."""

    ORDERLY = "orderly"
    CUT = "cut"
    STALL = "stall"


@dataclass(frozen=True, slots=True)
class Head:
    """What every part of one answer repeats. `created` is the epoch in seconds.

    `cached_tokens` and `cache_write_tokens` are parts of `prompt_tokens`.
    """

    id: str
    model: str
    created: int
    prompt_tokens: int
    include_usage: bool = False
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    show_thinking: bool = False


@dataclass(frozen=True, slots=True)
class StreamPlan:
    """A stream to send. `tokens[i]` is how many completion tokens the client has once it has `events[i]`.

    `usage_sent` and `finish_reason` say what the client learns from the whole of it.
    """

    events: list[bytes]
    tokens: list[int]
    ending: Ending
    usage_sent: bool
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class BodyPlan:
    """A whole body to send; of it only the first `send_bytes`, where it ends in another way than orderly."""

    body: bytes
    send_bytes: int
    ending: Ending
    usage_sent: bool
    finish_reason: str | None


@dataclass(frozen=True, slots=True)
class Script:
    """A stream in one dialect before any fault. `tokens[i]` counts the tokens of all `pieces` up to `pieces[i]`.

    A piece is all events of one step of the answer. `arguments` are the positions in `pieces` of the first and the last that hold
    arguments of a tool call; `total_tokens` counts thoughts too that make no event. The last four are events that faults put in.
    """

    opening: list[bytes]
    pieces: list[bytes]
    tokens: list[int]
    closing: list[bytes]
    total_tokens: int
    usage_sent: bool
    finish_reason: str | None
    arguments: tuple[int, int] | None
    error_event: bytes
    broken_event: bytes
    unknown_event: bytes
    role_event: bytes


def with_reply_faults(reply: Reply, faults: Faults) -> Reply:
    """The reply after the faults that change what the model says."""
    if "finish_without_content" in faults:
        return Reply((), "stop")
    kept = count(faults, "content_filter")
    return reply if kept is None else reply.cut(kept, "content_filter", always=True)


def argument_range(pieces: Sequence[object], is_arguments: Sequence[bool]) -> tuple[int, int] | None:
    """First and last position that holds arguments, None where no piece does."""
    if True not in is_arguments:
        return None
    last = len(pieces) - 1 - is_arguments[::-1].index(True)
    return is_arguments.index(True), last


def error_plan(body: bytes) -> BodyPlan:
    """A whole body that is an error although the status is 200."""
    return BodyPlan(body, len(body), Ending.ORDERLY, usage_sent=False, finish_reason=None)


def is_error_body(faults: Faults) -> bool:
    """Whether a whole answer is an error inside a 200."""
    return "error_body" in faults or "error_event_after" in faults


def body_plan(body: bytes, usage_sent: bool, finish_reason: str | None, faults: Faults) -> BodyPlan:
    """The whole body with the faults that break it off or spoil its bytes."""
    if not faults:
        return BodyPlan(body, len(body), Ending.ORDERLY, usage_sent, finish_reason)
    if "empty_body" in faults:
        return BodyPlan(b"", 0, Ending.ORDERLY, usage_sent=False, finish_reason=None)
    if "html_body" in faults:
        return error_plan(HTML_PAGE)
    if "malformed_json" in faults or "end_after" in faults:
        return error_plan(body[: len(body) * 2 // 3])
    for name, ending in (("cut_after", Ending.CUT), ("cut_in_arguments", Ending.CUT), ("stall_after", Ending.STALL)):
        if name in faults:
            return BodyPlan(body, len(body) // 2, ending, usage_sent=False, finish_reason=None)
    if "invalid_utf8" in faults:
        return error_plan(body[:-1] + b',"odd":"\xff\xfe\xc3("}')
    if "nul_bytes" in faults:
        return error_plan(body[:-1] + b',"odd":"\x00\x00"}')
    if "bom" in faults:
        body = _BOM + body
    return BodyPlan(body, len(body), Ending.ORDERLY, usage_sent, finish_reason)


HTML_PAGE = b"<html><head><title>502 Bad Gateway</title></head><body><center><h1>502 Bad Gateway</h1></center></body></html>\r\n"
_BOM = b"\xef\xbb\xbf"


def assemble(script: Script, faults: Faults) -> StreamPlan:
    """The stream that a script and the faults make together."""
    if faults and (broken_off := _broken_off(script, faults)):
        return broken_off
    plan = StreamPlan(
        [*script.opening, *script.pieces, *script.closing],
        [*(0 for _ in script.opening), *script.tokens, *(script.total_tokens for _ in script.closing)],
        Ending.ORDERLY,
        script.usage_sent,
        script.finish_reason,
    )
    return _with_odd_events(plan, script, len(script.opening), faults) if faults else plan


def _broken_off(script: Script, faults: Faults) -> StreamPlan | None:
    """The stream up to the place where a fault ends it, None where none does. 0 tokens means not even the first event."""
    if "empty_body" in faults:
        return StreamPlan([], [], Ending.ORDERLY, usage_sent=False, finish_reason=None)
    if "html_body" in faults:
        return StreamPlan([HTML_PAGE], [0], Ending.ORDERLY, usage_sent=False, finish_reason=None)
    if "cut_in_arguments" in faults and script.arguments is not None:
        return _cut_in_arguments(script, script.arguments, str(faults["cut_in_arguments"]), faults)
    for name, ending in (
        ("cut_after", Ending.CUT),
        ("stall_after", Ending.STALL),
        ("end_after", Ending.ORDERLY),
        ("error_event_after", Ending.ORDERLY),
    ):
        wanted = count(faults, name)
        if wanted is None:
            continue
        kept = script.pieces[:wanted]
        opening = script.opening if wanted else []
        closing = [script.error_event] if name == "error_event_after" else []
        last = script.tokens[len(kept) - 1] if kept else 0
        tokens = [*(0 for _ in opening), *script.tokens[: len(kept)], *(last for _ in closing)]
        plan = StreamPlan([*opening, *kept, *closing], tokens, ending, usage_sent=False, finish_reason=None)
        return _with_odd_events(plan, script, len(opening), faults)
    return None


def _cut_in_arguments(script: Script, found: tuple[int, int], where: str, faults: Faults) -> StreamPlan:
    """A cut before the first byte of a tool call's arguments, inside them, or after the last, before the finish."""
    first, last = found
    if where == "before":
        kept = script.pieces[:first]
    elif where == "after":
        kept = script.pieces[: last + 1]
    elif first < last:
        kept = script.pieces[: (first + last) // 2 + 1]
    else:
        # Arguments that come in one event are cut in the middle of its bytes.
        kept = [*script.pieces[:first], script.pieces[first][: len(script.pieces[first]) * 2 // 3]]
    tokens = [*(0 for _ in script.opening), *script.tokens[: len(kept)]]
    plan = StreamPlan([*script.opening, *kept], tokens, Ending.CUT, usage_sent=False, finish_reason=None)
    return _with_odd_events(plan, script, len(script.opening), faults)


def _with_odd_events(plan: StreamPlan, script: Script, opening: int, faults: Faults) -> StreamPlan:
    """The stream with the faults that add or change single events; `opening` events come before the first token's."""
    events, tokens = list(plan.events), list(plan.tokens)
    padding = count(faults, "huge_event")
    if padding and events:
        position = min(opening, len(events) - 1)
        events[position] = events[position].replace(b"data: {", b'data: {"padding":"' + b"x" * padding + b'",', 1)
    for name, event in (
        ("malformed_json", script.broken_event),
        ("unknown_event", script.unknown_event),
        ("invalid_utf8", b'data: {"odd":"\xff\xfe\xc3("}\n\n'),
        ("nul_bytes", b'data: {"odd":"\x00\x00"}\n\n'),
    ):
        after = count(faults, name)
        if after is not None:
            position = min(opening + after, len(events))
            events.insert(position, event)
            tokens.insert(position, tokens[position - 1] if position else 0)
    repeated = count(faults, "duplicate_chunk")
    if repeated is not None and opening + repeated <= len(events):
        position = opening + repeated - 1
        # A piece may be several events; its last is what it adds.
        event = events[position]
        events.insert(position + 1, event[event.rfind(b"\n\n", 0, -2) + 2 :] if b"\n\n" in event[:-2] else event)
        tokens.insert(position, tokens[position])
    roles = count(faults, "role_chunks")
    if roles:
        events[opening:opening] = [script.role_event] * roles
        tokens[opening:opening] = [0] * roles
    if "keepalive" in faults:
        events = [KEEPALIVE + event for event in events]
    if "crlf" in faults:
        events = [event.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n") for event in events]
    if "bom" in faults and events:
        events[0] = _BOM + events[0]
    return replace(plan, events=events, tokens=tokens)
