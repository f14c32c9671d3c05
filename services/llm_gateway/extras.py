"""What a request makes a provider bill beside the tokens that its text can come to: what bounds it, and what it turned out to cost.

| the request has                             | reserved                                    | settled                              |
|---------------------------------------------|---------------------------------------------|--------------------------------------|
| Anthropic's web_search                      | max_uses searches, 5 are sent without one   | usage.server_tool_use                |
| any tool that Anthropic runs, mcp_servers   | as many whole contexts as the model may read | the tokens that are counted          |
| Anthropic's code_execution                  | one session                                 | one session, as an estimate          |
| web_search_options, models that always search | one search an answer                      | what is counted, else what was reserved |
| audio in, audio out                         | every token at the audio price              | the audio tokens that are counted    |
| a file or a stored context that is only named | one whole context                         | the tokens that are counted          |
| prediction                                  | its bytes as tokens of the answer           | the tokens that are counted          |

What has a price of its own needs that price to be declared, and whole contexts need `max_input_tokens`; what is missing makes the price
of the call unknown. So does whatever a provider runs that stands in no line of the table. Sources: Claude API reference, Server tools (a
turn ends after 10 rounds of them) and Pricing; OpenAI, Web search and Audio; LiteLLM, model_prices_and_context_window.json.
"""

import mimetypes
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from services.llm_gateway.chat import request_json, text_of
from services.llm_gateway.estimates import Measure
from services.llm_gateway.messages_shape import EXTRAS, media_type_at
from services.llm_gateway.money import MOST_COUNTED, PICO_PER_NANO, Prices, Usage
from services.llm_gateway.registry import Deployment

# Sent to Anthropic where a caller bounds the uses of a tool by nothing, and the most that is sent.
TOOL_USES, MOST_TOOL_USES = 5, 100
# After so many rounds of its own tools Anthropic ends the turn with pause_turn.
ROUNDS = 10
# What Anthropic puts before a tool of its own that the caller runs (computer use: up to 1,234 tokens).
CLIENT_TOOL_TOKENS = 1_500
_SIZES: Mapping[str, int] = {"low": 0, "medium": 1, "high": 2}
_PLAIN = frozenset({"function", "custom"})
_CLIENT_TOOLS = ("bash_", "text_editor_", "computer_", "memory_")
# From these on Anthropic's web tools run code to filter what they found: several searches a round, and code that costs nothing.
_FILTERING = 20260209
_FIELDS = frozenset(
    {
        "web_search_options", "modalities", "audio", "prediction", "plugins", "search_parameters", "mcp_servers", "context_management",
        "cached_content", "extra_body",
    }
)  # fmt: skip
# Models that search for each answer, and such as run tools of their own without a bound.
_SEARCHES = re.compile(r"search-preview|search-api|:online\Z")
_UNBOUNDED = re.compile(r"deep-research|groq/compound")


@dataclass(slots=True)
class Extras:
    """What one request may be billed for beside its text. `missing` are the prices and bounds that nobody has declared."""

    searches: int = 0
    search_size: int = 1
    # Whether the provider counts its searches, so that no count means none; and whether each answer takes one, counted or not.
    counts_searches: bool = False
    always_searches: bool = False
    sessions: int = 0
    audio_input: bool = False
    audio_output: bool = False
    # Times that the model reads as much as its context holds.
    contexts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    # The tools as they are sent, where a bound had to be added.
    tools: list[Any] | None = None
    missing: dict[str, str] = field(default_factory=dict)

    def prompt_bound(self, deployment: Deployment, input_tokens: int) -> int:
        """The most tokens that the provider can count as read, given those of the request itself."""
        return max(input_tokens + self.input_tokens, self.contexts * deployment.max_input_tokens)

    def bound_nanousd(self, prices: Prices, input_tokens: int, output_tokens: int) -> int:
        """The most that the call can cost, all in all, in nano-USD. The tokens are bounds that hold the extras' already."""
        named, beside = prices.extras, 0
        if self.searches and named.searches is not None:
            beside += self.searches * named.searches[self.search_size]
        if self.sessions and named.session is not None:
            beside += self.sessions * named.session
        if self.audio_input and named.audio_input is not None:
            beside += input_tokens * max(named.audio_input - prices.highest_input, 0)
        if self.audio_output and named.audio_output is not None:
            beside += output_tokens * max(named.audio_output - prices.highest_output, 0)
        return prices.bound_nanousd(input_tokens, output_tokens) - (-beside // PICO_PER_NANO)

    def settled(self, prices: Prices, usage: Usage, reported: Mapping[str, Any]) -> Usage:
        """`usage`, the price of the tokens that a provider `reported`, with what the extras cost. What it did not count is an estimate."""
        named, cost, estimated = prices.extras, usage.cost_picousd, usage.estimated
        held = prices.for_prompt(usage.input)
        if self.searches and named.searches is not None:
            found = _searches_in(reported)
            if found is None:
                found = 0 if self.counts_searches else self.searches
                estimated = estimated or not (self.counts_searches or self.always_searches)
            cost += found * named.searches[self.search_size]
        if self.sessions and named.session is not None:
            cost, estimated = cost + self.sessions * named.session, True
        if self.audio_input and named.audio_input is not None:
            heard, told = _audio_in(reported, "prompt_tokens_details", usage.input)
            # Which of the cached tokens were audio is not told: as few as can be.
            cached = max(heard + usage.cached_input - usage.input, 0)
            cost += heard * named.audio_input - cached * held.cached_input - (heard - cached) * held.input
            estimated = estimated or not told
        if self.audio_output and named.audio_output is not None:
            # What was thought was not spoken, and has its own price.
            spoken, told = _audio_in(reported, "completion_tokens_details", usage.output - usage.reasoning)
            cost += spoken * (named.audio_output - held.output)
            estimated = estimated or not told
        return replace(usage, cost_picousd=max(cost, 0), estimated=estimated)


def _searches_in(reported: Mapping[str, Any]) -> int | None:
    """Searches as Anthropic and OpenRouter count them, or LiteLLM; None where they are not counted."""
    for holder in (reported.get("server_tool_use"), reported.get("prompt_tokens_details")):
        found = holder.get("web_search_requests") if isinstance(holder, Mapping) else None
        if type(found) is int and 0 <= found <= MOST_COUNTED:
            return found
    return None


def _audio_in(reported: Mapping[str, Any], name: str, most: int) -> tuple[int, bool]:
    """Audio tokens, and whether they were told; where they were not, all may have been audio."""
    details = reported.get(name)
    found = details.get("audio_tokens") if isinstance(details, Mapping) else None
    return (min(found, most), True) if type(found) is int and found >= 0 else (most, False)


@lru_cache(maxsize=1024)
def _searching(provider: str, model: str) -> bool:
    """Whether the model itself makes the provider search."""
    return provider == "perplexity" or _SEARCHES.search(model) is not None or _UNBOUNDED.search(f"{provider}/{model}") is not None


def extras_of(deployment: Deployment, body: Mapping[str, Any], measured: Measure) -> Extras | None:
    """What a chat request, with the deployment's defaults, may be billed for beside its text; None for nothing, as for a deployment
    that costs nothing or whose price is not known at all.
    """
    tools, own = body.get("tools"), body.get(EXTRAS)
    if (
        not measured.media
        and _FIELDS.isdisjoint(body)
        and (own is None or not isinstance(own, Mapping) or _FIELDS.isdisjoint(own))
        and (not tools or _PLAIN.issuperset([tool.get("type", "function") for tool in tools]))
        and not _searching(deployment.provider, deployment.model)
    ):
        return None
    if not deployment.prices.known or deployment.prices.free:
        return None
    found = Extras()
    dropped = deployment.capabilities.dropped_params
    asked = dict(body)
    if deployment.adapter == "anthropic" and isinstance(own, Mapping):
        asked |= {name: own[name] for name in _FIELDS & own.keys()}
    asked = {name: value for name, value in asked.items() if value is not None and name not in dropped}
    if deployment.adapter == "anthropic":
        _add_anthropic(found, asked)
    else:
        if _stored(asked):
            found.contexts = 1
        if deployment.adapter == "openai":
            _add_openai(found, asked, deployment, native=own is not None)
    if measured.media:
        _add_media(found, asked, deployment)
    if found == _NONE:
        return None
    _add_missing(found, deployment)
    return found


_NONE = Extras()


def _add_anthropic(found: Extras, asked: Mapping[str, Any]) -> None:
    rounds = ROUNDS if asked.get("mcp_servers") else 0
    tools, filters = [], False
    for tool in asked.get("tools", ()):
        kind = text_of(tool.get("type", "function"))
        if kind.startswith(("web_search_", "web_fetch_")):
            filters = filters or _dated(kind) >= _FILTERING
            uses = tool.get("max_uses")
            uses = min(uses, MOST_TOOL_USES) if type(uses) is int and uses > 0 else TOOL_USES
            if tool.get("max_uses") != uses:
                tool = {**tool, "max_uses": uses}
            rounds += uses
            if kind.startswith("web_search_"):
                found.searches += uses
        elif kind.startswith("code_execution_"):
            rounds, found.sessions = ROUNDS, 1
        elif kind.startswith("tool_search_tool_") or kind == "mcp_toolset":
            rounds = ROUNDS
        elif kind.startswith(_CLIENT_TOOLS):
            found.input_tokens += CLIENT_TOOL_TOKENS
        elif kind not in _PLAIN:
            found.missing[f"the tool {kind[:64]}"] = ""
        tools.append(tool)
    if tools != asked.get("tools", []):
        found.tools = tools
    found.counts_searches = found.searches > 0
    if rounds:
        found.contexts = (ROUNDS if filters else min(rounds, ROUNDS)) + 1
    if filters:
        found.sessions = 0
    context = asked.get("context_management")
    edits = context.get("edits") if isinstance(context, Mapping) else None
    edits = edits if isinstance(edits, list) else []
    if any(text_of(edit.get("type")).startswith("compact") for edit in edits if isinstance(edit, Mapping)):
        found.missing["context_management.compact"] = ""


def _dated(kind: str) -> int:
    version = kind.rpartition("_")[2]
    # A version that is no date is a newer one.
    return int(version) if version.isdigit() and len(version) == 8 else _FILTERING


def _stored(asked: Mapping[str, Any]) -> bool:
    """Whether Gemini is to read a context that it keeps."""
    extra = asked.get("extra_body")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    return bool(asked.get("cached_content")) or (isinstance(google, Mapping) and bool(google.get("cached_content")))


def _add_openai(found: Extras, asked: Mapping[str, Any], deployment: Deployment, *, native: bool) -> None:
    provider, model, answers = deployment.provider, deployment.model, asked.get("n", 1)
    options = asked.get("web_search_options")
    found.always_searches = _searching(provider, model)
    if options is not None or found.always_searches:
        found.searches = answers if type(answers) is int else 1
        size = options.get("search_context_size") if isinstance(options, Mapping) else None
        usual = "low" if provider == "perplexity" else "medium"
        found.search_size = _SIZES.get(usual if size is None else text_of(size), _SIZES["high"])
        if isinstance(options, Mapping) and options.get("search_type") not in (None, "fast"):
            found.missing["web_search_options.search_type"] = ""
        if "search-preview" not in model and provider != "perplexity":  # what these read is not billed
            found.contexts = 1
    if _UNBOUNDED.search(f"{provider}/{model}"):
        found.missing[f"what {model[:64]} runs by itself"] = ""
    for name in ("plugins", "search_parameters", "mcp_servers"):
        if asked.get(name):
            found.missing[name] = ""
    if not native:  # else it is known that only Anthropic takes them
        for tool in asked.get("tools", ()):
            if (kind := tool.get("type", "function")) not in _PLAIN:
                found.missing[f"the tool {text_of(kind)[:64]}"] = ""
    modalities = asked.get("modalities")
    modalities = modalities if isinstance(modalities, list) else []
    found.audio_output = "audio" in modalities or bool(asked.get("audio"))
    if set(map(str, modalities)) - {"text", "audio"}:
        found.missing["modalities"] = ""
    if asked.get("prediction"):
        # What is predicted in vain is billed as answered.
        found.output_tokens = len(request_json(asked["prediction"]))


def _add_media(found: Extras, asked: Mapping[str, Any], deployment: Deployment) -> None:
    for message in asked.get("messages", ()):
        if isinstance(message.get("audio"), Mapping):  # an earlier answer, by its id
            found.audio_input, found.contexts = True, max(found.contexts, 1)
        for part in _media_in(message.get("content")):
            kind = part["type"]
            if kind == "file" and deployment.provider == "openrouter":
                found.missing["file"] = ""
            address, media_type = _where(kind, part)
            if kind == "input_audio" or media_type.startswith(("audio/", "video/")):
                found.audio_input = True
            if kind == "image_url" and (deployment.adapter != "gemini" or media_type.startswith("image/")):
                continue
            if address:
                found.contexts = max(found.contexts, 1)
                # Only Gemini reads what has sound from an address of any kind.
                found.audio_input = found.audio_input or (deployment.adapter == "gemini" and not media_type)


def _media_in(content: Any) -> Iterator[Mapping[str, Any]]:
    for part in content if isinstance(content, list) else ():
        if isinstance(part, Mapping) and part.get("type") in ("image_url", "input_audio", "file", "document", "video_url"):
            yield part


def _where(kind: str, part: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the content is elsewhere, so that nobody here knows its length, and its media type as far as the request tells it."""
    inner = part.get("source" if kind == "document" else kind)
    if kind == "document":
        return isinstance(inner, Mapping) and inner.get("type") in ("url", "file"), "application/pdf"
    url, named = inner if isinstance(inner, str) else "", ""
    if isinstance(inner, Mapping):
        url = text_of(inner.get("url")) or text_of(inner.get("file_data")) or text_of(inner.get("file_id"))
        named = text_of(inner.get("format"))
        named = named if "/" in named else mimetypes.guess_type(text_of(inner.get("filename")))[0] or ""
    if kind == "input_audio":
        return False, "audio/"
    if url.startswith("data:"):
        return False, url[5:40].partition(";")[0] or named
    if kind == "file" and "://" not in url[:16] and isinstance(inner, Mapping) and inner.get("file_data"):
        return False, named  # base64 without a URL
    return True, named or media_type_at(url)


def _add_missing(found: Extras, deployment: Deployment) -> None:
    named = deployment.prices.extras
    if found.searches and named.searches is None:
        found.missing["web search"] = "search_context_cost_per_query"
    if found.sessions and named.session is None:
        found.missing["code execution"] = "code_interpreter_cost_per_session"
    if found.audio_input and named.audio_input is None:
        found.missing["audio input"] = "input_cost_per_audio_token"
    if found.audio_output and named.audio_output is None:
        found.missing["audio output"] = "output_cost_per_audio_token"
    if found.contexts and not deployment.max_input_tokens:
        found.missing["what it reads elsewhere"] = "max_input_tokens"


def described(missing: Mapping[str, str]) -> str:
    """What has no price, each with the key that would declare it, in a few words."""
    return ", ".join(f"{what} ({key})" if key else what for what, key in missing.items())
