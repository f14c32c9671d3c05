"""What of an application's messages a run is given: all of them, or what is new on a thread that has the rest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from services.common.errors import InvalidInput
from services.gateway.client_tools import Call
from services.gateway.inputs import MOST_IMAGES, check_answers, check_images, checked_call, checked_id, start_of_new
from services.gateway.inputs import Said as Told
from services.gateway.refusals import InvalidBody
from services.gateway.surfaces.ag_ui.images import image_of
from services.gateway.surfaces.ag_ui.messages import Said

_CALL_NAMES = ("id", "function.name", "function.arguments")
IMAGE = "image"
# The place of a part, and what it is.
Part = tuple[str, Mapping[str, Any]]


def whole(messages: Sequence[Said], left_out: Callable[[str], None]) -> list[Told]:
    """All that users and assistants said, with the calls that the application made. Of earlier messages images that cannot be read, or are
    too many, are `left_out`. Raises InvalidBody."""
    return _checked(messages, _told(messages), left_out, whole_thread=True)


def new(messages: Sequence[Said]) -> list[Told]:
    """What comes last: the results of calls, and what the user said behind them. Raises InvalidBody."""
    told = _told(messages)
    return _checked(messages, told[start_of_new(told) :], lambda kind: None, whole_thread=False)


def _checked(messages: Sequence[Said], told: list[Told], left_out: Callable[[str], None], *, whole_thread: bool) -> list[Told]:
    told = _with_images(told, {f"messages[{at}]": one.images for at, one in enumerate(messages) if one.images}, left_out)
    # A user who says nothing is refused where that is what is new, and passed over before.
    told = [one for one in told[:-1] if one.role != "user" or one.text.strip() or one.images] + told[-1:]
    if not told or told[-1].role not in ("user", "tool"):
        raise InvalidBody.field("messages", "the last message must be of role user, or a result of role tool, where nothing is resumed")
    if told[-1].role == "user" and not told[-1].text.strip() and not told[-1].images:
        raise InvalidBody.field(f"{told[-1].where}.content", "must have a text or an image")
    check_images(told)
    check_answers(told, "toolCallId", whole=whole_thread, wrong=InvalidBody)
    return told


def _with_images(told: list[Told], parts: Mapping[str, Sequence[Part]], left_out: Callable[[str], None]) -> list[Told]:
    """The messages with their images: those of the last one as they must be, and of earlier ones what there is room for, newest first."""
    found = list(told)
    for at in reversed(range(len(told))):
        last, images = at == len(told) - 1, []
        room = MOST_IMAGES - sum(len(one.images) for one in found)
        for number, (where, part) in enumerate(parts.get(told[at].where, ())):
            if not last and number >= room:
                left_out(IMAGE)
                break
            if last and number > MOST_IMAGES:
                # Refused below, and no more of them are decoded.
                break
            try:
                images.append(image_of(part, where))
            except InvalidInput:
                if last:
                    raise
                left_out(IMAGE)
        found[at] = replace(told[at], images=tuple(images))
    return found


def _told(messages: Sequence[Said]) -> list[Told]:
    """The messages that are for a model. Calls of the agent's own tools, which the platform made, are left out with what they gave."""
    results = {_answers(one) for one in messages if one.role == "tool" and not _of_platform(one)}
    found: list[Told] = []
    for at, one in enumerate(messages):
        where = f"messages[{at}]"
        match one.role:
            case "user":
                found.append(Told("user", one.text, where))
            case "assistant":
                calls = _calls(one, where, results)
                if one.text or calls:
                    found.append(Told("assistant", one.text, where, calls=calls))
            case "tool" if not _of_platform(one):
                found.append(Told("tool", one.text, where, answers=checked_id(_answers(one), f"{where}.toolCallId", InvalidBody)))
    return found


def _calls(message: Said, where: str, results: set[str]) -> tuple[Call, ...]:
    found = []
    for at, call in enumerate(message.wire.get("toolCalls", ())):
        if call["id"] in results:
            function, one = call["function"], f"{where}.toolCalls[{at}]"
            found.append(checked_call(call["id"], function["name"], function["arguments"], one, _CALL_NAMES, InvalidBody))
    return tuple(found)


def _answers(message: Said) -> str:
    return str(message.wire["toolCallId"])


def _of_platform(message: Said) -> bool:
    """Whether a result was told by the projection, which names it so."""
    return message.id == f"{_answers(message)}/result"
