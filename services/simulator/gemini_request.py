"""A generateContent request in the form the rules work on. What Gemini refuses with 400 is refused here in like words.

Names are taken in camelCase and, as Google's JSON has it, in snake_case. A name that does not exist is refused, as Google does.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from services.simulator.chat_request import ChatRequest, Message, PastCall, Tool
from services.simulator.gemini_schema import plain_schema
from services.simulator.refusals import Refused
from services.simulator.scalars import Numbers, is_model_name
from services.simulator.signatures import is_signed

MAX_TOOLS = 512
MAX_CANDIDATES = 8
SKIP_SIGNATURE = "skip_thought_signature_validator"
"""What a client may send for the signature of a call that no Gemini model made."""

_TOOL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,127}")
_NUMBERS = Numbers(
    not_integer=lambda name, value: Refused(f"Invalid value at 'generation_config.{name}' (TYPE_INT32), {str(value)[:40]!r}"),
    below=lambda name, _, low: Refused(f"* GenerateContentRequest.generation_config.{name}: must be at least {low}."),
    not_number=lambda name, value: Refused(f"Invalid value at 'generation_config.{name}' (TYPE_FLOAT), {str(value)[:40]!r}"),
    outside=lambda name, _, low, high: Refused(f"* GenerateContentRequest.generation_config.{name}: must be in the range [{low}, {high}]."),
)
_LEVEL_TOKENS: Mapping[str, int] = {"MINIMAL": 4, "LOW": 8, "MEDIUM": 16, "HIGH": 32, "XHIGH": 64}
_DYNAMIC_TOKENS = 16
_TOP_TEXT = "contents systemInstruction tools toolConfig generationConfig safetySettings cachedContent labels model serviceTier store"
_TOP = frozenset(_TOP_TEXT.split())
_CONFIG_TEXT = (
    "stopSequences responseMimeType responseSchema responseJsonSchema _responseJsonSchema responseModalities candidateCount "
    "maxOutputTokens temperature topP topK seed presencePenalty frequencyPenalty responseLogprobs logprobs "
    "enableEnhancedCivicAnswers speechConfig thinkingConfig imageConfig mediaResolution audioTimestamp responseFormat translationConfig"
)
_CONFIG = frozenset(_CONFIG_TEXT.split())
_BUILT_IN_TEXT = "googleSearch googleSearchRetrieval codeExecution urlContext computerUse googleMaps fileSearch mcpServers"
_BUILT_IN = frozenset(_BUILT_IN_TEXT.split())
_DECLARED_TEXT = "name description parameters parametersJsonSchema response responseJsonSchema behavior"
_DECLARED = frozenset(_DECLARED_TEXT.split())
_SNAKE = re.compile(r"_([a-z])")


def named(value: Any, known: frozenset[str] | None, where: str) -> dict[str, Any]:
    """The object with its names in camelCase; raises Refused where it is none or, with `known`, has a name that does not exist."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Refused(f"Invalid value at '{where}': expected an object.")
    found = {name if name.startswith("_") else _SNAKE.sub(lambda match: match.group(1).upper(), name): item for name, item in value.items()}
    if known is not None and (unknown := found.keys() - known):
        raise Refused(f"Invalid JSON payload received. Unknown name \"{min(unknown)}\" at '{where}': Cannot find field.")
    return found


def parse_generate(body: Mapping[str, Any], model: str, stream: bool) -> tuple[ChatRequest, bytes]:
    """Check a request; returns it with its serialised tools. Raises Refused (400)."""
    if not is_model_name(model):
        raise Refused("* GenerateContentRequest.model: unexpected model name format")
    top = named(body, _TOP, "")
    config = named(top.get("generationConfig"), _CONFIG, "generation_config")
    tools = tuple(_tools(top.get("tools")))
    tools, tool_choice = _tool_choice(named(top.get("toolConfig"), None, "tool_config"), tools)
    for name, low, high in (("temperature", 0, 2), ("topP", 0, 1), ("presencePenalty", -2, 2), ("frequencyPenalty", -2, 2)):
        _NUMBERS.check(config, name, low, high)
    thinking_tokens, show_thinking = _thinking(config.get("thinkingConfig"))
    candidates = _NUMBERS.integer(config, "candidateCount", 1) or 1
    if candidates > MAX_CANDIDATES:
        raise Refused(f"* GenerateContentRequest.generation_config.candidate_count: must be in the range [1, {MAX_CANDIDATES}].")
    labels = top.get("labels")
    request = ChatRequest(
        model=model,
        messages=(*_system(top.get("systemInstruction")), *_contents(top.get("contents"))),
        tools=tools,
        tool_choice=tool_choice,
        parallel_tool_calls=True,
        stream=stream,
        include_usage=True,
        max_tokens=_NUMBERS.integer(config, "maxOutputTokens", 1),
        stop=_stop(config.get("stopSequences")),
        seed=_NUMBERS.integer(config, "seed", -(2**31)),
        response_schema=_response_schema(config),
        labels=tuple(value for value in labels.values() if isinstance(value, str)) if isinstance(labels, dict) else (),
        choices=candidates,
        thinking_tokens=thinking_tokens,
        show_thinking=show_thinking,
    )
    try:
        return request, orjson.dumps(top["tools"]) if top.get("tools") else b""
    except orjson.JSONEncodeError as error:
        raise Refused(f"Invalid value at 'tools': {error}") from None


def _stop(value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > 5 or not all(isinstance(item, str) and item for item in value):
        raise Refused("* GenerateContentRequest.generation_config.stop_sequences: must be up to 5 strings, none empty.")
    return tuple(value)


def _thinking(value: Any) -> tuple[int, bool]:
    """Tokens to think, and whether to show them."""
    config = named(value, None, "generation_config.thinking_config")
    shown = config.get("includeThoughts") is True
    budget, level = config.get("thinkingBudget"), config.get("thinkingLevel")
    if budget is not None and level is not None:
        raise Refused("You can only set only one of thinking budget and thinking level.")
    if level is not None:
        if not isinstance(level, str) or level.upper() not in _LEVEL_TOKENS:
            raise Refused(f"Invalid value at 'generation_config.thinking_config.thinking_level' (enum), {str(level)[:40]!r}")
        return _LEVEL_TOKENS[level.upper()], shown
    if budget is None:
        return (_DYNAMIC_TOKENS if shown else 0), shown
    if isinstance(budget, bool) or not isinstance(budget, int) or not -1 <= budget <= 65_536:
        raise Refused("The thinking budget is invalid. Please choose a value between -1 and 65536.")
    return (_DYNAMIC_TOKENS if budget == -1 else min(budget, 32)), shown


def _response_schema(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    kind = config.get("responseMimeType")
    schema = config.get("responseSchema")
    json_schema = config.get("responseJsonSchema", config.get("_responseJsonSchema"))
    if kind not in (None, "text/plain", "application/json", "text/x.enum"):
        raise Refused("* GenerateContentRequest.generation_config.response_mime_type: allowed mimetypes are text/plain, application/json.")
    if schema is not None and json_schema is not None:
        raise Refused("Only one of response_schema and response_json_schema may be set.")
    if kind != "application/json":
        if schema is not None or json_schema is not None:
            raise Refused("Function calling or a response schema with a response mime type other than 'application/json' is unsupported")
        return None
    if json_schema is not None and not isinstance(json_schema, dict):
        raise Refused("Invalid value at 'generation_config.response_json_schema': expected an object.")
    return (
        json_schema if json_schema is not None else plain_schema(schema, "generation_config.response_schema") if schema is not None else {}
    )


def _tools(value: Any) -> Iterator[Tool]:
    if value is None:
        return
    if not isinstance(value, list):
        raise Refused("Invalid value at 'tools': expected a list.")
    names: set[str] = set()
    for position, entry in enumerate(value):
        tool = named(entry, _BUILT_IN | {"functionDeclarations"}, f"tools[{position}]")
        declared = tool.get("functionDeclarations") or []
        if not isinstance(declared, list) or len(declared) > MAX_TOOLS:
            raise Refused(f"* GenerateContentRequest.tools[{position}]: must be a list of at most {MAX_TOOLS} function declarations.")
        for index, item in enumerate(declared):
            where = f"tools[{position}].function_declarations[{index}]"
            one = named(item, _DECLARED, where)
            name = one.get("name")
            if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
                raise Refused(f"* GenerateContentRequest.{where}.name: Invalid function name. Must start with a letter or an underscore.")
            if name in names:
                raise Refused(f"Duplicate function declaration found: {name}")
            names.add(name)
            schema = one.get("parametersJsonSchema")
            if schema is None:
                schema = plain_schema(one.get("parameters") or {}, f"{where}.parameters")
            if not isinstance(schema, dict):
                raise Refused(f"Invalid value at '{where}.parameters_json_schema': expected an object.")
            description = one.get("description")
            yield Tool(name, description if isinstance(description, str) else "", schema)


def _tool_choice(config: Mapping[str, Any], tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], str]:
    calling = named(config.get("functionCallingConfig"), None, "tool_config.function_calling_config")
    mode, allowed = calling.get("mode", "AUTO"), calling.get("allowedFunctionNames")
    if mode not in ("AUTO", "ANY", "NONE", "VALIDATED", "MODE_UNSPECIFIED"):
        raise Refused(f"Invalid value at 'tool_config.function_calling_config.mode' (enum), {str(mode)[:40]!r}")
    if allowed:
        if mode not in ("ANY", "VALIDATED"):
            raise Refused("Function calling config is set without mode ANY: allowed_function_names needs it.")
        if not isinstance(allowed, list) or not {tool.name for tool in tools}.issuperset(name for name in allowed if isinstance(name, str)):
            raise Refused("* GenerateContentRequest.tool_config.function_calling_config.allowed_function_names: not among the tools.")
        tools = tuple(tool for tool in tools if tool.name in allowed)
    if not tools:
        if mode == "ANY":
            raise Refused("Function calling mode ANY needs function declarations.")
        return tools, "none"
    if mode == "ANY":
        return tools, f"={tools[0].name}" if len(tools) == 1 else "required"
    return tools, "none" if mode == "NONE" else "auto"


def _system(value: Any) -> Iterator[Message]:
    if value is None:
        return
    parts = named(value, None, "system_instruction").get("parts")
    reader = _Parts("system_instruction", {})
    reader.read(parts)
    if reader.text:
        yield Message("system", reader.text)


def _contents(value: Any) -> Iterator[Message]:
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list) or not value:
        raise Refused("* GenerateContentRequest.contents: contents is not specified")
    pending: dict[str, str] = {}
    for index, item in enumerate(value):
        content = named(item, None, f"contents[{index}]")
        role = content.get("role", "user")
        if role not in ("user", "model", "function"):
            raise Refused("Please use a valid role: user, model.")
        reader = _Parts(f"contents[{index}]", pending, role)
        reader.read(content.get("parts"))
        if pending and len(reader.results) != len(pending):
            raise _unequal()
        if reader.results and not pending:
            raise Refused("Please ensure that function response turn comes immediately after a function call turn.")
        pending = {call.id: call.name for call in reader.calls}
        yield from reader.results
        if reader.text or reader.images or reader.calls or not reader.results:
            yield Message("assistant" if role == "model" else "user", reader.text, reader.images, tuple(reader.calls))
    if pending:
        raise _unequal()


def _unequal() -> Refused:
    return Refused(
        "Please ensure that the number of function response parts is equal to the number of function call parts of the function call turn."
    )


class _Parts:
    """The parts of one content. `pending` are the calls that this content answers, names by id."""

    def __init__(self, where: str, pending: Mapping[str, str], role: str = "user"):
        self._where = where
        self._role = role
        self._open = dict(pending)
        self._texts: list[str] = []
        self.images = 0
        self.calls: list[PastCall] = []
        self.results: list[Message] = []

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def read(self, parts: Any) -> None:
        if not isinstance(parts, list) or not parts:
            raise Refused(f"* GenerateContentRequest.{self._where}.parts: contents.parts must not be empty.")
        for index, item in enumerate(parts):
            where = f"{self._where}.parts[{index}]"
            part = named(item, None, where)
            signature = part.get("thoughtSignature")
            if signature is not None:
                _check_signature(signature, where)
            if isinstance(part.get("text"), str):
                if part.get("thought") is not True:
                    self._texts.append(part["text"])
            elif isinstance(part.get("inlineData"), dict) or isinstance(part.get("fileData"), dict):
                self.images += 1
                _check_data(part.get("inlineData"), where)
            elif isinstance(part.get("functionCall"), dict):
                self._call(part["functionCall"], where)
            elif isinstance(part.get("functionResponse"), dict):
                self._result(part["functionResponse"], where)
            elif not {"executableCode", "codeExecutionResult", "toolCall", "toolResponse"} & part.keys():
                raise Refused(f"* GenerateContentRequest.{where}.data: required oneof field 'data' must have one initialized field")

    def _call(self, call: Mapping[str, Any], where: str) -> None:
        name, arguments = call.get("name"), call.get("args") or {}
        if self._role != "model" or not isinstance(name, str) or not name or not isinstance(arguments, dict):
            raise Refused(f"* GenerateContentRequest.{where}.function_call: needs a name and args, in a turn of the model.")
        given = call.get("id")
        try:
            arguments_json = orjson.dumps(arguments).decode()
        except orjson.JSONEncodeError as error:
            raise Refused(f"Invalid value at '{where}.function_call.args': {error}") from None
        call_id = given if isinstance(given, str) and given else f"call-{len(self.calls)}"
        self.calls.append(PastCall(call_id, name, arguments, arguments_json))

    def _result(self, result: Mapping[str, Any], where: str) -> None:
        name, response, given = result.get("name"), result.get("response"), result.get("id")
        if not isinstance(name, str) or not isinstance(response, dict):
            raise Refused(f"* GenerateContentRequest.{where}.function_response: needs a name and an object as response.")
        call_id = given if isinstance(given, str) and given in self._open else None
        if call_id is None:
            # Without ids the calls of one name are answered in their order.
            call_id = next((one for one, asked in self._open.items() if asked == name), None)
        if call_id is None:
            raise _unequal()
        del self._open[call_id]
        try:
            text = orjson.dumps(response).decode()
        except orjson.JSONEncodeError as error:
            raise Refused(f"Invalid value at '{where}.function_response.response': {error}") from None
        values = [response.get(key) for key in ("output", "result", "error")]
        plain = next((value for value in values if isinstance(value, str)), None)
        if plain is not None and len(response) == 1:
            text = f"error: {plain}" if "error" in response else plain
        self.results.append(Message("tool", text, 0, (), call_id))


def _check_signature(value: Any, where: str) -> None:
    if value != SKIP_SIGNATURE and not (isinstance(value, str) and is_signed("", _standard(value))):
        raise Refused(f"Thought signature is not valid at '{where}'.")


def _standard(text: str) -> str:
    """Base64 in the standard alphabet: Google's JSON may have either."""
    return text.replace("-", "+").replace("_", "/")


def _check_data(value: Any, where: str) -> None:
    """Gemini decodes what it is given inline."""
    if value is None:
        return
    data = named(value, None, where).get("data")
    try:
        base64.b64decode(_standard(data) if isinstance(data, str) else "", validate=True)
    except (binascii.Error, ValueError):
        raise Refused(f"Invalid value at '{where}.inline_data.data' (TYPE_BYTES), Base64 decoding failed") from None
    if not isinstance(data, str) or not data:
        raise Refused(f"* GenerateContentRequest.{where}.inline_data.data: must not be empty.")
