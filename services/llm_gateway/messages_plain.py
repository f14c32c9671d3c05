"""What only the Messages API takes, and a canonical request without it, for targets that speak OpenAI's API."""

from collections.abc import Iterator, Mapping
from typing import Any

from services.llm_gateway.canonical_key import digest_of
from services.llm_gateway.chat import text_of
from services.llm_gateway.messages_shape import BLOCKS, EXTRAS, OWN_FIELDS, RESULT_EXTRAS, unfit
from services.llm_gateway.registry import Deployment

# Extras without which the request would be another one; the rest are hints and bookkeeping.
_ESSENTIAL = ("mcp_servers", "container")
# OpenAI's bound for `user`; coding agents send more than twice as much as metadata.user_id.
MAX_USER = 64
_PARTS = frozenset({"text", "image_url", "input_audio", "file", "refusal", "video_url"})
# Budgets of thinking as efforts, for targets that take those.
_EFFORTS = ((16_000, "high"), (4_000, "medium"), (0, "low"))


def needs_of(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What of a canonical request no other API can take, as (where, what)."""
    for number, tool in enumerate(body.get("tools") or ()):
        if "function" not in tool and "custom" not in tool:
            yield f"tools.{number}", f"the tool {text_of(tool.get('type'))} of Anthropic's"
    extras = body.get(EXTRAS)
    if isinstance(extras, Mapping):
        for name in _ESSENTIAL:
            if extras.get(name):
                yield name, f"{name} of the Messages API"
    for number, message in enumerate(body["messages"]):
        own = message.get(OWN_FIELDS)
        kept = own.get(BLOCKS) if isinstance(own, Mapping) else None
        for block in kept if isinstance(kept, list) else ():
            if block.get("type") not in ("text", "thinking", "redacted_thinking", "tool_use"):
                yield f"messages.{number}.content", f"a block of type {text_of(block.get('type'))}"
                break
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            if part.get("type") not in _PARTS and _plain_part(part) is None:
                yield f"messages.{number}.content", f"a block of type {text_of(part.get('type'))}"
                break


def plain(body: Mapping[str, Any], deployment: Deployment) -> Mapping[str, Any]:
    """The request as OpenAI's API takes it; the same object where nothing has to change. Raises UpstreamFault (UNFIT).

    Images in results of tools follow in a user's message, for tool messages hold text alone there.
    """
    if EXTRAS not in body:
        return body
    for where, what in needs_of(body):
        raise unfit(f"only Anthropic's API takes {what}", where)
    made = {key: value for key, value in body.items() if key != EXTRAS}
    made["messages"] = _messages(body["messages"])
    if body.get("tools"):
        made["tools"] = [{"type": "function", "function": tool["function"]} if "function" in tool else tool for tool in body["tools"]]
    if len(text_of(body.get("user"))) > MAX_USER:
        made["user"] = digest_of("user", body["user"])
    thinks = deployment.reasoning or deployment.capabilities.reasoning
    if thinks and "reasoning_effort" not in made and (effort := _effort(body[EXTRAS])):
        made["reasoning_effort"] = effort
    return made


def _messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []  # what the results of the tools of one turn show
    for message in messages:
        role, content = message["role"], message.get("content")
        if role != "tool" and shown:
            made.append({"role": "user", "content": shown})
            shown = []
        left_out = {"thinking_blocks", "reasoning_content", OWN_FIELDS, *(RESULT_EXTRAS if role == "tool" else ())}
        kept = {key: value for key, value in message.items() if key not in left_out}
        if isinstance(content, list):
            parts = [found for part in content if (found := _plain_part(part)) is not None]
            if role == "tool":
                shown += [part for part in parts if part["type"] != "text"]
                texts = [part["text"] for part in parts if part["type"] == "text"]
                kept["content"] = "\n\n".join(texts) or ("The result follows." if shown else "")
            else:
                kept["content"] = parts
        if role == "tool" and message.get("is_error"):
            kept["content"] = f"Error: {kept['content']}"
        if kept.get("tool_calls"):
            kept["tool_calls"] = [{key: call[key] for key in ("id", "type", "function") if key in call} for call in kept["tool_calls"]]
        made.append(kept)
    if shown:
        made.append({"role": "user", "content": shown})
    return made


def _plain_part(part: Mapping[str, Any]) -> dict[str, Any] | None:
    kind = part.get("type")
    if kind == "text":
        return {"type": "text", "text": text_of(part.get("text"))}
    if kind == "image_url":
        return {"type": "image_url", "image_url": part.get("image_url")}
    if kind == "document":
        return _file(part)
    return dict(part) if kind in _PARTS else None


def _file(part: Mapping[str, Any]) -> dict[str, Any] | None:
    source = part.get("source")
    source = source if isinstance(source, Mapping) else {}
    if source.get("type") == "text":
        return {"type": "text", "text": text_of(source.get("data"))}
    if source.get("type") == "base64":
        data = f"data:{text_of(source.get('media_type'))};base64,{text_of(source.get('data'))}"
        return {"type": "file", "file": {"filename": text_of(part.get("title")) or "document.pdf", "file_data": data}}
    return None


def _effort(extras: Any) -> str:
    extras = extras if isinstance(extras, Mapping) else {}
    config, thinking = extras.get("output_config"), extras.get("thinking")
    if isinstance(config, Mapping) and isinstance(config.get("effort"), str):
        return {"max": "xhigh"}.get(config["effort"], config["effort"])
    if not isinstance(thinking, Mapping) or thinking.get("type") not in ("enabled", "adaptive"):
        return ""
    budget = thinking.get("budget_tokens")
    return next(effort for least, effort in _EFFORTS if budget >= least) if isinstance(budget, int) else "medium"
