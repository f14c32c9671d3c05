"""Content of Anthropic's Messages API and of OpenAI's chat messages, each as the other.

OpenAI's shape is the canonical one inside. What it has no word for stays beside it, so that Anthropic to Anthropic loses nothing:

- the request's key `anthropic`: fields that only the Messages API has, and `betas`; a request that came by that API always has it;
- content parts: `cache_control` and other members of the block; a block that has no like in OpenAI's shape stays as it is;
- assistant messages: `reasoning_content`, `thinking_blocks`, and `provider_specific_fields.content_blocks`, the blocks themselves
  where the plain message cannot be turned back into them (interleaved thinking, server tools, citations of an answer);
- tool messages: `is_error`, `cache_control`; tool calls and tools: whatever stands beside `function`.
"""

import mimetypes
import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

from services.llm_gateway.chat import text_of
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault

EXTRAS = "anthropic"
# Beta features that the caller opted in to, in the extras; they travel in the header anthropic-beta.
BETAS = "betas"
OWN_FIELDS = "provider_specific_fields"
BLOCKS = "content_blocks"
# Tool whose call is the answer, for models that know no structured output; its name says so to whoever reads a log.
JSON_TOOL = "bulkhead_json_answer"

# What tool results and tool calls of the Messages API hold beside what OpenAI's have.
RESULT_EXTRAS = ("is_error", "cache_control", "toolset_name")
CALL_EXTRAS = frozenset({"cache_control", "caller", "toolset_name"})

_CALL = frozenset({"type", "id", "name", "input"})
_THINKING = frozenset({"thinking", "redacted_thinking"})
_DATA_URL = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(?:;[\w.+=-]+)*?;base64,", re.A)
_TOOL_ID = re.compile(r"[^a-zA-Z0-9_-]")

FINISH_OF: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
STOP_OF: Mapping[str, str] = {"length": "max_tokens", "tool_calls": "tool_use", "function_call": "tool_use", "content_filter": "refusal"}
# Reasons that a finish_reason does not tell apart.
_EXACT_STOPS = frozenset({"pause_turn", "model_context_window_exceeded"})


def unfit(message: str, param: str) -> UpstreamFault:
    """This target cannot take the request as it stands; another one may."""
    return UpstreamFault(Failure(FailureClass.UNFIT, f"{param}: {message}", param=param))


def media_type_at(url: str) -> str:
    """The media type that the end of an address names, empty where it names none or the address is none."""
    try:
        path = urlsplit(url).path if "://" in url else ""
    except ValueError:
        return ""
    return mimetypes.guess_type(path)[0] or ""


def tool_id(value: Any) -> str:
    """The id of a tool call in the alphabet of the Messages API; the same id always becomes the same."""
    return _TOOL_ID.sub("_", text_of(value))


def part_of(block: Mapping[str, Any]) -> dict[str, Any]:
    """A content part from a block of a user turn or of a tool result."""
    if block.get("type") != "image":
        return dict(block)
    source = block.get("source")
    source = source if isinstance(source, Mapping) else {}
    if source.get("type") == "base64":
        url = f"data:{text_of(source.get('media_type'))};base64,{text_of(source.get('data'))}"
    elif source.get("type") == "url":
        url = text_of(source.get("url"))
    else:
        return dict(block)
    rest = {key: value for key, value in block.items() if key not in ("type", "source")}
    return {"type": "image_url", "image_url": {"url": url}, **rest}


def block_of(part: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """A block from a content part; None for empty text, which the Messages API refuses. Raises UpstreamFault (UNFIT)."""
    kind = part.get("type")
    if kind == "text" or kind == "refusal":
        text = text_of(part.get("text") if kind == "text" else part.get("refusal"))
        return {**{key: value for key, value in part.items() if key != "refusal"}, "type": "text", "text": text} if text else None
    if kind == "image_url":
        image = part.get("image_url")
        url = text_of(image.get("url")) if isinstance(image, Mapping) else text_of(image)
        rest = {key: value for key, value in part.items() if key not in ("type", "image_url")}
        return {"type": "image", "source": _source(url, "image/png"), **rest}
    if kind == "file":
        return _document(part, where)
    if kind in ("input_audio", "video_url"):
        raise unfit(f"this model's API takes no {kind}", where)
    return dict(part)


def _source(url: str, default: str) -> dict[str, Any]:
    found = _DATA_URL.match(url)
    if found is None:
        return {"type": "url", "url": url}
    return {"type": "base64", "media_type": found[1] or default, "data": url[found.end() :]}


def _document(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    file = part.get("file")
    file = file if isinstance(file, Mapping) else {}
    data = text_of(file.get("file_data"))
    if not data:
        raise unfit("a file by its id belongs to the provider that holds it", where)
    source = _source(data, "application/pdf")
    if source["type"] == "url":
        source = {"type": "base64", "media_type": "application/pdf", "data": data}
    rest = {key: value for key, value in part.items() if key not in ("type", "file")}
    named = {"title": file["filename"]} if isinstance(file.get("filename"), str) else {}
    return {"type": "document", "source": source, **named, **rest}


def parts_of(content: Any) -> Any:
    """The content of a user turn or a tool result in OpenAI's shape."""
    return [part_of(block) for block in content] if isinstance(content, list) else content


def blocks_of(content: Any, where: str) -> list[dict[str, Any]]:
    """The content of a chat message as blocks; none for an empty one."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if content else []
    found = (block_of(part, f"{where}[{number}]") for number, part in enumerate(content or ()))
    return [block for block in found if block is not None]


def arguments_of(arguments: Any) -> dict[str, Any]:
    """The input of a tool call. Arguments that are no JSON object (a model was cut off) are kept under one key."""
    if isinstance(arguments, Mapping):
        return dict(arguments)
    text = text_of(arguments)
    if not text.strip():
        return {}
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        value = text
    return value if isinstance(value, dict) else {"arguments": value}


def message_of(blocks: Sequence[Mapping[str, Any]], *, answer: bool) -> dict[str, Any]:
    """An assistant message. In an answer the content is one text, as clients of the OpenAI API expect it."""
    texts = [block for block in blocks if block.get("type") == "text"]
    thinking = [dict(block) for block in blocks if text_of(block.get("type")) in _THINKING]
    calls = [_call(block) for block in blocks if block.get("type") == "tool_use"]
    made: dict[str, Any] = {"role": "assistant"}
    simple = all(not (block.keys() - {"type", "text", "citations"}) and not block.get("citations") for block in texts)
    if answer or (simple and len(texts) <= 1):
        made["content"] = "".join(text_of(block.get("text")) for block in texts) if texts or not calls else None
    else:
        made["content"] = [dict(block) for block in texts]
    if calls:
        made["tool_calls"] = calls
    if thinking:
        made["thinking_blocks"] = thinking
        if reasoning := "".join(text_of(block.get("thinking")) for block in thinking):
            made["reasoning_content"] = reasoning
    strange = any(block.keys() - _CALL - CALL_EXTRAS for block in blocks if block.get("type") == "tool_use")
    if strange or not _in_order(blocks) or (answer and not (simple and len(texts) <= 1)):
        made[OWN_FIELDS] = {BLOCKS: [dict(block) for block in blocks]}
    return made


def _call(block: Mapping[str, Any]) -> dict[str, Any]:
    rest = {key: block[key] for key in CALL_EXTRAS & block.keys()}
    function = {"name": text_of(block.get("name")), "arguments": orjson.dumps(block.get("input") or {}).decode()}
    return {"id": text_of(block.get("id")), "type": "function", "function": function, **rest}


def _in_order(blocks: Sequence[Mapping[str, Any]]) -> bool:
    """Whether thinking, then text, then tool calls is all there is."""
    stages = {"thinking": 0, "redacted_thinking": 0, "text": 1, "tool_use": 2}
    last = 0
    for block in blocks:
        stage = stages.get(text_of(block.get("type")), -1)
        if stage < last:
            return False
        last = stage
    return True


def assistant_blocks(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The blocks of an assistant message.

    Blocks that came with the message are used only where its plain form says the same: a client may have edited that.
    """
    own = message.get(OWN_FIELDS)
    kept = own.get(BLOCKS) if isinstance(own, Mapping) else None
    if (
        isinstance(kept, list)
        and all(isinstance(block, Mapping) for block in kept)
        and _gist(message_of(kept, answer=True)) == _gist(message)
    ):
        return [dict(block) for block in kept if _signed(block)]
    thinking = message.get("thinking_blocks")
    blocks = [dict(block) for block in thinking if isinstance(block, Mapping) and _signed(block)] if isinstance(thinking, list) else []
    blocks += blocks_of(message.get("content") or message.get("refusal"), f"{where}.content")
    for call in message.get("tool_calls") or ():
        function = call.get("function")
        if not isinstance(function, Mapping):
            raise unfit("this model's API has function tools only", f"{where}.tool_calls")
        rest = {key: call[key] for key in CALL_EXTRAS & call.keys() if call[key] is not None}
        blocks.append(
            {
                "type": "tool_use",
                "id": tool_id(call.get("id")),
                "name": text_of(function.get("name")),
                "input": arguments_of(function.get("arguments")),
                **rest,
            }
        )
    return blocks


def _signed(block: Mapping[str, Any]) -> bool:
    """Whether the API takes the block: thinking of another model has no signature of its own."""
    return block.get("type") != "thinking" or bool(block.get("signature"))


def _gist(message: Mapping[str, Any]) -> tuple[str, list[Any]]:
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(text_of(part.get("text")) for part in content if isinstance(part, Mapping))
    calls = []
    for call in message.get("tool_calls") or ():
        function = call.get("function") or {}
        calls.append((call.get("id"), function.get("name"), arguments_of(function.get("arguments"))))
    return content or "", calls


def openai_usage(usage: Any) -> dict[str, Any] | None:
    """Usage in OpenAI's shape: cached tokens are a part of the prompt there. None where the counts are missing."""
    if not isinstance(usage, Mapping) or not isinstance(usage.get("input_tokens"), int) or not isinstance(usage.get("output_tokens"), int):
        return None
    read, written = _count(usage.get("cache_read_input_tokens")), _count(usage.get("cache_creation_input_tokens"))
    details = usage.get("output_tokens_details")
    thinking = _count(details.get("thinking_tokens")) if isinstance(details, Mapping) else 0
    kinds = usage.get("cache_creation")
    hour = _count(kinds.get("ephemeral_1h_input_tokens")) if isinstance(kinds, Mapping) else 0
    longer = {"cache_creation_1h_tokens": hour} if hour else {}
    prompt = _count(usage["input_tokens"]) + read + written
    own = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens_details")
    return {
        "prompt_tokens": prompt,
        "completion_tokens": _count(usage["output_tokens"]),
        "total_tokens": prompt + _count(usage["output_tokens"]),
        "prompt_tokens_details": {"cached_tokens": read, "cache_creation_tokens": written, **longer},
        "completion_tokens_details": {"reasoning_tokens": thinking},
        **{key: value for key, value in usage.items() if key not in own and value is not None},
    }


def anthropic_usage(usage: Mapping[str, Any] | None) -> dict[str, Any]:
    """Usage in the shape of the Messages API; zeros where the provider sent none."""
    usage = usage or {}
    details, spent = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
    read = _count(details.get("cached_tokens")) if isinstance(details, Mapping) else 0
    written = _count(details.get("cache_creation_tokens")) if isinstance(details, Mapping) else 0
    thinking = _count(spent.get("reasoning_tokens")) if isinstance(spent, Mapping) else 0
    more = {key: usage[key] for key in ("cache_creation", "server_tool_use", "inference_geo", "speed") if usage.get(key) is not None}
    if usage.get("service_tier") in ("standard", "priority", "batch"):
        more["service_tier"] = usage["service_tier"]
    return {
        "input_tokens": max(_count(usage.get("prompt_tokens")) - read - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": read,
        "output_tokens": _count(usage.get("completion_tokens")),
        **({"output_tokens_details": {"thinking_tokens": thinking}} if thinking else {}),
        **more,
    }


def _count(value: Any) -> int:
    return value if isinstance(value, int) and value > 0 else 0


def ending_of(message: Mapping[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """How a message or the delta of its end stopped: the finish_reason, members of the choice, and provider_specific_fields.

    A stop sequence stands in the choice's `stop_reason`, as vLLM has it.
    """
    stop = text_of(message.get("stop_reason"))
    choice = {"stop_reason": message["stop_sequence"]} if isinstance(message.get("stop_sequence"), str) else {}
    own = {key: message[key] for key in ("stop_details", "container", "diagnostics") if message.get(key) is not None}
    if stop in _EXACT_STOPS:
        own["stop_reason"] = stop
    return FINISH_OF.get(stop, "stop"), choice, own


def stop_of(choice: Mapping[str, Any], own: Mapping[str, Any], sequences: Sequence[str]) -> tuple[str, str | None]:
    """The stop_reason and stop_sequence of a choice that finished; `own` are its provider_specific_fields."""
    exact, sequence = text_of(own.get("stop_reason")), choice.get("stop_reason")
    if exact in _EXACT_STOPS:
        return exact, None
    finish = text_of(choice.get("finish_reason"))
    if finish == "stop" and isinstance(sequence, str) and sequence in sequences:
        return "stop_sequence", sequence
    return STOP_OF.get(finish, "end_turn"), None
