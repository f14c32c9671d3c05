"""What is billed beside tokens of text is reserved for, settled, or refused: a cap holds whatever a request asks a provider to do."""

import random
from dataclasses import replace
from decimal import Decimal

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from services.common.errors import BudgetExceeded, BulkheadError, InvalidInput
from services.llm_gateway.adapters.anthropic import AnthropicDialect
from services.llm_gateway.adapters.gemini_answer import usage_of as gemini_usage
from services.llm_gateway.attempts import Policy
from services.llm_gateway.chat import ChatCall, parse_answer
from services.llm_gateway.completions import Completions
from services.llm_gateway.estimates import measure
from services.llm_gateway.extras import MOST_TOOL_USES, ROUNDS, TOOL_USES, Extras, extras_of
from services.llm_gateway.messages_shape import media_type_at
from services.llm_gateway.money import ExtraPrices, Prices
from services.llm_gateway.price_config import PriceKeys, prices_of
from services.llm_gateway.registry import Deployment, Group, Registry
from services.llm_gateway.testing import OpenGate, OpenPurse

# Pico-USD: $3 and $15 a million tokens, $10 and $20 a million of audio, a cent a search at most, three cents a session.
TEXT = Prices(3_000_000, 15_000_000, cached_input=300_000, reasoning=15_000_000, known=True)
ALL = replace(TEXT, extras=ExtraPrices(10_000_000, 20_000_000, (5 * 10**9, 8 * 10**9, 10**10), 3 * 10**10))
WINDOW = 2_500
WORDS = "word " * 300
SEARCH = {"type": "web_search_20250305", "name": "web_search"}
FETCH = {"type": "web_fetch_20250910", "name": "web_fetch"}
CODE = {"type": "code_execution_20250825", "name": "code_execution"}
FUNCTION = {"type": "function", "function": {"name": "f"}}
HEARD = {"type": "input_audio", "input_audio": {"data": "A" * 3_000, "format": "wav"}}


def deployment(adapter="openai", model="m", provider="", prices=ALL, window=WINDOW, number=0, **more):
    return Deployment(
        f"a{number}", "a", provider or adapter, adapter, model, "chat", prices=prices, max_input_tokens=window, order=number, **more
    )


def said(*parts, **fields):
    return {"messages": [{"role": "user", "content": [{"type": "text", "text": WORDS}, *parts]}], "max_tokens": 50, **fields}


def found_in(body, adapter="openai", **more):
    return extras_of(deployment(adapter, **more), body, measure(body))


def image(url):
    return {"type": "image_url", "image_url": {"url": url}}


def file(**fields):
    return {"type": "file", "file": fields}


@pytest.mark.parametrize(
    ("adapter", "body"),
    [
        ("openai", {"messages": [{"role": "user", "content": "x"}]}),
        ("openai", said(image("https://a.test/b.png"), tools=[FUNCTION], modalities=["text"])),
        ("anthropic", said(image("https://a.test/b"), anthropic={"thinking": {}}, tools=[FUNCTION])),
        ("gemini", said(image("https://a.test/b.png"), file(file_data="data:application/pdf;base64,AAAA"))),
        ("gemini", said(image("data:image/png;base64,AAAA"))),
    ],
)
def test_a_request_of_text_and_pictures_has_no_extras(adapter, body):
    assert found_in(body, adapter) is None


@pytest.mark.parametrize(
    ("adapter", "body", "expected"),
    [
        ("anthropic", said(tools=[SEARCH]), {"searches": TOOL_USES, "contexts": TOOL_USES + 1}),
        ("anthropic", said(tools=[{**SEARCH, "max_uses": 2}, FETCH]), {"searches": 2, "contexts": 2 + TOOL_USES + 1}),
        ("anthropic", said(tools=[{**SEARCH, "max_uses": 10**12}]), {"searches": MOST_TOOL_USES, "contexts": ROUNDS + 1}),
        ("anthropic", said(tools=[CODE]), {"sessions": 1, "contexts": ROUNDS + 1}),
        (
            "anthropic",
            said(tools=[{**SEARCH, "type": "web_search_20260209", "max_uses": 1}, CODE]),
            {"searches": 1, "sessions": 0, "contexts": ROUNDS + 1},
        ),
        ("anthropic", said(mcp_servers=[{"url": "https://a.test"}]), {"contexts": ROUNDS + 1}),
        ("anthropic", said(anthropic={"mcp_servers": [{}], "tools": [], "messages": []}), {"contexts": ROUNDS + 1}),
        ("anthropic", said({"type": "document", "source": {"type": "url", "url": "https://a.test/b.pdf"}}), {"contexts": 1}),
        ("gemini", said(extra_body={"google": {"cached_content": "cachedContents/x"}}), {"contexts": 1}),
        ("gemini", said(file(file_id="https://a.test/b.pdf")), {"contexts": 1, "audio_input": False}),
        ("gemini", said(file(file_id="https://a.test/files/b")), {"contexts": 1, "audio_input": True}),
        ("gemini", said(image("https://a.test/b.mp4")), {"contexts": 1, "audio_input": True}),
        ("gemini", said(image("data:audio/mp3;base64,AAAA")), {"contexts": 0, "audio_input": True}),
        ("gemini", said(HEARD), {"contexts": 0, "audio_input": True}),
        ("openai", said(HEARD, modalities=["text", "audio"]), {"audio_input": True, "audio_output": True}),
        ("openai", said(file(file_id="file-7")), {"contexts": 1}),
        ("openai", said(web_search_options={"search_context_size": "high"}, n=2), {"searches": 2, "search_size": 2, "contexts": 1}),
        ("openai", said(prediction={"type": "content", "content": "abc"}), {"output_tokens": 34}),
    ],
)
def test_what_is_reserved_beside_the_text(adapter, body, expected):
    found = found_in(body, adapter)
    assert {name: getattr(found, name) for name in expected} == expected
    assert found.missing == {}


@pytest.mark.parametrize(
    ("provider", "model", "expected"),
    [
        ("openai", "gpt-4o-search-preview", (1, 1, 0)),
        ("openai", "gpt-5-search-api", (1, 1, 1)),
        ("openrouter", "x/y:online", (1, 1, 1)),
        ("perplexity", "sonar", (1, 0, 0)),
    ],
)
def test_models_that_search_for_every_answer(provider, model, expected):
    found = found_in({"messages": [{"role": "user", "content": "x"}]}, provider=provider, model=model)
    assert (found.searches, found.search_size, found.contexts) == expected


@pytest.mark.parametrize(
    ("adapter", "body", "named"),
    [
        ("anthropic", said(tools=[SEARCH]), "web search (search_context_cost_per_query)"),
        ("anthropic", said(tools=[CODE]), "code execution (code_interpreter_cost_per_session)"),
        ("anthropic", said(tools=[{"type": "advisor_20260301", "name": "advisor"}]), "the tool advisor_20260301"),
        ("anthropic", said(anthropic={"context_management": {"edits": [{"type": "compact_20260112"}]}}), "context_management.compact"),
        ("openai", said(modalities=["audio"]), "audio output (output_cost_per_audio_token)"),
        ("openai", said(HEARD), "audio input (input_cost_per_audio_token)"),
        ("openai", said(plugins=[{"id": "web"}]), "plugins"),
        ("openai", said(tools=[{"type": "browser_search"}]), "the tool browser_search"),
    ],
)
async def test_an_extra_without_a_price_is_refused_by_name_or_served_with_a_warning(adapter, body, named):
    scene = Scene(deployment(adapter, prices=TEXT), deny_unpriced=True)
    with capture_logs() as logs, pytest.raises(InvalidInput) as caught:
        await scene.calls.complete(ChatCall("a", body))
    assert (caught.value.reason, scene.asked) == ("PRICE_UNKNOWN", [])
    assert named in caught.value.message
    assert told(logs) == (named, "refused, unless another deployment is left")

    scene = Scene(deployment(adapter, prices=TEXT))
    with capture_logs() as logs:
        completed = await scene.calls.complete(ChatCall("a", body))
    assert [notice.code for notice in completed.notices] == ["price_unknown"]
    assert told(logs) == (named, "counted as 0")


async def test_a_deployment_that_has_the_price_is_asked_in_place_of_one_that_has_not():
    scene = Scene(deployment("anthropic", prices=TEXT), deployment("anthropic", number=1), deny_unpriced=True)
    completed = await scene.calls.complete(ChatCall("a", said(tools=[SEARCH])))
    assert [attempt.deployment.id for attempt in scene.asked] == ["a1"]
    assert completed.outcome.usage.cost_picousd > 0


async def test_whole_contexts_need_a_length():
    scene = Scene(deployment("gemini", window=0), deny_unpriced=True)
    with pytest.raises(InvalidInput, match=r"max_input_tokens"):
        await scene.calls.complete(ChatCall("a", said(cached_content="cachedContents/x")))


@pytest.mark.parametrize("prices", [Prices(known=True), Prices()])
async def test_what_costs_nothing_or_nobody_knows_has_no_extras(prices):
    scene = Scene(deployment("anthropic", prices=prices, window=0))
    completed = await scene.calls.complete(ChatCall("a", said(tools=[SEARCH])))
    assert (completed.outcome.usage.cost_picousd, list(completed.notices)) == (0, [])


@pytest.mark.parametrize("adapter", ["openai", "anthropic", "gemini"])
def test_an_address_that_is_none_is_the_providers_to_refuse(adapter):
    where = "http://[/film.mp4"
    assert found_in(said({"type": "file", "file": {"file_id": where}}), adapter).contexts == 1
    assert media_type_at(where) == media_type_at("http://host.com") == media_type_at("film.mp4") == ""
    assert media_type_at("https://host/film.mp4?page=1") == "video/mp4"


@pytest.mark.parametrize("edits", [5, {"a": 1}, "compact", [5], [{"type": 5}]])
def test_edits_of_no_known_shape_are_the_providers_to_refuse(edits):
    assert found_in(said(context_management={"edits": edits}), "anthropic") is None


async def test_the_bound_of_a_tool_that_is_reserved_is_sent():
    scene = Scene(deployment("anthropic"))
    await scene.calls.complete(ChatCall("a", said(tools=[SEARCH, {**FETCH, "max_uses": 3}, FUNCTION])))
    sent = orjson.loads(AnthropicDialect().chat(scene.asked[0], stream=False).body)
    assert [tool.get("max_uses") for tool in sent["tools"]] == [TOOL_USES, 3, None]


USAGE = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}


@pytest.mark.parametrize(
    ("adapter", "body", "reported", "cost", "estimated"),
    [
        # 1,000 at $3 and 100 at $15 a million are 4,500 micro-USD; a search of medium size is 8,000.
        ("anthropic", said(tools=[SEARCH]), {"server_tool_use": {"web_search_requests": 2}}, 4_500 + 16_000, False),
        ("anthropic", said(tools=[SEARCH]), {}, 4_500, False),
        ("anthropic", said(tools=[CODE]), {}, 4_500 + 30_000, True),
        ("openai", said(web_search_options={"search_context_size": "low"}), {}, 4_500 + 5_000, True),
        ("openai", said(HEARD), {"prompt_tokens_details": {"audio_tokens": 400}}, 4_500 + 400 * 7, False),
        # 800 of 1,000 are cached, so at least 200 of the 400 of audio are: all of these are charged as audio.
        (
            "openai", said(HEARD), {"prompt_tokens_details": {"audio_tokens": 400, "cached_tokens": 800}},
            600 * 0.3 + 400 * 10 + 100 * 15, False,
        ),
        ("openai", said(HEARD), {}, 1_000 * 10 + 100 * 15, True),
        ("openai", said(modalities=["audio"]), {"completion_tokens_details": {"audio_tokens": 90}}, 4_500 + 90 * 5, False),
        ("openai", said(modalities=["audio"]), {"completion_tokens_details": {"reasoning_tokens": 40}}, 4_500 + 60 * 5, True),
    ],
)  # fmt: skip
async def test_what_an_extra_turns_out_to_cost(adapter, body, reported, cost, estimated):
    scene = Scene(deployment(adapter), usage={**USAGE, **reported})
    completed = await scene.calls.complete(ChatCall("a", body))
    assert (completed.outcome.usage.cost_microusd, completed.outcome.usage.estimated) == (cost, estimated)
    ((ticket, usage, _),) = scene.purse.settled
    assert usage.cost_nanousd <= ticket.ask.cost_nanousd


@pytest.mark.parametrize(
    ("found", "nanousd"),
    [
        (Extras(audio_output=True), 100 * 3_000 + 10 * 20_000),
        (Extras(audio_input=True), 100 * 10_000 + 10 * 15_000),
        (Extras(searches=2, search_size=2), 100 * 3_000 + 10 * 15_000 + 2 * 10**7),
        (Extras(sessions=1), 100 * 3_000 + 10 * 15_000 + 3 * 10**7),
    ],
)
def test_the_bound_of_each_extra(found, nanousd):
    assert found.bound_nanousd(ALL, 100, 10) == nanousd


async def test_a_model_that_always_searches_costs_a_search_that_nobody_counts():
    scene = Scene(deployment(model="gpt-4o-search-preview"), usage=USAGE)
    usage = (await scene.calls.complete(ChatCall("a", said()))).outcome.usage
    assert (usage.cost_microusd, usage.estimated) == (4_500 + 8_000, False)


async def test_without_usage_an_extra_costs_what_was_reserved():
    scene = Scene(deployment("anthropic"), usage=None)
    await scene.calls.complete(ChatCall("a", said(tools=[SEARCH])))
    ((ticket, usage, _),) = scene.purse.settled
    assert (usage.cost_nanousd, usage.estimated) == (ticket.ask.cost_nanousd, True)


async def test_what_tools_read_teaches_nothing_about_prompts():
    scene = Scene(deployment("anthropic"), usage={**USAGE, "prompt_tokens": 90_000})
    plain = measure(said())
    before = scene.calls.estimates.input_bound("a0", plain)
    await scene.calls.complete(ChatCall("a", said(tools=[SEARCH])))
    assert scene.calls.estimates.input_bound("a0", plain) == before


def test_gemini_tells_the_audio_of_a_prompt():
    told = {"promptTokenCount": 9, "candidatesTokenCount": 1, "promptTokensDetails": [{"modality": "AUDIO", "tokenCount": 7}]}
    assert gemini_usage(told)["prompt_tokens_details"]["audio_tokens"] == 7


def test_the_prices_of_litellms_table_are_read():
    keys = PriceKeys.model_validate(
        {
            "input_cost_per_token": 1e-6, "output_cost_per_token": 2e-6, "input_cost_per_audio_token": 4e-6,
            "output_cost_per_audio_token": 0,
            "search_context_cost_per_query": {"search_context_size_low": 0.01, "search_context_size_high": "0.025"},
            "code_interpreter_cost_per_session": 0.03,
        }
    )  # fmt: skip
    found = prices_of([keys], output_needed=True)
    assert found.extras == ExtraPrices(4_000_000, 0, (10**10, 25 * 10**9, 25 * 10**9), 3 * 10**10)
    assert keys.unknown() == []
    one = PriceKeys.model_validate({"search_context_cost_per_query": 0.005})
    assert prices_of([one], output_needed=True).extras.searches == (5 * 10**9,) * 3
    assert prices_of([PriceKeys(search_context_cost_per_query=None)], output_needed=True).extras.searches is None
    with pytest.raises(ValueError, match="search_context_size_low"):
        PriceKeys.model_validate({"search_context_cost_per_query": {"search_context_size_low": Decimal(-1)}})


SEARCHES = st.fixed_dictionaries(
    {"type": st.sampled_from([SEARCH["type"], "web_search_20260209"])}, optional={"max_uses": st.integers(-1, 300)}
)
TOOLS = st.lists(st.sampled_from([FETCH, CODE, FUNCTION, {"type": "bash_20250124", "name": "bash"}]), max_size=3)
PARTS = st.lists(
    st.sampled_from(
        [HEARD, image("https://a.test/b.mp4"), image("data:audio/mp3;base64,AAAA"), file(file_id="https://a.test/x"),
         {"type": "document", "source": {"type": "file", "file_id": "f"}}]
    ),
    max_size=2,
)  # fmt: skip
FIELD_VALUES = {
    "mcp_servers": st.just([{"url": "https://a.test"}]),
    "cached_content": st.just("cachedContents/x"),
    "web_search_options": st.fixed_dictionaries({}, optional={"search_context_size": st.sampled_from(["low", "medium", "high", 7])}),
    "modalities": st.sampled_from([["text"], ["text", "audio"]]),
    "prediction": st.just({"type": "content", "content": "abc"}),
    "n": st.integers(1, 3),
}
FIELDS = st.fixed_dictionaries({}, optional=FIELD_VALUES)
# What the request of each API has a word for; the rest never reaches a provider.
TAKEN = {"anthropic": {"mcp_servers"}, "gemini": {"cached_content", "n"}, "openai": FIELD_VALUES}
TIERED = replace(ALL, above_tokens=8_000, above=replace(TEXT, input=6_000_000, output=22_000_000))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["anthropic", "openai", "gemini"]),
    st.lists(st.tuples(PARTS, SEARCHES | st.none(), TOOLS, FIELDS, st.randoms(use_true_random=False)), min_size=1, max_size=4),
    st.sampled_from([ALL, TIERED, replace(ALL, extras=ExtraPrices())]),
    st.sampled_from([5 * 10**7, 10**9, 10**12]),
)
async def test_no_mix_of_extras_costs_more_than_was_reserved_or_passes_a_cap(adapter, calls, prices, cap_nanousd):
    """The provider bills as much as the request that it got lets it."""
    scene = Scene(deployment(adapter, prices=prices), deny_unpriced=True, cap_nanousd=cap_nanousd)
    for parts, search, tools, fields, chance in calls:
        body = said(*parts, **{name: value for name, value in fields.items() if name in TAKEN[adapter]})
        body["max_tokens"] = 5_000
        if adapter == "anthropic":
            body["tools"] = [*tools, *([{**search, "name": "web_search"}] if search else [])]
        scene.bill = lambda attempt, chance=chance: most_billed(attempt, chance)
        try:
            await scene.calls.complete(ChatCall("a", body))
        except BulkheadError:
            continue
    for ticket, usage, _ in scene.purse.settled:
        assert usage.cost_nanousd <= ticket.ask.cost_nanousd
    assert sum(usage.cost_nanousd for _, usage, _ in scene.purse.settled) <= cap_nanousd


def most_billed(attempt, chance):
    """Usage of a provider that does all that the request which was sent lets it do, or some of it, and that counts it, or does not."""
    body, kinds = attempt.body, [tool["type"] for tool in attempt.body.get("tools", ())]
    uses = sum(tool["max_uses"] for tool in body.get("tools", ()) if tool["type"].startswith("web_search_"))
    fetches = sum(tool["max_uses"] for tool in body.get("tools", ()) if tool["type"].startswith("web_fetch_"))
    unbounded = "mcp_servers" in body or any(kind.startswith(("code_execution", "web_search_2026")) for kind in kinds)
    rounds = ROUNDS if unbounded else min(uses + fetches, ROUNDS)
    elsewhere = any(part["type"] in ("file", "document", "image_url") for part in body["messages"][0]["content"][1:])
    reads = rounds or elsewhere or "cached_content" in body or "web_search_options" in body
    prompt = (rounds + 1) * WINDOW if reads and (rounds or attempt.deployment.adapter != "anthropic" or elsewhere) else 1_000
    answer = body["max_tokens"] * body.get("n", 1)
    usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
    if thrifty := chance.random() < 0.5:
        usage["prompt_tokens"] = prompt // 3 + 1
        usage["total_tokens"] = usage["prompt_tokens"] + answer
    if chance.random() < 0.7:
        cached = chance.randint(0, prompt) if thrifty else 0
        heard, spoken = (chance.randint(0, prompt), chance.randint(0, answer)) if thrifty else (prompt, answer)
        usage["prompt_tokens_details"] = {"cached_tokens": cached, "audio_tokens": heard}
        usage["completion_tokens_details"] = {"audio_tokens": spoken}
    if uses and not (thrifty and chance.random() < 0.2):
        usage["server_tool_use"] = {"web_search_requests": chance.randint(0, uses) if thrifty else uses}
    return usage if chance.random() < 0.9 else None


def told(logs):
    (line,) = [entry for entry in logs if entry["event"] == "price_unknown"]
    return line["missing"], line["outcome"]


class CappedPurse(OpenPurse):
    """Reserves no more than is left of a cap."""

    def __init__(self, cap_nanousd):
        super().__init__()
        self._cap_nanousd = cap_nanousd

    async def reserve(self, ask):
        held = sum(ticket.ask.cost_nanousd for ticket in self.open.values())
        spent = sum(usage.cost_nanousd for _, usage, _ in self.settled)
        if held + spent + ask.cost_nanousd > self._cap_nanousd:
            raise BudgetExceeded("no money left")
        return await super().reserve(ask)


class Scene:
    """Calls of one model, whose provider bills `usage`, or what `bill` says."""

    def __init__(self, *deployments, usage=USAGE, cap_nanousd=10**12, **options):
        self.asked, self.usage, self.bill = [], usage, None
        self.purse, chance = CappedPurse(cap_nanousd), random.Random(1)
        registry = Registry({"a": Group("a", 0, deployments)})
        upstreams = dict.fromkeys(["openai", "anthropic", "gemini"], self)
        self.calls = Completions(lambda: registry, upstreams, Policy(num_retries=0), chance, OpenGate(chance), self.purse, **options)

    async def complete(self, attempt):
        self.asked.append(attempt)
        usage = self.usage if self.bill is None else self.bill(attempt)
        choices = [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}]
        return parse_answer(orjson.dumps({"id": "r", "model": "m", "choices": choices, **({"usage": usage} if usage else {})}))
