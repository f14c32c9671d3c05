"""What OpenAI and some of its look-alikes refuse of a canonical request, or know by another name. Pure.

Most servers in OpenAI's likeness take fields that they do not know, and get them as they came. OpenAI itself, Azure and a few others
answer 400 to what another provider has put into a conversation: a fallback to them would fail for that alone.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from services.llm_gateway.messages_shape import unfit
from services.llm_gateway.registry import Deployment

_STRICT = frozenset({"azure", "cerebras", "groq", "mistral"})
# These know max_tokens alone; some leave the newer name unread, and answer without a bound.
_OLDER_NAME = frozenset(
    {"cohere", "deepinfra", "deepseek", "fireworks_ai", "lm_studio", "mistral", "nvidia_nim", "perplexity", "sambanova", "together_ai"}
)
# OpenAI's reasoning models refuse max_tokens.
_REASONING = re.compile(r"(?:o\d|gpt-(?:[5-9]|\d\d))")
_OF_MESSAGES = frozenset(
    {
        "thinking_blocks", "reasoning", "reasoning_content", "reasoning_details", "provider_specific_fields", "extra_content",
        "cache_control", "images",
    }
)  # fmt: skip
_OF_CALLS = frozenset({"extra_content", "provider_specific_fields", "cache_control", "caller"})
_HINTS = frozenset({"cache_control"})
# Mistral answers 422 to each of these. No answer is another without them; its streams have their usage in any case.
_NOT_MISTRALS = frozenset(
    {
        "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "seed", "service_tier", "store", "stream_options", "user",
        "verbosity",
    }
)  # fmt: skip
# Addresses by deployment answer 404 without a version. This is the newest that is no preview.
AZURE_VERSION = "2024-10-21"


@lru_cache(maxsize=1024)
def _is_openai(provider: str, base: str) -> bool:
    """OpenAI itself or Azure; `openai` with another base is any server in their likeness."""
    host = urlsplit(base).hostname or ""
    return provider == "azure" or (provider == "openai" and (host == "api.openai.com" or host.endswith(".api.openai.com")))


def fitted(body: Mapping[str, Any], deployment: Deployment) -> Mapping[str, Any]:
    """The request as the deployment's provider takes it; the same object where nothing has to change. Raises UpstreamFault (UNFIT)."""
    provider = deployment.provider
    openai = _is_openai(provider, deployment.api_base)
    if not openai and provider not in _STRICT:
        return _renamed(body, "max_completion_tokens", "max_tokens") if provider in _OLDER_NAME else body
    if openai:
        # It costs more a token than the price that was reserved.
        if body.get("service_tier") == "priority" and deployment.defaults.get("service_tier") != "priority":
            raise unfit("priority is not configured for this deployment", "service_tier")
        if deployment.reasoning or _REASONING.match(deployment.model):
            body = _renamed(body, "max_tokens", "max_completion_tokens")
    elif provider == "mistral":
        body = _for_mistral(_renamed(body, "max_completion_tokens", "max_tokens"))
    messages, tools = body["messages"], body.get("tools")
    changed: dict[str, Any] = {}
    if not all(map(_plain, messages)):
        changed["messages"] = [message if _plain(message) else _message(message) for message in messages]
    if tools and not all(map(_HINTS.isdisjoint, tools)):
        changed["tools"] = [_without(tool, _HINTS) for tool in tools]
    return {**body, **changed} if changed else body


def _renamed(body: Mapping[str, Any], old: str, new: str) -> Mapping[str, Any]:
    if old not in body:
        return body
    bounds = [value for name in (old, new) if (value := body.get(name)) is not None]
    rest = {name: value for name, value in body.items() if name not in (old, new)}
    return {**rest, new: min(bounds)} if bounds else rest


def _for_mistral(body: Mapping[str, Any]) -> Mapping[str, Any]:
    if _NOT_MISTRALS.isdisjoint(body):
        return body
    seed = {"random_seed": body["seed"]} if body.get("seed") is not None else {}
    return {**_without(body, _NOT_MISTRALS), **seed}


def _plain(message: Mapping[str, Any]) -> bool:
    content, calls = message.get("content"), message.get("tool_calls")
    return (
        _OF_MESSAGES.isdisjoint(message)
        and (not isinstance(content, list) or all(map(_HINTS.isdisjoint, content)))
        and (not calls or all(map(_OF_CALLS.isdisjoint, calls)))
    )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    made = _without(message, _OF_MESSAGES)
    if isinstance(made.get("content"), list):
        made["content"] = [_without(part, _HINTS) for part in made["content"]]
    if made.get("tool_calls"):
        made["tool_calls"] = [_without(call, _OF_CALLS) for call in made["tool_calls"]]
    elif made.get("content") is None and made["role"] == "assistant":
        made["content"] = ""  # it held thinking alone
    return made


def _without(holder: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in holder.items() if name not in names}


def query_of(deployment: Deployment) -> str:
    """The query that the provider's addresses need."""
    if deployment.provider not in ("azure", "azure_ai"):
        return ""
    version = deployment.api_version or (AZURE_VERSION if "/deployments/" in deployment.api_base else "")
    return f"?api-version={version}" if version else ""
