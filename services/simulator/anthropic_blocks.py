"""The content blocks of Anthropic's messages: text, images, tool calls and results, thinking; and where a prompt may be cached."""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from services.simulator.chat_request import Message, PastCall
from services.simulator.prompt_cache import Boundary
from services.simulator.refusals import Refused
from services.simulator.signatures import is_signed

_CALL_ID = re.compile(r"[a-zA-Z0-9_-]{1,256}")
# Blocks of tools that run on Anthropic's side; they are carried along and never made here.
_SERVER_BLOCKS = re.compile(
    r"server_tool_use|container_upload|search_result|(?:web|code|bash|text|tool|mcp|advisor)_\w+_tool_result|mcp_tool_\w+"
)


class BlockReader:
    """The content of one message, block by block; raises Refused (400) at the first that is wrong."""

    def __init__(self, where: str, role: str):
        self._where = where
        self._role = role
        self._texts: list[str] = []
        self.images = 0
        self.calls: list[PastCall] = []
        self.results: list[Message] = []
        self.kinds: list[str] = ["text"]

    @property
    def text(self) -> str:
        """All text blocks."""
        return "\n".join(self._texts)

    def read(self, content: Any) -> None:
        """Take in the content: a string or a list of blocks."""
        if isinstance(content, str):
            if not content and self._role == "user":
                raise Refused(f"{self._where}: user messages must have non-empty content")
            self._texts.append(content)
            return
        if content is None:
            raise Refused(f"{self._where}.content: Field required")
        if not isinstance(content, list) or not content:
            raise Refused(f"{self._where}.content: Input should be a valid string or a list of at least one block")
        self.kinds = []
        for index, block in enumerate(content):
            kind = block.get("type") if isinstance(block, dict) else None
            if not isinstance(kind, str):
                raise Refused(f"{self._where}.content.{index}.type: Field required")
            self.kinds.append(kind)
            self._block(block, kind, f"{self._where}.content.{index}")

    def _block(self, block: Mapping[str, Any], kind: str, where: str) -> None:
        if kind == "text":
            text = _string(block, "text", f"{where}.text")
            if not text:
                raise Refused("messages: text content blocks must be non-empty")
            self._texts.append(text)
        elif kind in ("image", "document"):
            if not isinstance(block.get("source"), dict):
                raise Refused(f"{where}.{kind}.source: Field required")
            self.images += 1
        elif kind == "tool_use" and self._role == "assistant":
            self.calls.append(_past_call(block, where))
        elif kind == "tool_result" and self._role == "user":
            self.results.append(_tool_result(block, where))
        elif kind == "thinking" and self._role == "assistant":
            thinking = _string(block, "thinking", f"{where}.thinking.thinking")
            if not is_signed(thinking, _string(block, "signature", f"{where}.thinking.signature")):
                raise Refused(f"{where}: Invalid `signature` in `thinking` block")
        elif kind == "redacted_thinking" and self._role == "assistant":
            _string(block, "data", f"{where}.redacted_thinking.data")
        elif not _SERVER_BLOCKS.fullmatch(kind):
            raise Refused(f"{where}: Input tag '{kind}' found using 'type' does not match any of the expected tags")


def _string(block: Mapping[str, Any], name: str, where: str) -> str:
    value = block.get(name)
    if not isinstance(value, str):
        raise Refused(f"{where}: Field required")
    return value


def _past_call(block: Mapping[str, Any], where: str) -> PastCall:
    call_id, name, arguments = block.get("id"), block.get("name"), block.get("input")
    if not isinstance(call_id, str) or not _CALL_ID.fullmatch(call_id):
        raise Refused(f"{where}.tool_use.id: String should match pattern '^[a-zA-Z0-9_-]+$'")
    if not isinstance(name, str) or not name:
        raise Refused(f"{where}.tool_use.name: Field required")
    if not isinstance(arguments, dict):
        raise Refused(f"{where}.tool_use.input: Input should be a valid dictionary")
    try:
        return PastCall(call_id, name, arguments, orjson.dumps(arguments).decode())
    except orjson.JSONEncodeError as error:
        raise Refused(f"{where}.tool_use.input: {error}") from None


def _tool_result(block: Mapping[str, Any], where: str) -> Message:
    call_id = _string(block, "tool_use_id", f"{where}.tool_result.tool_use_id")
    content = block.get("content")
    images = 0
    if content is None or isinstance(content, str):
        text = content or ""
    elif isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content if part.get("type") == "text"]
        if not all(isinstance(one, str) for one in texts):
            raise Refused(f"{where}.tool_result.content: text blocks must have a 'text'")
        text = "\n".join(one for one in texts if isinstance(one, str))
        images = len(content) - len(texts)
    else:
        raise Refused(f"{where}.tool_result.content: Input should be a valid string or a list of blocks")
    if block.get("is_error") is True and not text.lower().startswith("error"):
        text = f"error: {text}"
    return Message("tool", text, images, (), call_id)


def boundaries(body: Mapping[str, Any]) -> Sequence[Boundary]:
    """The ends of all blocks in the order that Anthropic caches by: tools, system, messages."""
    found: list[Boundary] = []
    digest = hashlib.blake2b(digest_size=16)
    size_tokens = 0
    for part, marked in _cacheable(body):
        told = orjson.dumps(part)
        digest.update(told + b"\x00")
        size_tokens += (len(told) + 3) // 4
        found.append(Boundary(digest.digest(), size_tokens, marked))
    if found and isinstance(body.get("cache_control"), dict):
        # Asked for the whole request: the last block is marked.
        found[-1] = Boundary(found[-1].digest, found[-1].tokens, True)
    return found


def _cacheable(body: Mapping[str, Any]) -> Iterator[tuple[Any, bool]]:
    for tool in body.get("tools") or ():
        yield _unmarked(tool)
    system = body.get("system")
    for part in [{"type": "text", "text": system}] if isinstance(system, str) else system or ():
        yield _unmarked(part)
    for message in body["messages"]:
        content = message["content"]
        for block in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            part, marked = _unmarked(block)
            yield (message["role"], part), marked


def _unmarked(block: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    if "cache_control" not in block:
        return block, False
    return {name: value for name, value in block.items() if name != "cache_control"}, isinstance(block["cache_control"], dict)
