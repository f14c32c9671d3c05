"""Embeddings: shape, encodings, nearness."""

import base64
import math
from array import array

from services.simulator.embeddings import embed


def cosine(a, b) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_texts_that_share_words_are_near():
    base = embed("The gateway listens on port 8080", 256)
    assert cosine(base, embed("On which port does the gateway listen?", 256)) > 0.4
    assert abs(cosine(base, embed("Whales sing at night", 256))) < 0.3
    assert math.isclose(cosine(base, base), 1.0, rel_tol=1e-5)


def test_they_are_unit_vectors_even_of_nothing():
    for text in ("word", "?!", "。", "many words in one text " * 50):
        assert math.isclose(cosine(embed(text, 64), embed(text, 64)), 1.0, rel_tol=1e-5)


async def test_over_http_in_both_encodings(sim):
    request = {"model": "sim-embed", "input": ["first text", "second text"], "dimensions": 32}
    status, plain = await sim.call("POST", "/v1/embeddings", request)
    assert status == 200
    assert [item["index"] for item in plain["data"]] == [0, 1]
    assert len(plain["data"][0]["embedding"]) == 32
    _, packed = await sim.call("POST", "/v1/embeddings", {**request, "encoding_format": "base64"})
    unpacked = array("f", base64.b64decode(packed["data"][1]["embedding"]))
    assert unpacked.tolist() == plain["data"][1]["embedding"]
    assert plain["usage"]["prompt_tokens"] == 6
    line = await sim.last_line()
    assert (line["endpoint"], line["model"], line["billed_nanousd"]) == ("embeddings", "sim-embed", 6 * 20)


async def test_token_arrays_and_bad_requests(sim):
    async def status(**fields):
        return (await sim.call("POST", "/v1/embeddings", {"model": "sim-embed", "input": "a", **fields}))[0]

    assert await status(input=[1, 2, 3]) == 200
    assert await status(input=[[1, 2], [3]]) == 200
    for fields in ({"input": ""}, {"input": []}, {"input": [""]}, {"input": 5}, {"input": ["a"] * 3000}, {"dimensions": 0},
                   {"dimensions": 10**9}, {"dimensions": True}, {"encoding_format": "int8"}, {"model": None}):  # fmt: skip
        assert await status(**fields) == 400, fields


async def test_faults_reach_embeddings_too(sim):
    assert (await sim.call("POST", "/v1/embeddings", {"model": "sim-embed+503", "input": "a"}))[0] == 503
    _, answer = await sim.call("POST", "/v1/embeddings", {"model": "sim-embed+missing_usage", "input": "a"})
    assert "usage" not in answer
