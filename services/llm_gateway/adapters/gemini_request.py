"""From an OpenAI chat request to one of Gemini's generateContent. Fields as in the API reference of v1beta, 2026."""

import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

from services.common.errors import InvalidInput
from services.llm_gateway.chat import text_of
from services.llm_gateway.failures import Failure, FailureClass, UpstreamFault
from services.llm_gateway.messages_shape import media_type_at

MAX_STOPS = 5
_VIDEO = re.compile(r"https?://(?:[\w-]+\.)*(?:youtube(?:-nocookie)?\.com|youtu\.be)(?:[:/?#]|\Z)|data:video/", re.I)
# What Gemini's documentation tells a history to carry that holds calls of another model, or whose signatures were lost on the way.
NO_SIGNATURE = "skip_thought_signature_validator"
_VERSION = re.compile(r"gemini-(\d+)(?:\.\d+)?")
# Tokens of thinking, as Gemini's own OpenAI-compatible layer maps the words for models that take a number.
_BUDGETS: Mapping[str, int] = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576, "max": 24576}
# The same for models that take a level; they cannot stop thinking altogether.
_LEVELS: Mapping[str, str] = {
    "none": "MINIMAL", "minimal": "MINIMAL", "low": "LOW", "medium": "MEDIUM", "high": "HIGH", "xhigh": "HIGH", "max": "HIGH",
}  # fmt: skip
_NUMBERS: Mapping[str, str] = {
    "temperature": "temperature", "top_p": "topP", "top_k": "topK", "seed": "seed", "n": "candidateCount",
    "presence_penalty": "presencePenalty", "frequency_penalty": "frequencyPenalty",
}  # fmt: skip
# What changes the answer at OpenAI and has no likeness here; None and these values change nothing.
_UNSAYABLE: Mapping[str, Sequence[Any]] = {
    "logit_bias": ({},), "audio": (), "prediction": (), "web_search_options": (), "functions": ([],), "function_call": ("none", "auto"),
}  # fmt: skip
_MODES: Mapping[str, str] = {"none": "NONE", "auto": "AUTO", "required": "ANY"}


def unfit(message: str) -> UpstreamFault:
    """A request that another provider could take."""
    return UpstreamFault(Failure(FailureClass.UNFIT, message))


def takes_levels(model: str) -> bool:
    """Whether thinking is asked for by level: Gemini 3 and later, and names without a version, which are the newest."""
    found = _VERSION.search(model)
    return found is None or int(found[1]) >= 3


def content_body(body: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The body of generateContent for an OpenAI request. Raises InvalidInput, and UpstreamFault (UNFIT)."""
    for name, harmless in _UNSAYABLE.items():
        value = body.get(name)
        if value is not None and value not in harmless:
            raise unfit(f"Gemini has nothing like {name}")
    if body.get("modalities") not in (None, ["text"]):
        raise unfit("Gemini is asked for text only")
    newest = takes_levels(model)
    system, contents = _Conversation(newest).read(body["messages"])
    made: dict[str, Any] = {"contents": contents or [{"role": "user", "parts": system}]}
    if system and contents:
        made["systemInstruction"] = {"parts": system}
    if declarations := _declarations(body.get("tools") or ()):
        made["tools"] = [{"functionDeclarations": declarations}]
        if body.get("parallel_tool_calls") is False and len(declarations) > 1:
            raise unfit("Gemini cannot be told to make one tool call at a time")
    if (choice := body.get("tool_choice")) is not None and declarations:
        made["toolConfig"] = {"functionCallingConfig": _calling(choice)}
    if config := _generation(body, newest, tools=bool(declarations)):
        made["generationConfig"] = config
    google = _google(body)
    for name, wanted in (("safety_settings", "safetySettings"), ("cached_content", "cachedContent")):
        if (value := body.get(name, google.get(name))) is not None:
            made[wanted] = value
    return made


def _generation(body: Mapping[str, Any], newest: bool, *, tools: bool) -> dict[str, Any]:
    config = {wanted: body[name] for name, wanted in _NUMBERS.items() if body.get(name) is not None}
    most = body.get("max_completion_tokens")
    if most is None:
        most = body.get("max_tokens")
    if most is not None:
        config["maxOutputTokens"] = most
    stop = body.get("stop")
    if stop:
        stops = [stop] if isinstance(stop, str) else stop
        if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
            raise InvalidInput.field("stop", "must be a text or a list of texts")
        if len(stops) > MAX_STOPS:
            raise unfit(f"Gemini takes at most {MAX_STOPS} stop sequences")
        config["stopSequences"] = stops
    if body.get("logprobs"):
        config["responseLogprobs"] = True
        if top := body.get("top_logprobs"):
            config["logprobs"] = top
    _add_format(config, body.get("response_format") or {}, tools=tools and not newest)
    if thinking := _thinking(body, newest):
        config["thinkingConfig"] = thinking
    return config


def _add_format(config: dict[str, Any], wanted: Mapping[str, Any], *, tools: bool) -> None:
    kind = wanted.get("type", "text")
    if kind == "text":
        return
    if kind not in ("json_object", "json_schema"):
        raise InvalidInput.field("response_format.type", "must be text, json_object or json_schema")
    if tools:
        raise unfit("this Gemini model cannot be given tools and a JSON response format together")
    config["responseMimeType"] = "application/json"
    if kind == "json_schema":
        named = wanted.get("json_schema")
        schema = named.get("schema") if isinstance(named, Mapping) else None
        if not isinstance(schema, Mapping):
            raise InvalidInput.field("response_format.json_schema.schema", "must be a JSON Schema object")
        config["responseJsonSchema"] = schema


def _google(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What Gemini's own OpenAI-compatible layer takes beside OpenAI's fields: `extra_body.google`."""
    extra = body.get("extra_body")
    found = extra.get("google") if isinstance(extra, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _thinking(body: Mapping[str, Any], newest: bool) -> dict[str, Any]:
    own = _google(body).get("thinking_config")
    if isinstance(own, Mapping):
        return {re.sub(r"_(.)", lambda found: found[1].upper(), name): value for name, value in own.items()}
    effort = body.get("reasoning_effort")
    if effort is not None:
        table: Mapping[str, Any] = _LEVELS if newest else _BUDGETS
        if not isinstance(effort, str) or effort not in table:
            raise InvalidInput.field("reasoning_effort", f"must be one of {', '.join(_LEVELS)}")
        shown = {} if effort == "none" else {"includeThoughts": True}
        return {"thinkingLevel" if newest else "thinkingBudget": table[effort], **shown}
    asked = body.get("thinking")  # Anthropic's field, of a caller that speaks Anthropic's API
    if isinstance(asked, Mapping) and asked.get("type") == "enabled" and isinstance(asked.get("budget_tokens"), int):
        return {"thinkingBudget": asked["budget_tokens"], "includeThoughts": True}
    return {}


def _declarations(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    found = []
    for tool in tools:
        if tool.get("type", "function") != "function":
            # Search and the like are billed by the query, which no usage report of this API tells.
            raise unfit(f"Gemini is offered functions only, not the tool type {str(tool.get('type'))[:64]!r}")
        function = tool["function"]
        made = {"name": function["name"]}
        if description := function.get("description"):
            made["description"] = description
        if parameters := function.get("parameters"):
            made["parametersJsonSchema"] = parameters
        found.append(made)
    return found


def _calling(choice: str | Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(choice, str):
        if choice not in _MODES:
            raise InvalidInput.field("tool_choice", "must be none, auto, required or an object")
        return {"mode": _MODES[choice]}
    if choice.get("type") == "function" and isinstance(choice.get("function"), Mapping):
        return {"mode": "ANY", "allowedFunctionNames": [text_of(choice["function"].get("name"))]}
    allowed = choice.get("allowed_tools")
    if choice.get("type") == "allowed_tools" and isinstance(allowed, Mapping) and isinstance(allowed.get("tools"), list):
        functions = [tool.get("function") for tool in allowed["tools"] if isinstance(tool, Mapping)]
        names = [text_of(function.get("name")) for function in functions if isinstance(function, Mapping)]
        # VALIDATED is AUTO that keeps to the allowed names.
        return {"mode": "ANY" if allowed.get("mode") == "required" else "VALIDATED", "allowedFunctionNames": names}
    raise unfit(f"Gemini has no tool_choice of type {str(choice.get('type'))[:64]!r}")


class _Conversation:
    """Reads messages into contents; knows the names of the calls that tool messages answer."""

    def __init__(self, newest: bool) -> None:
        self._newest = newest
        self._names: dict[str, str] = {}

    def read(self, messages: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The parts of the system instruction, and the contents."""
        system: list[dict[str, Any]] = []
        contents: list[dict[str, Any]] = []
        answering = False
        for number, message in enumerate(messages):
            where, role = f"messages[{number}]", message["role"]
            if role in ("tool", "function"):
                # All answers to the calls of one turn belong into one content.
                if not answering:
                    contents.append({"role": "user", "parts": []})
                contents[-1]["parts"] += self._response(message, where)
                answering = True
                continue
            if role in ("system", "developer"):
                system += _parts(message.get("content"), where)
                continue
            answering = False
            parts = self._model_parts(message, where) if role == "assistant" else list(_parts(message.get("content"), where))
            if parts:
                contents.append({"role": "model" if role == "assistant" else "user", "parts": parts})
        return system, contents

    def _model_parts(self, message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        content = message.get("content")
        parts = [part for part in _parts(content, where) if part.get("text") != ""] if content else []
        if refusal := message.get("refusal"):
            parts.append({"text": refusal})
        if (signature := _signature(message)) and parts:
            parts[-1]["thoughtSignature"] = signature
        calls = message.get("tool_calls") or ()
        signed = any(_signature(call) for call in calls)
        for number, call in enumerate(calls):
            function = call.get("function")
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise InvalidInput.field(f"{where}.tool_calls[{number}].function", "must be an object with a name")
            made: dict[str, Any] = {"name": function["name"], "args": _arguments(function.get("arguments"))}
            if call_id := text_of(call.get("id")):
                made["id"] = call_id
                self._names[call_id] = function["name"]
            part: dict[str, Any] = {"functionCall": made}
            if signature := _signature(call):
                part["thoughtSignature"] = signature
            elif self._newest and not signed and number == 0:
                part["thoughtSignature"] = NO_SIGNATURE
            parts.append(part)
        return parts

    def _response(self, message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
        call_id = text_of(message.get("tool_call_id"))
        name = self._names.get(call_id) or text_of(message.get("name"))
        if not name:
            raise InvalidInput.field(f"{where}.tool_call_id", "answers no tool call of the messages before it")
        content = message.get("content")
        parts = list(_parts(content, where)) if isinstance(content, list) else [{"text": text_of(content)}]
        media = [part for part in parts if "text" not in part]
        response: dict[str, Any] = {"name": name, "response": _output("".join(part.get("text", "") for part in parts))}
        if call_id:
            response["id"] = call_id
        if media and self._newest:
            response["parts"] = media
            media = []
        return [{"functionResponse": response}, *media]


def _output(text: str) -> Mapping[str, Any]:
    """A result is an object here: one that is an object stays as it is, all else is its `output`."""
    if text.startswith("{"):
        try:
            found = orjson.loads(text)
        except orjson.JSONDecodeError:
            return {"output": text}
        if isinstance(found, dict):
            return found
    return {"output": text}


def _arguments(raw: Any) -> Mapping[str, Any]:
    if not raw:
        return {}
    try:
        found = orjson.loads(raw)
    except (orjson.JSONDecodeError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise unfit("Gemini takes tool calls only with arguments that are a JSON object")
    return found


def _signature(holder: Mapping[str, Any]) -> str:
    """The thought signature of a message or a tool call, where Gemini's compatible layer and LiteLLM keep it."""
    extra = holder.get("extra_content")
    google = extra.get("google") if isinstance(extra, Mapping) else None
    found = google.get("thought_signature") if isinstance(google, Mapping) else None
    if not found:
        fields = holder.get("provider_specific_fields")
        found = fields.get("thought_signature") if isinstance(fields, Mapping) else None
    return text_of(found)


def _parts(content: Any, where: str) -> Iterator[dict[str, Any]]:
    if isinstance(content, str):
        yield {"text": content}
        return
    for number, part in enumerate(content or ()):
        yield _part(part, f"{where}.content[{number}]")


def _part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    match part.get("type"):
        case "text" | "refusal" as kind if isinstance(part.get(kind), str):
            return {"text": part[kind]}
        case "image_url":
            image = part.get("image_url")
            url = image.get("url") if isinstance(image, Mapping) else image
            if not isinstance(url, str) or not url:
                raise InvalidInput.field(f"{where}.image_url.url", "is required")
            if _VIDEO.match(url):
                # A film of hours in the place, and at the reserve, of one picture.
                raise unfit("a video is no image")
            return _media(url, f"{where}.image_url.url")
        case "input_audio" if isinstance(audio := part.get("input_audio"), Mapping) and isinstance(audio.get("data"), str):
            return {"inlineData": {"mimeType": f"audio/{audio.get('format') or 'wav'}", "data": audio["data"]}}
        case "file" if isinstance(file := part.get("file"), Mapping):
            if isinstance(data := file.get("file_data"), str) and data:
                named = mimetypes.guess_type(text_of(file.get("filename")))[0]
                return _media(data, f"{where}.file.file_data", bare=named or "application/pdf")
            if isinstance(uri := file.get("file_id"), str) and "://" in uri:
                return {"fileData": {"fileUri": uri, **({"mimeType": file["format"]} if file.get("format") else {})}}
            raise unfit("Gemini does not know OpenAI's file ids")
    raise InvalidInput.field(f"{where}.type", "must be text, image_url, input_audio or file, with its content")


def _media(url: str, where: str, *, bare: str = "") -> dict[str, Any]:
    """A data: URL as inline data, every other URL for the provider to fetch; `bare` is the type of base64 that comes without a URL."""
    if url.startswith("data:"):
        head, comma, data = url[5:].partition(",")
        kind, *flags = head.split(";")
        if not comma or "base64" not in flags:
            raise InvalidInput.field(where, "a data: URL must hold base64")
        return {"inlineData": {"mimeType": kind or bare or "image/jpeg", "data": data}}
    if "://" not in url[:16]:
        if bare:
            return {"inlineData": {"mimeType": bare, "data": url}}
        raise InvalidInput.field(where, "must be a URL")
    known = media_type_at(url)
    return {"fileData": {"fileUri": url, **({"mimeType": known} if known else {})}}
