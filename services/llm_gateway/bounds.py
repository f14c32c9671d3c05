"""How many tokens an answer may come to at most, as far as the request says it, and what is assumed where it does not."""

from collections.abc import Mapping, Sequence
from typing import Any

from services.llm_gateway.registry import Deployment

# Reserved, and sent upstream, where a caller sets no bound.
DEFAULT_OUTPUT_TOKENS = 2_000
_USAGE_WANTED: Mapping[str, Any] = {"include_usage": True}
_BOUNDS = ("max_completion_tokens", "max_tokens")
_OPENAI = frozenset({"openai", "azure", "azure_ai"})


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


def usage_wanted(options: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The stream_options of a stream that is to tell its usage at its end."""
    return {**options, "include_usage": True} if options else _USAGE_WANTED


def search_units(documents: Sequence[str]) -> int:
    """Most search units of a ranking: Cohere counts one for each 100 documents, and a longer one as several of 500 tokens."""
    pieces = sum(len(text.encode("utf-8", "surrogatepass")) // 500 + 1 for text in documents)
    return -(-pieces // 100)
