"""How many tokens a request can come to at most, as far as the request itself says it."""

from collections.abc import Mapping
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.estimates import DOCUMENT_TOKENS, IMAGE_TOKENS, TOOLS_TOKENS
from services.llm_gateway.registry import Deployment

# Reserved, and sent upstream, where a caller sets no bound.
DEFAULT_OUTPUT_TOKENS = 2_000
_IMAGES = frozenset({"image_url", "image", "input_image"})
_DOCUMENTS = frozenset({"file", "input_file", "document", "video_url"})
_BOUNDS = ("max_completion_tokens", "max_tokens")
_OPENAI = frozenset({"openai", "azure", "azure_ai"})


def input_bound(body: Mapping[str, Any], size: int = 0) -> int:
    """Most tokens that a request can be counted as: a token is at least one byte, and JSON only adds bytes. `size` is the length
    of the request as it came, 0 where it is not known. Raises InvalidInput for a request that cannot be sent.
    """
    try:
        raw = orjson.dumps(body) if size == 0 else b""
    except TypeError:
        raise InvalidInput("the request is nested too deeply or holds a number beyond 64 bits") from None
    hidden = TOOLS_TOKENS if body.get("tools") or body.get("functions") else 0
    return (size or len(raw)) + hidden + _media(body)


def _media(body: Mapping[str, Any]) -> int:
    """Tokens of what is looked at and not read: pictures, and documents, which may stand behind a URL or an id."""
    found = 0
    for message in body.get("messages") or ():
        content = message.get("content")
        if isinstance(content, list):
            for part in content:
                kind = part.get("type") if isinstance(part, Mapping) else None
                if kind in _IMAGES:
                    found += IMAGE_TOKENS
                elif kind in _DOCUMENTS:
                    found += DOCUMENT_TOKENS
    return found


def output_bound(body: Mapping[str, Any]) -> int:
    """Most tokens of the answers that the request allows, 0 where it sets no bound."""
    # Where both names stand, which one a provider follows is its own affair.
    most = max((value for name in _BOUNDS if type(value := body.get(name)) is int), default=0)
    choices = body.get("n")
    return most * choices if type(choices) is int and choices > 1 else most


def assumed_output(deployment: Deployment) -> tuple[str, int]:
    """The request field that bounds the answer and the value that is assumed for a caller who sets none."""
    most, dropped = DEFAULT_OUTPUT_TOKENS, deployment.capabilities.dropped_params
    if deployment.max_output_tokens:
        most = min(most, deployment.max_output_tokens)
    # Reasoning models of OpenAI know only the newer name, and others only the older.
    newer = deployment.reasoning and deployment.provider in _OPENAI
    return (
        "max_completion_tokens" if newer or ("max_tokens" in dropped and "max_completion_tokens" not in dropped) else "max_tokens"
    ), most
