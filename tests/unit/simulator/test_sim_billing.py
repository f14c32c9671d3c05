"""What is billed: the sum of the lines is the total, each line follows the table, and nothing is billed that was not sent."""

import asyncio
import contextlib

import aiohttp
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.simulator import anthropic_wire, gemini_wire, openai_wire, plans, prices
from services.simulator.dialects import ANTHROPIC, GEMINI, OPENAI
from services.simulator.faults import KINDS, parse_one
from services.simulator.prices import MODELS
from services.simulator.prompt_cache import Boundary, PromptCache
from services.simulator.replies import CallPiece, Reply, Thought

COUNTED = ("prompt_tokens", "completion_tokens", "billed_nanousd")


def by_the_table(line) -> int:
    """The bill of a line, computed from its own tokens."""
    model = prices.model_named(line["model"])
    plain = line["prompt_tokens"] - line["cached_tokens"] - line["cache_write_tokens"]
    prompt = (
        plain * model.input_nanousd + line["cached_tokens"] * model.cached_nanousd + line["cache_write_tokens"] * model.cache_write_nanousd
    )
    said = (line["completion_tokens"] - line["reasoning_tokens"]) * model.output_nanousd
    return (prompt + said + line["reasoning_tokens"] * model.reasoning_nanousd) // (2 if line["batch_id"] else 1)


async def test_prices_can_be_halved():
    for model in MODELS.values():
        every = (model.input_nanousd, model.output_nanousd, model.cached_nanousd, model.cache_write_nanousd, model.reasoning_nanousd)
        assert not any(price % 2 for price in every)


async def test_many_endings_at_once_are_billed_by_the_table_and_sum_up(sim):
    ways = (
        "",
        "+cut_after=3",
        "+end_after=2",
        "+error_event_after=4",
        "+503",
        "+error_body",
        "+missing_usage",
        "+reasoning_tokens=7",
        "+reset",
    )
    cached = "+cached_prefix=4+reasoning_tokens=3"

    async def one(number: int) -> None:
        model = ("sim-1", "sim-2")[number % 2] + (*ways, cached)[number % (len(ways) + 1)]
        stream, dialect = number % 3 == 0, ("chat", "messages", "gemini")[number % 3]
        body = {"model": model, "max_tokens": 50, "stream": stream, "messages": [{"role": "user", "content": "Write 9 words."}]}
        path = {"chat": "/v1/chat/completions", "messages": "/v1/messages"}.get(dialect, f"/v1beta/models/{model}:generateContent")
        if dialect == "gemini":
            body = {"contents": [{"parts": [{"text": "Write 9 words."}]}]}
        with contextlib.suppress(aiohttp.ClientError):
            async with sim.http.post(sim.url + path, json=body) as answer:
                await (answer.content.readany() if number % 7 == 0 else answer.read())

    await asyncio.gather(*(one(number) for number in range(120)))
    await sim.last_line(120)
    _, page = await sim.call("GET", "/sim/log")
    for line in page["lines"]:
        assert line["billed_nanousd"] == (by_the_table(line) if line["prompt_tokens"] else 0)
        assert line["cached_tokens"] + line["cache_write_tokens"] <= line["prompt_tokens"]
        assert line["reasoning_tokens"] <= line["completion_tokens"]
    for name in COUNTED:
        assert page["totals"][name] == sum(line[name] for line in page["lines"]) > 0
    assert sum(line["cached_tokens"] for line in page["lines"]) > 0
    assert sum(line["reasoning_tokens"] for line in page["lines"]) > 0


@pytest.mark.parametrize("effort", ["low", "high"])
async def test_reasoning_has_a_price_of_its_own(sim, effort):
    _, _, answer = await sim.chat("Write 5 words.", model="sim-2", reasoning_effort=effort)
    thought = answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert answer["usage"]["completion_tokens"] == thought + 5
    line = await sim.last_line()
    assert line["billed_nanousd"] == line["prompt_tokens"] * 500 + 5 * 1500 + thought * 2000


async def test_a_stream_that_ends_while_it_thinks_bills_thoughts(sim):
    events = await sim.stream("Write 5 words.", model="sim-1+reasoning_tokens=40+show_reasoning+end_after=10")
    line = await sim.last_line()
    assert len(events) == 11
    assert (line["completion_tokens"], line["reasoning_tokens"]) == (10, 10)
    await sim.stream("Write 5 words.", model="sim-1", max_tokens=3, reasoning_effort="high")
    line = await sim.last_line(2)
    assert (line["completion_tokens"], line["reasoning_tokens"], line["finish_reason"]) == (3, 3, "length")


async def test_a_prefix_that_is_repeated_is_cached_where_asked_for(sim):
    text = "The same long beginning of all. " * 50
    told = []
    for end in ("One.", "Two."):
        _, _, answer = await sim.chat(text + end, model="sim-1+cached_prefix=256")
        told.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert told == [0, 256]
    line = (await sim.log())[-1]
    assert line["billed_nanousd"] == (line["prompt_tokens"] - 256) * 150 + 256 * 30 + line["completion_tokens"] * 600
    _, _, answer = await sim.chat("short", model="sim-1+cached_prefix=256")
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_every_choice_is_billed(sim):
    _, _, answer = await sim.chat("Write 5 words.", n=3)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert answer["usage"]["completion_tokens"] == 15
    events = [
        orjson.loads(event) for event in await sim.stream("Write 5 words.", n=3, stream_options={"include_usage": True}) if event[0] == "{"
    ]
    assert events[-1]["usage"]["completion_tokens"] == 15
    for index in range(3):
        deltas = [choice["delta"].get("content") or "" for event in events for choice in event["choices"] if choice["index"] == index]
        assert len("".join(deltas).split()) == 5
    assert [line["completion_tokens"] for line in await sim.log()] == [15, 15]


_PIECES = st.lists(st.sampled_from(["word", " two", " three"]), max_size=12)
_NAMED = ("cut_after", "end_after", "stall_after", "error_event_after", "duplicate_chunk", "malformed_json", "role_chunks", "unknown_event")
_FAULTS = st.dictionaries(st.sampled_from(_NAMED), st.integers(1, 15), max_size=3)
_FLAGS = st.sets(
    st.sampled_from([name for name, kind in KINDS.items() if kind.default == "1" and not kind.unit and name not in ("hang", "reset")]),
    max_size=3,
)


@settings(max_examples=300, deadline=None)
@given(
    text=_PIECES,
    thoughts=st.integers(0, 6),
    call=st.booleans(),
    shown=st.booleans(),
    dialect=st.sampled_from([OPENAI, ANTHROPIC, GEMINI]),
    numbers=_FAULTS,
    flags=_FLAGS,
)
def test_tokens_of_a_stream_never_shrink_and_never_pass_those_of_the_answer(text, thoughts, call, shown, dialect, numbers, flags):
    pieces = [*(Thought(f" {n}") for n in range(thoughts)), *text]
    if call:
        pieces += [CallPiece(0, "id", "tool"), CallPiece(0, arguments='{"a":'), CallPiece(0, arguments="1}")]
    asked = dict(parse_one(name, str(value), "test") for name, value in numbers.items())
    asked |= dict(parse_one(name, None, "test") for name in flags)
    reply = plans.with_reply_faults(Reply(pieces, "tool_calls" if call else "stop", thoughts), asked)
    head = plans.Head("id-1", "sim-1", 0, 10, True, 2, 3, shown)
    plan = dialect.stream([reply], head, asked)
    assert len(plan.events) == len(plan.tokens)
    assert plan.tokens == sorted(plan.tokens)
    assert not plan.tokens or plan.tokens[-1] <= reply.completion_tokens
    if not asked:
        assert plan.tokens[-1] == reply.completion_tokens
        assert plan.usage_sent
    body = dialect.whole_body([reply], head, asked)
    assert body.send_bytes <= len(body.body)


@settings(max_examples=200, deadline=None)
@given(prompts=st.lists(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5), min_size=1, max_size=6))
def test_a_cache_never_reads_what_was_not_written_nor_more_than_the_prompt(prompts):
    cache, written = PromptCache(), set()
    for blocks in prompts:
        path, boundaries = (), []
        for tokens, (content, marked) in enumerate(blocks, 1):
            path += (content,)
            boundaries.append(Boundary(bytes(path), tokens * 10, marked))
        total = len(blocks) * 10
        use = cache.use(boundaries, total)
        assert 0 <= use.read_tokens + use.write_tokens <= total
        if use.read_tokens:
            assert boundaries[use.read_tokens // 10 - 1].digest in written
        cache.keep(use)
        written |= set(use.digests)


def test_each_dialect_tells_the_same_tokens():
    head = plans.Head("id-1", "sim-1", 0, 100, True, 20, 30)
    openai_usage = openai_wire.usage(head, 50, 10, {})
    anthropic_usage = anthropic_wire.usage(head, 50, 10, {})
    gemini_usage = gemini_wire.usage(head, 50, 10, {})
    assert openai_usage["prompt_tokens"] == gemini_usage["promptTokenCount"] == 100
    parts = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert [anthropic_usage[name] for name in parts] == [50, 20, 30]
    assert openai_usage["completion_tokens"] == anthropic_usage["output_tokens"] == 50
    assert gemini_usage["candidatesTokenCount"] + gemini_usage["thoughtsTokenCount"] == 50
