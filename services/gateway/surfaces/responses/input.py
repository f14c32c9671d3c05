"""The input of a response: a text, messages, or the answers to what it asked for."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from services.common.errors import InvalidInput
from services.gateway.surfaces.openai.fields import unsupported
from services.gateway.surfaces.responses import ids

MOST_ITEMS = 1000
MOST_REASON = 1000
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
# What an item of ours has beside its content; whoever sends back what was answered sends these too.
_MESSAGE_FIELDS = frozenset({"type", "role", "content", "id", "status", "phase"})
_DECISION_FIELDS = frozenset({"type", "approval_request_id", "approve", "reason", "id", "request_id"})
_TEXTS = {"assistant": ("output_text", "input_text")}
_PART_FIELDS = frozenset({"type", "text", "annotations", "logprobs"})


class Decision(NamedTuple):
    """The answer of a person to an approval."""

    approval_id: str
    approve: bool
    reason: str


class Input:
    """`messages` as (role, text), the last of the user; or `decisions`. Raises InvalidInput."""

    def __init__(self, value: Any) -> None:
        self.messages: list[tuple[str, str]] = []
        self.decisions: list[Decision] = []
        if isinstance(value, str):
            self.messages.append(("user", value))
            if not value.strip():
                raise InvalidInput.field("input", "must not be empty")
            return
        if value is None:
            raise InvalidInput.field("input", "is required")
        if not isinstance(value, list) or not value:
            raise InvalidInput.field("input", "must be a text or a list of at least one item")
        if len(value) > MOST_ITEMS:
            raise InvalidInput.field("input", f"must be at most {MOST_ITEMS} items")
        for index, item in enumerate(value):
            self._take(item, f"input[{index}]")
        if self.decisions and self.messages:
            raise unsupported("input", "an answer to an approval comes without anything else")
        if self.decisions:
            return
        if self.messages[-1][0] != "user":
            raise InvalidInput.field("input", "the last message must be of role user")
        if not self.messages[-1][1].strip():
            raise InvalidInput.field(f"input[{len(value) - 1}].content", "must not be empty")

    def _take(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise InvalidInput.field(where, "must be an object")
        match item.get("type", "message"):
            case "message":
                _only(item, _MESSAGE_FIELDS, where)
                role = item.get("role")
                if not isinstance(role, str) or role not in _ROLES:
                    raise InvalidInput.field(f"{where}.role", "must be one of system, developer, user, assistant")
                self.messages.append((_ROLES[role], _content(item.get("content"), f"{where}.content", role)))
            case "mcp_approval_response":
                _only(item, _DECISION_FIELDS, where)
                self.decisions.append(_decision(item, where))
            case _:
                raise unsupported(f"{where}.type", "only messages and answers to approvals are taken")


def _only(given: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            raise unsupported(f"{where}.{str(name)[:64]}")


def _decision(item: Mapping[str, Any], where: str) -> Decision:
    question, approve, reason = item.get("approval_request_id"), item.get("approve"), item.get("reason") or ""
    if not isinstance(question, str):
        raise InvalidInput.field(f"{where}.approval_request_id", "must be a string")
    if not isinstance(approve, bool):
        raise InvalidInput.field(f"{where}.approve", "must be a boolean")
    if not isinstance(reason, str) or len(reason) > MOST_REASON:
        raise InvalidInput.field(f"{where}.reason", f"must be a string of at most {MOST_REASON} characters")
    return Decision(ids.approval_id_of(question), approve, reason)


def _content(value: Any, where: str, role: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidInput.field(where, "must be a text or a list of parts")
    kinds = _TEXTS.get(role, ("input_text",))
    parts = []
    for index, part in enumerate(value):
        at = f"{where}[{index}]"
        if not isinstance(part, dict):
            raise InvalidInput.field(at, "must be an object")
        if part.get("type") not in kinds:
            raise unsupported(f"{at}.type", f"only parts of type {' or '.join(kinds)} are taken")
        _only(part, _PART_FIELDS, at)
        if not isinstance(part.get("text"), str):
            raise InvalidInput.field(f"{at}.text", "must be a string")
        parts.append(part["text"])
    return "".join(parts)
