"""Rankings by shared words."""

import pytest

DOCUMENTS = ["The harbour opens at dawn.", "Whales sing at night.", {"text": "A whale may sing for hours at night."}]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
async def test_the_document_with_the_most_words_in_common_comes_first(sim, path):
    body = {"model": "sim-rerank", "query": "When do whales sing at night?", "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    status, answer = await sim.call("POST", path, body)
    assert status == 200
    assert [result["index"] for result in answer["results"]] == [1, 2]
    assert answer["results"][0]["relevance_score"] > answer["results"][1]["relevance_score"] > 0
    assert answer["results"][0]["document"] == {"text": "Whales sing at night."}
    assert answer["meta"]["billed_units"] == {"search_units": 1}
    line = await sim.last_line()
    assert (line["endpoint"], line["id"]) == ("rerank", answer["id"])
    assert line["billed_nanousd"] == answer["usage"]["total_tokens"] * 40 > 0


async def test_faults_and_orders_hold_for_rankings_too(sim):
    body = {"model": "sim-rerank+503", "query": "a", "documents": ["a"]}
    assert (await sim.call("POST", "/v1/rerank", body))[0] == 503
    await sim.call("POST", "/sim/faults", {"match": {"endpoint": "rerank"}, "fault": "500", "times": 1})
    assert (await sim.call("POST", "/v1/rerank", {**body, "model": "sim-rerank"}))[0] == 500
    assert (await sim.call("POST", "/v1/rerank", {**body, "model": "sim-rerank"}))[0] == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"query": ""}, "query"),
        ({"query": 5}, "query"),
        ({"documents": []}, "documents"),
        ({"documents": "a"}, "documents"),
        ({"documents": [5]}, "documents"),
        ({"documents": [{}]}, "documents"),
        ({"top_n": 0}, "top_n"),
        ({"return_documents": "yes"}, "return_documents"),
    ],
)
async def test_what_is_wrong_is_named(sim, fields, param):
    body = {"model": "sim-rerank", "query": "a", "documents": ["a"], **fields}
    status, answer = await sim.call("POST", "/v1/rerank", body)
    assert (status, answer["error"]["param"]) == (400, param)


async def test_a_model_that_ranks_does_not_chat(sim):
    assert (await sim.chat(model="sim-rerank"))[0] == 404
