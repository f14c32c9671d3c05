"""What of an application's messages a run is given: all of them, or what is new on a thread that has the rest."""

from collections.abc import Sequence
from dataclasses import replace

from services.gateway.client_tools import Call
from services.gateway.inputs import Said as Told
from services.gateway.inputs import check_answers, check_images, checked_call, checked_id, start_of_new
from services.gateway.refusals import InvalidBody
from services.gateway.surfaces.ag_ui.images import image_of
from services.gateway.surfaces.ag_ui.messages import Said

_CALL_NAMES = ("id", "function.name", "function.arguments")
_ONLY_SHOWN = ("activity", "reasoning")


def whole(messages: Sequence[Said]) -> list[Told]:
    """All that users and assistants said, with the calls that the application made. Raises InvalidBody."""
    return _checked(messages, _told(messages), whole_thread=True)


def new(messages: Sequence[Said]) -> list[Told]:
    """What comes last: the results of calls, and what the user said behind them. Raises InvalidBody."""
    told = _told(messages)
    return _checked(messages, told[start_of_new(told) :], whole_thread=False)


def _checked(messages: Sequence[Said], told: list[Told], *, whole_thread: bool) -> list[Told]:
    # Only now: of a long conversation most images were read before.
    pictures = {f"messages[{at}]": one.images for at, one in enumerate(messages) if one.images}
    told = [replace(one, images=tuple(image_of(part, where) for where, part in pictures.get(one.where, ()))) for one in told]
    if not told or told[-1].role not in ("user", "tool"):
        raise InvalidBody.field("messages", "the last message must be of role user, or a result of role tool, where nothing is resumed")
    if told[-1].role == "user" and not told[-1].text.strip() and not told[-1].images:
        raise InvalidBody.field(f"{told[-1].where}.content", "must have a text or an image")
    check_images(told)
    check_answers(told, "toolCallId", whole=whole_thread, wrong=InvalidBody)
    return told


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
    # A user who says nothing is refused where that is what is new, and passed over before.
    silent = {f"messages[{at}]" for at, one in enumerate(messages) if one.role == "user" and not one.text.strip() and not one.images}
    return [one for one in found[:-1] if one.where not in silent] + found[-1:]


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
