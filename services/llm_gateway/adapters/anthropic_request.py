"""A chat request in OpenAI's shape as a request of the Messages API."""

from collections.abc import Mapping
from typing import Any

from services.common.errors import InvalidInput
from services.llm_gateway.adapters.anthropic_models import Traits, traits_of
from services.llm_gateway.adapters.anthropic_schema import compilable
from services.llm_gateway.adapters.anthropic_turns import turns_of
from services.llm_gateway.chat import text_of
from services.llm_gateway.messages_shape import BETAS, EXTRAS, JSON_TOOL, unfit
from services.llm_gateway.registry import Deployment

# The default of the gateway's reserve: what is sent may not be more than what was reserved.
DEFAULT_MAX_TOKENS = 2_000
MIN_BUDGET = 1_024
MAX_BUDGET = 32_000
# Share of max_tokens that may go into thinking, for models that take a budget.
BUDGET_SHARES = {"minimal": 0.1, "low": 0.2, "medium": 0.5, "high": 0.8, "xhigh": 0.95, "max": 0.95}
EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
THINKING_TOP_P = 0.95

# Fields of the chat API that are translated below, or say nothing about the answer.
_CHAT_FIELDS = frozenset(
    {
        EXTRAS, "messages", "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop", "temperature", "top_p",
        "tools", "tool_choice", "parallel_tool_calls", "response_format", "reasoning_effort", "user", "metadata", "n", "seed", "store",
        "service_tier", "logprobs", "top_logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "modalities", "audio",
        "prediction", "verbosity", "prompt_cache_key", "prompt_cache_retention", "safety_identifier", "functions", "function_call",
        "web_search_options",
    }
)  # fmt: skip
# Fields that change what the caller gets, with the values at which they change nothing.
_UNKNOWN_HERE: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
    "functions": ([],),
    "function_call": ("none",),
    "web_search_options": (),
}
# Fields of the Messages API that the translation decides; `anthropic` cannot smuggle them past what was reserved and checked.
_DECIDED = frozenset({"model", "messages", "system", "stream", "tools", "tool_choice", "stop_sequences"})
# What changes the price of a token is the operator's to set, who also sets the price.
_PRICED: Mapping[str, tuple[Any, ...]] = {"speed": ("standard",), "inference_geo": ("global",), "fallbacks": ([],)}
_JSON_ONLY = "Answer with one JSON object and nothing else."


def request_of(deployment: Deployment, body: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
    """The request. Raises UpstreamFault (UNFIT) for what this API cannot say, unless the deployment drops it."""
    dropped = deployment.capabilities.dropped_params
    asked = {key: value for key, value in body.items() if value is not None and key not in dropped}
    for name, neutral in _UNKNOWN_HERE.items():
        if name in asked and asked[name] not in neutral:
            raise unfit(f"the Messages API has no {name}", name)
    traits = _traits(deployment)
    extras = asked.get(EXTRAS)
    extras = {key: value for key, value in extras.items() if key not in dropped} if isinstance(extras, Mapping) else {}
    own = {**{key: value for key, value in asked.items() if key not in _CHAT_FIELDS}, **extras}
    made = {key: value for key, value in own.items() if key not in _DECIDED and value is not None}
    made.pop(BETAS, None)
    for name, plain in _PRICED.items():
        if name in made and made[name] not in plain and made[name] != deployment.defaults.get(name):
            raise unfit(f"{name} is not configured for this deployment", name)
    made["model"] = deployment.model
    made["max_tokens"] = 0 if extras.get("max_tokens") == 0 else _max_tokens(deployment, asked)
    system, messages = turns_of(asked.get("messages") or [], later_system=traits.later_system, prefill=traits.prefill)
    _tools(made, asked)
    _thinking(made, asked, traits)
    _sampling(made, asked, traits)
    _format(made, asked, traits, system)
    if system:
        only = system[0]
        made["system"] = only["text"] if len(system) == 1 and only.keys() == {"type", "text"} else system
    made["messages"] = messages
    if EXTRAS not in asked:
        _remembered_tools(made, messages)
    if stops := _stops(asked):
        made["stop_sequences"] = stops
    if "metadata" not in extras and (user := _user(asked)):
        made["metadata"] = {"user_id": user}
    if "service_tier" not in extras and asked.get("service_tier") in ("auto", "default"):
        made["service_tier"] = "auto" if asked["service_tier"] == "auto" else "standard_only"
    if stream:
        made["stream"] = True
    return made


def _traits(deployment: Deployment) -> Traits:
    known, declared = traits_of(deployment.model), deployment.capabilities
    return Traits(
        known=known.known,
        prefill=known.prefill if declared.prefill is None else declared.prefill,
        sampling=known.sampling,
        both_samplings=known.both_samplings,
        thinking_budget=known.thinking_budget,
        adaptive_thinking=known.adaptive_thinking,
        structured_output=known.structured_output if declared.json_schema is None else declared.json_schema,
        later_system=known.later_system,
    )


def _max_tokens(deployment: Deployment, asked: Mapping[str, Any]) -> int:
    wanted = asked.get("max_completion_tokens") or asked.get("max_tokens") or DEFAULT_MAX_TOKENS
    return min(wanted, deployment.max_output_tokens) if deployment.max_output_tokens else wanted


def _stops(asked: Mapping[str, Any]) -> list[str]:
    stop = asked.get("stop")
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list):
        return []
    if not all(isinstance(text, str) for text in stops):
        raise InvalidInput.field("stop", "must be a string or a list of strings")
    if not all(text.strip() for text in stops):
        raise unfit("the Messages API takes no stop sequence of blanks alone", "stop")
    return stops


def _user(asked: Mapping[str, Any]) -> str:
    metadata = asked.get("metadata")
    return (
        text_of(asked.get("user"))
        or text_of(asked.get("safety_identifier"))
        or (text_of(metadata.get("user_id")) if isinstance(metadata, Mapping) else "")
    )


def _tools(made: dict[str, Any], asked: Mapping[str, Any]) -> None:
    native = EXTRAS in asked
    tools = [_tool(tool, f"tools[{number}]", native=native) for number, tool in enumerate(asked.get("tools") or ())]
    choice = asked.get("tool_choice")
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        allowed = allowed if isinstance(allowed, Mapping) else {}
        names = {_name_in(tool) for tool in allowed.get("tools") or ()}
        tools = [tool for tool in tools if tool.get("name") in names]
        choice = allowed.get("mode") or "auto"
    if not tools:
        return
    made["tools"] = tools
    found = _choice(choice)
    if asked.get("parallel_tool_calls") is False:
        found = found or {"type": "auto"}
        if found["type"] != "none":
            found["disable_parallel_tool_use"] = True
    if found:
        made["tool_choice"] = found


def _tool(tool: Mapping[str, Any], where: str, *, native: bool) -> dict[str, Any]:
    """A tool; the schemas of `native` callers, who speak this API, are sent as they are."""
    if tool.get("type", "function") != "function":
        if isinstance(tool.get("custom"), Mapping):
            raise unfit("the Messages API has no tools of free text", where)
        return dict(tool)
    function = tool.get("function")
    if not isinstance(function, Mapping):
        raise InvalidInput.field(f"{where}.function", "must be an object with a name")
    rest = {key: value for key, value in tool.items() if key not in ("type", "function")}
    schema = function.get("parameters") or {}
    schema = {"type": "object", "properties": {}} if not schema else schema if "type" in schema else {"type": "object", **schema}
    made: dict[str, Any] = {"name": function["name"]}
    if isinstance(function.get("description"), str):
        made["description"] = function["description"]
    strict = function.get("strict")
    made["input_schema"] = compilable(schema) if strict and not native else schema
    return {**made, **({"strict": strict} if strict or (native and strict is not None) else {}), **rest}


def _choice(choice: Any) -> dict[str, Any] | None:
    if isinstance(choice, str):
        kind = {"auto": "auto", "required": "any", "none": "none"}.get(choice)
        if kind is None:
            raise InvalidInput.field("tool_choice", "must be auto, required, none or an object")
        return {"type": kind}
    if isinstance(choice, Mapping):
        if choice.get("type") == "function":
            return {"type": "tool", "name": _name_in(choice)}
        raise unfit("this tool_choice names no function", "tool_choice")
    return None


def _name_in(choice: Any) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) else None
    return text_of(function.get("name")) if isinstance(function, Mapping) else ""


def _thinking(made: dict[str, Any], asked: Mapping[str, Any], traits: Traits) -> None:
    """reasoning_effort as this model takes it. It is a hint: where it cannot be had with the rest of the request, it is left out."""
    thinking = made.get("thinking")
    if isinstance(thinking, Mapping):
        if thinking.get("type") == "enabled" and not traits.thinking_budget:
            made["thinking"] = {key: value for key, value in thinking.items() if key != "budget_tokens"} | {"type": "adaptive"}
        elif thinking.get("type") == "adaptive" and traits.known and not traits.adaptive_thinking:
            budget = _budget(made["max_tokens"], "medium")
            made["thinking"] = {"type": "enabled", "budget_tokens": budget} if budget >= MIN_BUDGET else {"type": "disabled"}
        return
    effort = asked.get("reasoning_effort")
    if not isinstance(effort, str):
        return
    if effort == "none":
        made["thinking"] = {"type": "disabled"}
        return
    if effort not in EFFORTS:
        raise InvalidInput.field("reasoning_effort", f"must be none or one of {', '.join(EFFORTS)}")
    if made.get("tool_choice", {}).get("type") in ("any", "tool"):
        return
    if traits.adaptive_thinking:
        made["thinking"] = {"type": "adaptive"}
        config = made.get("output_config")
        made["output_config"] = {"effort": EFFORTS[effort], **(config if isinstance(config, Mapping) else {})}
        return
    budget = _budget(made["max_tokens"], effort)
    # A turn of tool calls that began without thinking cannot go on with it.
    if budget >= MIN_BUDGET and not _unthought_calls(asked.get("messages") or ()):
        made["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _thinks(made: Mapping[str, Any]) -> bool:
    thinking = made.get("thinking")
    return isinstance(thinking, Mapping) and thinking.get("type") in ("enabled", "adaptive", "between_tools")


def _budget(max_tokens: int, effort: str) -> int:
    return min(int(max_tokens * BUDGET_SHARES[effort]), MAX_BUDGET, max_tokens - 1)


def _unthought_calls(messages: Any) -> bool:
    for message in reversed(messages):
        if message.get("role") == "assistant":
            return bool(message.get("tool_calls")) and not message.get("thinking_blocks")
        if message.get("role") == "user":
            return False
    return False


def _sampling(made: dict[str, Any], asked: Mapping[str, Any], traits: Traits) -> None:
    """Temperature and top_p within this API's ranges; newer models take neither, thinking fixes the temperature."""
    if not traits.sampling:
        made.pop("top_k", None)
        return
    temperature, top_p = asked.get("temperature"), asked.get("top_p")
    if _thinks(made):
        made.pop("top_k", None)
        if top_p is not None and top_p >= THINKING_TOP_P:
            made["top_p"] = top_p
        return
    if temperature is not None:
        made["temperature"] = min(temperature, 1.0)
    if top_p is not None and (temperature is None or traits.both_samplings):
        made["top_p"] = top_p


def _format(made: dict[str, Any], asked: Mapping[str, Any], traits: Traits, system: list[dict[str, Any]]) -> None:
    wanted = asked.get("response_format")
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind == "json_schema":
        named = wanted.get("json_schema")
        schema = named.get("schema") if isinstance(named, Mapping) else None
        if not isinstance(schema, Mapping):
            raise InvalidInput.field("response_format.json_schema.schema", "is required")
        config = made.get("output_config")
        config = config if isinstance(config, Mapping) else {}
        if traits.structured_output and "format" in config:
            return  # as the caller of the Messages API wrote it
        if traits.structured_output:
            made["output_config"] = {**config, "format": {"type": "json_schema", "schema": compilable(schema)}}
        else:
            made.pop("output_config", None)
            _answer_tool(made, schema, text_of(named.get("description")))
    elif kind == "json_object":
        if traits.structured_output or _thinks(made):
            system.append({"type": "text", "text": _JSON_ONLY})
        else:
            _answer_tool(made, {"type": "object"}, "")
    elif kind not in (None, "text"):
        raise unfit(f"the Messages API has no response_format of type {kind}", "response_format")


def _answer_tool(made: dict[str, Any], schema: Mapping[str, Any], description: str) -> None:
    """A tool whose call is the answer. With tools of the caller's beside it the model calls either."""
    if _thinks(made):
        raise unfit("this model has no structured output while it thinks", "response_format")
    whole = schema if schema.get("type") == "object" else {"type": "object", **schema}
    tool = {"name": JSON_TOOL, "description": description or "Gives the final answer to the user.", "input_schema": whole}
    others = [] if made.get("tool_choice", {}).get("type") == "none" else made.get("tools", [])
    made["tools"] = [*others, tool]
    if made.get("tool_choice", {}).get("type") != "tool":
        made["tool_choice"] = {"type": "any"} if others else {"type": "tool", "name": JSON_TOOL}


def _remembered_tools(made: dict[str, Any], messages: list[dict[str, Any]]) -> None:
    """The API wants tools where earlier turns used some; they are named again, and may not be called."""
    if "tools" in made:
        return
    names = {
        block["name"]: None for message in messages if isinstance(message["content"], list)
        for block in message["content"] if block.get("type") == "tool_use"
    }  # fmt: skip
    if names:
        made["tools"] = [{"name": name, "input_schema": {"type": "object"}} for name in names]
        made["tool_choice"] = {"type": "none"}
