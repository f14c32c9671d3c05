"""One fingerprint of what a call asks for, for caches, single-flight and replay; and the affinity of a conversation.

Two calls are the same when a provider could not tell them apart: key order, white space, `1` for `1.0` and the form of the
answer (stream or whole) make no difference; every other field does, `n`, `seed` and `user` included, and so does each
character of a text (no Unicode normalisation: composed and decomposed letters are other tokens).
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from services.llm_gateway.chat import ChatCall, request_json
from services.llm_gateway.registry import Group, Registry

# How the answer travels, not what it is.
_FORM = frozenset({"model", "stream", "stream_options"})
# The caller's own notes on a request; no provider's answer depends on them.
_NOTES = frozenset({"metadata", "store"})
# A provider caches prefixes of 1,024 tokens and more; a token is about four bytes.
AFFINE_BYTES = 4_096
# What is read of a long prefix. Conversations that differ only behind it share a deployment, which does no harm.
_AFFINITY_READS = 16_384
_DIGEST_BYTES = 20
# Above it, not every integer is a float.
_EXACT = 2**53


def digest_of(*parts: str | bytes) -> str:
    """A hexadecimal digest; parts are length-prefixed, so that no two lists of parts run together."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big"))
        digest.update(raw)
    return digest.hexdigest()


def canonical(body: Mapping[str, Any], *, notes: bool = False, without: Iterable[str] = ()) -> bytes:
    """The request as sorted JSON without the model and the form of the answer; without the caller's notes unless `notes`."""
    left_out = _FORM if notes else _FORM | _NOTES
    if without:
        left_out = left_out.union(without)
    kept = {key: _number(value) for key, value in body.items() if key not in left_out}
    return request_json(kept, orjson.OPT_SORT_KEYS)


def _number(value: Any) -> Any:
    # JSON has one kind of number. Only the parameters on top are made equal: to walk a whole prompt for it would cost more
    # than the miss.
    return int(value) if isinstance(value, float) and abs(value) < _EXACT and value.is_integer() else value


def request_key(tenant: str, operation: str, registry: Registry, model: str, content: bytes, *scope: str) -> str:
    """The key of an answer within `tenant`: what is asked (`content`, made by `canonical`), of which models, for whom (`scope`).

    The group stands in it with the models behind it, so that an answer does not outlive a change of the configuration, and
    another replica of the same model makes no difference.
    """
    group = registry.find(model)
    behind = _models_of(group) if group is not None else model
    return digest_of(tenant, operation, group.name if group is not None else "", behind, content, *scope)


def _models_of(group: Group) -> str:
    found = set()
    for deployment in group.deployments:
        defaults = orjson.dumps(deployment.defaults, option=orjson.OPT_SORT_KEYS, default=str).decode() if deployment.defaults else ""
        found.add(f"{deployment.adapter}/{deployment.model}{defaults}")
    return "\0".join(sorted(found)) if len(found) > 1 else found.pop()


def affinity_of(call: ChatCall) -> str:
    """A digest that the calls of one conversation share, for `ports.Load`; empty where no provider would cache the prefix.

    A caller's `prompt_cache_key` wins. Else it covers the instructions, the names of the tools and the first message that
    is none: what stays the same while a conversation grows.
    """
    body = call.body
    given = body.get("prompt_cache_key")
    if isinstance(given, str) and given:
        return digest_of("key", given)
    if 0 < call.size < AFFINE_BYTES:
        return ""
    messages = body.get("messages")
    if not isinstance(messages, list) or (not call.size and _rough_size(messages, body.get("tools")) < AFFINE_BYTES):
        return ""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for tool in body.get("tools") or ():
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if isinstance(function, Mapping):
            digest.update(str(function.get("name")).encode() + b"\0")
    for message in messages:
        content = message.get("content")
        raw = content[:_AFFINITY_READS].encode() if isinstance(content, str) else request_json(content)[:_AFFINITY_READS]
        digest.update(len(raw).to_bytes(4, "big") + raw)
        if message.get("role") not in ("system", "developer"):
            break
    return digest.hexdigest()


def _rough_size(messages: list[Any], tools: Any) -> int:
    size = 512 * len(tools) if isinstance(tools, list) else 0
    for message in messages:
        content = message.get("content")
        if isinstance(content, str):
            size += len(content)
        elif isinstance(content, list):
            size += sum(len(part["text"]) for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str))
        if size >= AFFINE_BYTES:
            break
    return size
