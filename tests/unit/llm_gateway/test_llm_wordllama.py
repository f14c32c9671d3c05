"""The local embedding model: the wheel's own vectors, without its loader."""

import asyncio
import math
import random
import subprocess
import sys
import time

import pytest
from opentelemetry.context import Context

from services.common.errors import InvalidInput
from services.llm_gateway.adapters.wordllama import WordLlamaUpstream, model_files
from services.llm_gateway.ports import Attempt, Limits
from services.llm_gateway.registry import Deployment

DEPLOYMENT = Deployment("d", "vectors", "wordllama", "wordllama", "l2_supercat_256", "embedding", dimension=256)
TEXTS = ["Bulkhead runs agents.", "  spaces  ", "日本語のテキスト", "🚢 emoji", "x", "def f(x):\n    return x", "the " * 9000]
TEXTS += ["one  two three\n<s> four " * 4000]


@pytest.fixture
async def upstream():
    made = WordLlamaUpstream()
    yield made
    await made.close()


def attempt(**body) -> Attempt:
    return Attempt(DEPLOYMENT, body, Limits(5, 10, 10, 10, time.monotonic() + 60), 1, Context())


async def test_documents_are_ranked_by_their_words(upstream):
    documents = ["The stock market fell on Monday.", "A bulkhead divides the hull of a ship.", "Ships and boats sail."]
    ranking = await upstream.rerank(attempt(query="How is a ship's hull divided?", documents=documents))
    assert [index for index, _ in ranking.ranked] == [1, 2, 0]
    scores = [score for _, score in ranking.ranked]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1.000001 for score in scores)
    assert ranking.input_tokens > 20
    first = await upstream.rerank(attempt(query="ship", documents=["ship", "", "ship"], top_n=2))
    assert [index for index, _ in first.ranked] == [0, 2]


async def test_vectors_equal_those_of_the_package(upstream):
    import wordllama

    package = wordllama.WordLlama.load(cache_dir=wordllama.__path__[0], disable_download=True, dim=256)
    answer = await upstream.embed(attempt(input=TEXTS))
    for text, mine in zip(TEXTS, answer.vectors, strict=True):
        theirs = package.embed([text], norm=True)[0]
        assert max(abs(a - float(b)) for a, b in zip(mine, theirs, strict=True)) < 1e-3, text
    # Long texts are read in pieces, and have the tokens that they have as one.
    assert answer.input_tokens == sum(len(package.tokenize([text])[0].ids) for text in TEXTS)


async def test_vectors_are_unit_vectors_and_do_not_depend_on_their_neighbours(upstream):
    alone = (await upstream.embed(attempt(input="a ship's bulkhead"))).vectors[0]
    among = (await upstream.embed(attempt(input=["other", "a ship's bulkhead", "x" * 500]))).vectors[1]
    assert list(alone) == list(among)
    assert math.fsum(v * v for v in alone) == pytest.approx(1.0, abs=1e-5)


async def test_shorter_vectors_are_prefixes_of_unit_length(upstream):
    whole = (await upstream.embed(attempt(input="hello there"))).vectors[0]
    short = (await upstream.embed(attempt(input="hello there", dimensions=64))).vectors[0]
    norm = math.sqrt(math.fsum(v * v for v in whole[:64]))
    assert [v / norm for v in whole[:64]] == pytest.approx(list(short), abs=1e-5)


@pytest.mark.parametrize(("body", "field"), [({"input": [1, 2]}, "input"), ({"input": "x", "dimensions": 7}, "dimensions")])
async def test_what_the_model_cannot_do_is_the_callers_to_know(upstream, body, field):
    with pytest.raises(InvalidInput) as caught:
        await upstream.embed(attempt(**body))
    assert caught.value.violations[0].field == field


async def test_other_calls_go_on_while_a_long_text_is_read(upstream):
    await upstream.embed(attempt(input="the table is read"))
    work = asyncio.create_task(upstream.embed(attempt(input="x" * 1_000_000)))
    began = last = time.monotonic()
    longest = 0.0
    while not work.done():
        await asyncio.sleep(0.002)
        longest, last = max(longest, time.monotonic() - last), time.monotonic()
    # The tokenizer keeps the interpreter to itself: given the whole, nearly all of the time.
    assert longest < (last - began) / 2


async def test_similar_texts_are_closer_than_others(upstream):
    texts = ["How do I reset my password?", "I forgot my password", "The ship sails at noon"]
    one, two, three = (await upstream.embed(attempt(input=texts))).vectors
    assert sum(map(float.__mul__, one, two)) > sum(map(float.__mul__, one, three)) + 0.2


def test_the_package_itself_is_not_imported():
    assert model_files()[0].is_file()
    code = "import services.llm_gateway.app, sys; assert not {'wordllama', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


async def test_any_text_has_a_finite_vector(upstream):
    chance = random.Random(7)
    texts = ["".join(chr(chance.randrange(32, 0xD7FF)) for _ in range(chance.randrange(1, 40))) for _ in range(200)]
    for vector in (await upstream.embed(attempt(input=texts))).vectors:
        assert all(map(math.isfinite, vector))
