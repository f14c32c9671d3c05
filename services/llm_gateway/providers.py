"""The providers that a model name may begin with, as `anthropic/claude-x`: which dialect they speak and where they are."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Provider:
    """`base` is its URL where there is one for everybody; without one `api_base` must be set. `key_needed` says that nobody is
    served there without a key.
    """

    adapter: str = "openai"
    base: str = ""
    key_needed: bool = False


OPENAI_BASE = "https://api.openai.com/v1"
PROVIDERS: Mapping[str, Provider] = {
    "openai": Provider(base=OPENAI_BASE, key_needed=True),
    "text-completion-openai": Provider(base=OPENAI_BASE, key_needed=True),
    "anthropic": Provider("anthropic", "https://api.anthropic.com", key_needed=True),
    "gemini": Provider("gemini", "https://generativelanguage.googleapis.com/v1beta", key_needed=True),
    "azure": Provider(),
    "azure_ai": Provider(),
    "cerebras": Provider(base="https://api.cerebras.ai/v1"),
    "cohere": Provider(base="https://api.cohere.com/v2"),
    "custom_openai": Provider(),
    "deepinfra": Provider(base="https://api.deepinfra.com/v1/openai"),
    "deepseek": Provider(base="https://api.deepseek.com/v1"),
    "fireworks_ai": Provider(base="https://api.fireworks.ai/inference/v1"),
    "groq": Provider(base="https://api.groq.com/openai/v1"),
    "hosted_vllm": Provider(),
    "jina_ai": Provider(base="https://api.jina.ai/v1"),
    "litellm_proxy": Provider(),
    "lm_studio": Provider(),
    "mistral": Provider(base="https://api.mistral.ai/v1"),
    "nvidia_nim": Provider(base="https://integrate.api.nvidia.com/v1"),
    "openai_like": Provider(),
    "openrouter": Provider(base="https://openrouter.ai/api/v1"),
    "perplexity": Provider(base="https://api.perplexity.ai"),
    "sambanova": Provider(base="https://api.sambanova.ai/v1"),
    "together_ai": Provider(base="https://api.together.xyz/v1"),
    "vllm": Provider(),
    "xai": Provider(base="https://api.x.ai/v1"),
}
LOCAL_EMBEDDERS: Mapping[str, int] = {"wordllama/l2_supercat_256": 256}
