"""What a request needs of a deployment, and what is changed where one cannot take it as it stands.

needs = needs_of(call.body)                                   # once a call
fit = fit_of(deployment, needs, call.body, drop_params=registry.drop_params)
match fit.verdict: FITS, ADAPTED (send fit.body and say so), UNFIT (ask another; fit.reasons says why)

| the deployment cannot take     | adaptation                                                                                |
|--------------------------------|-------------------------------------------------------------------------------------------|
| a field of dropped_params      | left out                                                                                  |
| reasoning_effort, parallel_tool_calls, tool_choice auto | left out: hints that no answer is wrong without                  |
| tool_choice none               | left out together with the tools                                                          |
| another tool_choice            | left out with drop_params, else none: the caller counts on a call                         |
| json_schema                    | json_object, and the schema as an instruction                                             |
| system messages                | joined to the user's message that follows                                                 |
| an assistant message at the end| left out if it is empty, else none: the caller joins the answer to it                     |
| as many output tokens          | max_tokens as many as it can                                                              |
| tools, images, so long a prompt| none                                                                                      |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import orjson

from services.llm_gateway.registry import Deployment

# No text comes to fewer tokens than a token for so many characters, white space apart; what exceeds a window by this measure is
# not sent. Whatever is in doubt, the provider decides, and CONTEXT_WINDOW has its own fallbacks.
CHARACTERS_PER_TOKEN_AT_MOST = 8
_IMAGES = frozenset({"image_url", "input_image", "image"})
_SYSTEM = frozenset({"system", "developer"})
_HINTS = frozenset({"reasoning_effort", "parallel_tool_calls"})
_OUTPUT_FIELDS = ("max_completion_tokens", "max_tokens")


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Needs:
    """What a chat request asks of the model that answers it. `characters` is the length of its texts."""

    tools: bool = False
    tool_choice: str = ""  # none, auto or forced, where the request says
    hints: bool = False
    vision: bool = False
    json_schema: bool = False
    system_messages: bool = False
    prefill: bool = False
    output_tokens: int = 0
    characters: int = 0


class Verdict(Enum):
    """Whether a deployment can take a request."""

    FITS = "fits"
    ADAPTED = "adapted"
    UNFIT = "unfit"


@dataclass(slots=True, unsafe_hash=True)  # made for each call, and never changed: frozen costs four times as much
class Fit:
    """`body` is what to send, the request itself where nothing had to change. `reasons` name what was adapted, or what is missing."""

    verdict: Verdict
    body: Mapping[str, Any]
    reasons: tuple[str, ...] = ()


def needs_of(body: Mapping[str, Any]) -> Needs:
    """Looks at each message once, and into its parts only where it has any. The request has passed request_rules."""
    messages: Sequence[Mapping[str, Any]] = body.get("messages") or ()
    characters, system, tools, vision = 0, False, bool(body.get("tools") or body.get("functions")), False
    for message in messages:
        content, role = message.get("content"), message.get("role")
        if type(content) is str:
            characters += len(content)
        elif content:
            for part in content:
                text = part.get("text")
                if type(text) is str:
                    characters += len(text)
                elif part.get("type") in _IMAGES:
                    vision = True
        if role in _SYSTEM:
            system = True
        elif role == "tool" or message.get("tool_calls"):
            tools = True
    choice, shape = body.get("tool_choice"), body.get("response_format")
    return Needs(
        tools=tools,
        tool_choice="" if choice is None else choice if choice in ("none", "auto") else "forced",
        hints=not _HINTS.isdisjoint(body) and any(body.get(name) is not None for name in _HINTS),
        vision=vision,
        json_schema=shape is not None and shape.get("type") == "json_schema",
        system_messages=system,
        prefill=bool(messages) and messages[-1].get("role") == "assistant",
        output_tokens=body.get("max_completion_tokens") or body.get("max_tokens") or 0,
        characters=characters,
    )


def fit_of(deployment: Deployment, needs: Needs, body: Mapping[str, Any], *, drop_params: bool = False) -> Fit:
    """Whether `deployment` can take the request, with what has to change. Never changes `body` itself."""
    missing = _missing(deployment, needs, body, drop_params=drop_params)
    if missing:
        return Fit(Verdict.UNFIT, body, missing)
    changes = _Changes(body)
    can = deployment.capabilities
    if can.dropped_params:
        for name in can.dropped_params:
            if name in body:
                changes.drop(name, name)
    if needs.hints:
        if can.reasoning is False:
            changes.drop("reasoning_effort", "reasoning_effort")
        if can.parallel_tools is False or can.tools is False:
            changes.drop("parallel_tool_calls", "parallel_tool_calls")
    if needs.tool_choice and can.tool_choice is False:
        if needs.tool_choice == "none" and body.get("tools"):
            changes.drop("tools", "tools")
        changes.drop("tool_choice", "tool_choice")
    if needs.prefill and can.prefill is False:
        changes.messages = list(changes.messages[:-1])
        changes.reasons.append("prefill")
    if needs.json_schema and can.json_schema is False:
        changes.describe_schema()
    if can.system_messages is False and (needs.system_messages or changes.has_instruction):
        changes.join_system()
    if deployment.max_output_tokens and needs.output_tokens > deployment.max_output_tokens:
        changes.bound_output(deployment.max_output_tokens)
    return changes.fit()


def _missing(deployment: Deployment, needs: Needs, body: Mapping[str, Any], *, drop_params: bool) -> tuple[str, ...]:
    """What no adaptation makes up for."""
    can, found = deployment.capabilities, []
    if needs.tools and can.tools is False:
        found.append("tools")
    if needs.tool_choice == "forced" and can.tool_choice is False and not drop_params:
        found.append("tool_choice")
    if needs.vision and can.vision is False:
        found.append("vision")
    if needs.prefill and can.prefill is False and (body["messages"][-1].get("content") or body["messages"][-1].get("tool_calls")):
        found.append("prefill")
    most = deployment.max_input_tokens
    if most and needs.characters > most * CHARACTERS_PER_TOKEN_AT_MOST:
        found.append("context_window")
    return tuple(found)


class _Changes:
    """A copy of the request that is made when the first thing has to change."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body
        self._changed: dict[str, Any] | None = None
        self.messages: list[Mapping[str, Any]] = body.get("messages") or []
        self.reasons: list[str] = []
        self.has_instruction = False

    @property
    def _made(self) -> dict[str, Any]:
        if self._changed is None:
            self._changed = dict(self._body)
        return self._changed

    def drop(self, name: str, reason: str) -> None:
        if self._made.pop(name, None) is not None:
            self.reasons.append(reason)

    def describe_schema(self) -> None:
        """The schema as an instruction; JSON itself the provider still enforces."""
        schema = (self._body["response_format"].get("json_schema") or {}).get("schema") or {}
        text = (
            f"Answer with one JSON object that is valid against this JSON Schema, and with nothing else:\n{orjson.dumps(schema).decode()}"
        )
        self._made["response_format"] = {"type": "json_object"}
        messages = list(self.messages)
        at = next((n for n, m in enumerate(messages) if m.get("role") in _SYSTEM and type(m.get("content")) is str), None)
        if at is None:
            messages.insert(0, {"role": "system", "content": text})
        else:
            messages[at] = {**messages[at], "content": f"{messages[at]['content']}\n\n{text}"}
        self.messages = messages
        self.has_instruction = True
        self.reasons.append("json_schema")

    def join_system(self) -> None:
        """What the system says goes in front of what the user says next."""
        made: list[Mapping[str, Any]] = []
        held: list[Any] = []
        for message in self.messages:
            if message.get("role") in _SYSTEM:
                held += _parts(message.get("content"))
            elif held and message.get("role") == "user":
                made.append({**message, "content": _joined([*held, *_parts(message.get("content"))])})
                held = []
            elif held:
                made += [{"role": "user", "content": _joined(held)}, message]
                held = []
            else:
                made.append(message)
        if held:
            made.append({"role": "user", "content": _joined(held)})
        self.messages = made
        self.reasons.append("system_messages")

    def bound_output(self, most: int) -> None:
        for name in _OUTPUT_FIELDS:
            if (self._body.get(name) or 0) > most:
                self._made[name] = most
        self.reasons.append("max_tokens")

    def fit(self) -> Fit:
        if not self.reasons:
            return Fit(Verdict.FITS, self._body)
        made = self._made
        made["messages"] = self.messages
        return Fit(Verdict.ADAPTED, made, tuple(self.reasons))


def _parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content or ())


def _joined(parts: Sequence[Mapping[str, Any]]) -> Any:
    """Texts alone as one text, which every provider takes; anything else as parts."""
    if all(part.get("type") == "text" and set(part) <= {"type", "text"} for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return list(parts)
