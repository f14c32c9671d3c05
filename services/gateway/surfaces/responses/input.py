"""The input of a response: a text, messages, what calls of the client gave, or the answers to what it asked people for."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from services.common.errors import InvalidInput
from services.gateway.inputs import Image, Said, check_images, checked_call, checked_id, image_of_blob, image_of_url
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
_IMAGE_FIELDS = frozenset({"type", "image_url", "file_id", "detail"})
_CALL_FIELDS = frozenset({"type", "id", "call_id", "name", "arguments", "status", "parsed_arguments"})
_RESULT_FIELDS = frozenset({"type", "id", "call_id", "output", "status"})
# What the platform did and said itself, as it was answered, and what other platforms have their models think: whoever sends back all of an
# output sends these too.
PASSED_OVER = ("mcp_call", "mcp_approval_request", "reasoning")
_REFERENCE_FIELDS = frozenset({"type", "id"})
_CALL_NAMES = ("call_id", "name", "arguments")


class Decision(NamedTuple):
    """The answer of a person to an approval."""

    approval_id: str
    approve: bool
    reason: str


class Reference(NamedTuple):
    """An item that was said before; `where` names its id in the body."""

    item_id: str
    where: str


class Input:
    """`messages`, the last of the user or of calls that the client made; or `decisions`. `references` add nothing: what they name has to be
    in what the response goes on from. Raises InvalidInput."""

    def __init__(self, value: Any) -> None:
        self.messages: list[Said] = []
        self.decisions: list[Decision] = []
        self.references: list[Reference] = []
        if isinstance(value, str):
            self.messages.append(Said("user", value, "input"))
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
        last = self.messages[-1] if self.messages else Said("", "")
        if last.role not in ("user", "tool"):
            raise InvalidInput.field("input", "the last item must be a message of role user or a function_call_output")
        if last.role == "user" and not last.text.strip() and not last.images:
            raise InvalidInput.field(f"{last.where}.content", "must not be empty")
        check_images(self.messages)

    def _take(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise InvalidInput.field(where, "must be an object")
        # The SDK's type of a reference may go without saying so.
        kind = "item_reference" if item.get("type") is None and set(item) - {"type"} == {"id"} else item.get("type", "message")
        match kind:
            case "message":
                _only(item, _MESSAGE_FIELDS, where)
                role = item.get("role")
                if not isinstance(role, str) or role not in _ROLES:
                    raise InvalidInput.field(f"{where}.role", "must be one of system, developer, user, assistant")
                text, images = _content(item.get("content"), f"{where}.content", role)
                self.messages.append(Said(_ROLES[role], text, where, images))
            case "function_call":
                self._called(item, where)
            case "function_call_output":
                _only(item, _RESULT_FIELDS, where)
                call_id = checked_id(item.get("call_id"), f"{where}.call_id")
                text, _ = _content(item.get("output"), f"{where}.output", "tool")
                self.messages.append(Said("tool", text, where, answers=call_id))
            case "item_reference":
                _only(item, _REFERENCE_FIELDS, where)
                if not ids.run_of_item(_string(item, "id", where)):
                    raise ids.no_item(f"{where}.id")
                self.references.append(Reference(item["id"], f"{where}.id"))
            case _ if kind in PASSED_OVER:
                pass
            case "mcp_approval_response":
                _only(item, _DECISION_FIELDS, where)
                self.decisions.append(_decision(item, where))
            case _:
                raise unsupported(f"{where}.type", "only messages, calls of functions, their outputs and answers to approvals are taken")

    def _called(self, item: Mapping[str, Any], where: str) -> None:
        """A call belongs to what the assistant said before it, as do those behind it."""
        _only(item, _CALL_FIELDS, where)
        call = checked_call(item.get("call_id"), item.get("name"), item.get("arguments"), where, _CALL_NAMES, InvalidInput)
        if self.messages and self.messages[-1].role == "assistant":
            said = self.messages[-1]
            self.messages[-1] = replace(said, calls=(*said.calls, call), where=said.where if said.calls else where)
        else:
            self.messages.append(Said("assistant", "", where, calls=(call,)))


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


def _content(value: Any, where: str, role: str) -> tuple[str, tuple[Image, ...]]:
    if isinstance(value, str):
        return value, ()
    if not isinstance(value, list):
        raise InvalidInput.field(where, "must be a text or a list of parts")
    kinds = _TEXTS.get(role, ("input_text",))
    texts, images = [], []
    for index, part in enumerate(value):
        at = f"{where}[{index}]"
        if not isinstance(part, dict):
            raise InvalidInput.field(at, "must be an object")
        match part.get("type"):
            case "input_image" if role == "user":
                images.append(_image(part, at))
            case "input_file":
                raise unsupported(f"{at}.type", "files are not read by agents here; ingest a document, and images are input_image")
            case "refusal" if role == "assistant":
                texts.append(_string(part, "refusal", at))
            case kind if kind in kinds:
                _only(part, _PART_FIELDS | {"parsed"}, at)
                texts.append(_string(part, "text", at))
            case _:
                taken = (*kinds, "input_image") if role == "user" else kinds
                raise unsupported(f"{at}.type", f"only parts of type {' or '.join(taken)} are taken")
    return "".join(texts), tuple(images)


def _string(part: Mapping[str, Any], name: str, at: str) -> str:
    if not isinstance(part.get(name), str):
        raise InvalidInput.field(f"{at}.{name}", "must be a string")
    return part[name]


def _image(part: Mapping[str, Any], at: str) -> Image:
    """An image that comes along, or one that was kept before; `file_id` is the id of a blob."""
    _only(part, _IMAGE_FIELDS, at)
    url, file_id, detail = part.get("image_url"), part.get("file_id"), part.get("detail")
    if (url is None) == (file_id is None):
        raise InvalidInput.field(at, "must have one of image_url and file_id")
    return image_of_blob(file_id, f"{at}.file_id", detail) if url is None else image_of_url(url, f"{at}.image_url", detail)
