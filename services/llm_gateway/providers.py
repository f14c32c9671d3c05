"""The providers that a model name may begin with, as `anthropic/claude-x`: which dialect they speak and where they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Provider:
    """`base` is its URL where there is one for everybody; without one `api_base` must be set. `key_needed` says that nobody is
    served there without a key. `stream_usage` says that it is known to answer `stream_options.include_usage` with an event of its own,
    as most look-alikes do. False: it refuses the field (Mistral, which tells the usage in any case) or hangs on it (NVIDIA's hosted
    models). None: nobody knows.
    """

    adapter: str = "openai"
    base: str = ""
    key_needed: bool = False
    stream_usage: bool | None = None


OPENAI_BASE = "https://api.openai.com/v1"
PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider(base=OPENAI_BASE, key_needed=True, stream_usage=True),
    "text-completion-openai": Provider(base=OPENAI_BASE, key_needed=True, stream_usage=True),
    "anthropic": Provider("anthropic", "https://api.anthropic.com", key_needed=True),
    "gemini": Provider("gemini", "https://generativelanguage.googleapis.com/v1beta", key_needed=True),
    "azure": Provider(stream_usage=True),
    "azure_ai": Provider(),
    "cerebras": Provider(base="https://api.cerebras.ai/v1"),
    "cohere": Provider(base="https://api.cohere.com/v2"),
    "custom_openai": Provider(),
    "deepinfra": Provider(base="https://api.deepinfra.com/v1/openai", stream_usage=True),
    "deepseek": Provider(base="https://api.deepseek.com/v1", stream_usage=True),
    "fireworks_ai": Provider(base="https://api.fireworks.ai/inference/v1", stream_usage=True),
    "groq": Provider(base="https://api.groq.com/openai/v1", stream_usage=True),
    "hosted_vllm": Provider(stream_usage=True),
    "jina_ai": Provider(base="https://api.jina.ai/v1"),
    "litellm_proxy": Provider(stream_usage=True),
    "lm_studio": Provider(stream_usage=True),
    "mistral": Provider(base="https://api.mistral.ai/v1", stream_usage=False),
    "nvidia_nim": Provider(base="https://integrate.api.nvidia.com/v1", stream_usage=False),
    "openai_like": Provider(),
    "openrouter": Provider(base="https://openrouter.ai/api/v1", stream_usage=True),
    "perplexity": Provider(base="https://api.perplexity.ai"),
    "sambanova": Provider(base="https://api.sambanova.ai/v1", stream_usage=True),
    "together_ai": Provider(base="https://api.together.xyz/v1", stream_usage=True),
    "vllm": Provider(stream_usage=True),
    "xai": Provider(base="https://api.x.ai/v1", stream_usage=True),
}
# The first version of Azure's API that knows stream_options.
AZURE_STREAM_USAGE = "2024-09-01"
LOCAL_EMBEDDERS: Mapping[str, int] = {"wordllama/l2_supercat_256": 256}


def stream_usage(name: str, base: str, api_version: str) -> bool | None:
    """Whether the provider at this address is known to tell the usage of a stream when it is asked to, or to refuse the question.

    `openai` with another address is any server in OpenAI's likeness, of which nothing is known.
    """
    provider = PROVIDERS[name]
    if name == "azure":
        return not api_version or api_version[:1].isalpha() or api_version[:10] >= AZURE_STREAM_USAGE
    if provider.key_needed and not (urlsplit(base).hostname or "").endswith("api.openai.com"):
        return None
    return provider.stream_usage
