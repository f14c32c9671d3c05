"""Chat messages as the system prompt and the alternating turns of the Messages API."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.common.errors import InvalidInput
from services.llm_gateway.messages_shape import RESULT_EXTRAS, assistant_blocks, blocks_of, tool_id, unfit

_SYSTEM = frozenset({"system", "developer"})
# The API wants a user's turn first; chats that open with a greeting of the assistant have none.
_OPENING = "(The assistant speaks first.)"


def turns_of(
    messages: Sequence[Mapping[str, Any]], *, later_system: bool, prefill: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """System blocks, and turns. Results of tools that follow each other are one user's turn.

    System messages behind the first turn stay in their place where the model takes them there (`later_system`); elsewhere they join the
    system prompt. Raises UpstreamFault (UNFIT) where the last message is the assistant's and the model has no `prefill`.
    """
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role")
        if role in _SYSTEM:
            blocks = blocks_of(message.get("content"), f"{where}.content")
            if later_system and turns and blocks:
                turns.append({"role": "system", "content": blocks})
            else:
                system += blocks
        elif role == "assistant":
            _add(turns, "assistant", assistant_blocks(message, where))
        elif role == "tool":
            _add(turns, "user", [_result(message, where)])
        elif role == "user":
            _add(turns, "user", blocks_of(message.get("content"), f"{where}.content"))
        else:
            raise unfit("the Messages API has no messages of role function", f"{where}.role")
    if not turns and system:
        turns, system = [{"role": "user", "content": system}], []
    if not turns:
        raise InvalidInput.field("messages", "must hold text, an image or a tool result")
    if turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": [{"type": "text", "text": _OPENING}]})
    if turns[-1]["role"] == "assistant" and _is_prefill(turns[-1]["content"]):
        if not prefill:
            raise unfit("this model does not continue a message of the assistant; the last message must be the user's", "messages")
        _trim(turns[-1]["content"])
    for turn in turns:
        turn["content"] = _short(turn["content"])
    return system, turns


def _add(turns: list[dict[str, Any]], role: str, blocks: list[dict[str, Any]]) -> None:
    if not blocks:
        return
    if turns and turns[-1]["role"] == role:
        turns[-1]["content"] += blocks
    else:
        turns.append({"role": role, "content": blocks})


def _result(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    made: dict[str, Any] = {"type": "tool_result", "tool_use_id": tool_id(message.get("tool_call_id"))}
    content = message.get("content")
    if isinstance(content, list):
        made["content"] = blocks_of(content, f"{where}.content")
    elif content:
        made["content"] = content
    return {**made, **{key: message[key] for key in RESULT_EXTRAS if message.get(key) is not None}}


def _is_prefill(blocks: list[dict[str, Any]]) -> bool:
    """A turn that ends with a server tool's block goes on by itself (pause_turn); only text is a prefill."""
    return blocks[-1].get("type") == "text"


def _trim(blocks: list[dict[str, Any]]) -> None:
    """The API refuses a prefill that ends with blanks."""
    while blocks and blocks[-1].get("type") == "text":
        text = blocks[-1]["text"].rstrip()
        if text:
            blocks[-1] = {**blocks[-1], "text": text}
            return
        blocks.pop()
    if not blocks:
        raise InvalidInput.field("messages", "must not end with a message of blanks alone")


def _short(blocks: list[dict[str, Any]]) -> Any:
    only = blocks[0]
    return only["text"] if len(blocks) == 1 and only.keys() == {"type", "text"} else blocks
