"""Rankings over the model port: by the local model, and by a provider that has an API for them."""

import pytest

DOCUMENTS = ["The stock market fell.", {"text": "A bulkhead divides the hull of a ship."}, "Ships sail."]
WRONG = [
    ({"query": ""}, "query"),
    ({"query": None}, "query"),
    ({"documents": []}, "documents"),
    ({"documents": ["x", ""]}, "documents[1]"),
    ({"documents": [{"title": "x"}]}, "documents[0]"),
    ({"documents": ["x"] * 1001}, "documents"),
    ({"top_n": 0}, "top_n"),
    ({"top_n": "3"}, "top_n"),
    ({"return_documents": "yes"}, "return_documents"),
    ({"rank_fields": ["title"]}, "rank_fields"),
    ({"model": "main"}, "model"),
]


def ranks(name: str, model: str, **params) -> dict:
    info = {"mode": "rerank", "input_cost_per_token": 4e-8}
    return {"model_name": name, "litellm_params": {"model": model, **params}, "model_info": info}


@pytest.fixture
def content(models, sim):
    made = models(sim.url)
    made["model_list"].append(ranks("ranks", "wordllama/l2_supercat_256"))
    return made


async def test_documents_are_ranked_by_the_local_model(serve, content, sim):
    body = {"model": "ranks", "query": "How is a ship's hull divided?", "documents": DOCUMENTS, "top_n": 2, "return_documents": True}
    async with serve(content) as stack:
        for path in ("/v1/rerank", "/v2/rerank", "/rerank"):
            status, answer, headers = await stack.post(path, body)
            assert status == 200, answer
            assert [result["index"] for result in answer["results"]] == [1, 2]
            assert answer["results"][0]["document"] == DOCUMENTS[1]
            scores = [result["relevance_score"] for result in answer["results"]]
            assert 1 >= scores[0] > scores[1] >= 0
            assert answer["usage"]["total_tokens"] == answer["meta"]["tokens"]["input_tokens"] > 0
            assert headers["x-litellm-model-group"] == "ranks"
            assert float(headers["x-litellm-response-cost"]) > 0
        bare = {key: value for key, value in body.items() if key not in ("top_n", "return_documents")}
        status, answer, _ = await stack.post("/v1/rerank", bare)
        assert sorted(result["index"] for result in answer["results"]) == [0, 1, 2]
        assert all("document" not in result for result in answer["results"])


async def test_a_provider_ranks(serve, content, provider, wire):
    def script(number, request):
        results = [{"index": 1, "relevance_score": 0.9}, {"index": 7 if "odd" in request.body["query"] else 0, "relevance_score": 0.5}]
        return wire.answer({"id": "r-1", "results": results, "meta": {"billed_units": {"search_units": 1}}, "usage": {"total_tokens": 50}})

    made = await provider(script)
    content["model_list"].append(ranks("far", "openai/rank-1", api_base=f"{made.url}/v2"))
    content["router_settings"]["max_fallbacks"] = 0
    async with serve(content, model_num_retries=0) as stack:
        body = {"model": "far", "query": "hull", "documents": DOCUMENTS, "top_n": 3, "max_tokens_per_doc": 9}
        status, answer, headers = await stack.post("/v1/rerank", body)
        assert status == 200, answer
        assert [(result["index"], result["relevance_score"]) for result in answer["results"]] == [(1, 0.9), (0, 0.5)]
        assert answer["meta"]["billed_units"] == {"search_units": 1}
        assert float(headers["x-litellm-response-cost"]) == pytest.approx(50 * 4e-8)
        assert made.received[0].path == "/v2/rerank"
        texts = ["The stock market fell.", "A bulkhead divides the hull of a ship.", "Ships sail."]
        assert made.received[0].body == {"query": "hull", "documents": texts, "top_n": 3, "max_tokens_per_doc": 9, "model": "rank-1"}
        # What was not sent cannot be ranked.
        status, answer, _ = await stack.post("/v1/rerank", {**body, "query": "odd"})
        assert (status, answer["error"]["type"]) == (502, "server_error")
        asked = len(made.received)
        for fields, param in WRONG:
            status, answer, _ = await stack.post("/v1/rerank", {"model": "far", "query": "q", "documents": ["x"], **fields})
            assert (status, answer["error"]["param"]) == (400, param), fields
        assert len(made.received) == asked


async def test_search_units_are_what_cohere_bills(serve, content, provider, wire):
    def script(number, request):
        results = [{"index": 0, "relevance_score": 0.9}]
        return wire.answer({"id": "r-1", "results": results, "meta": {"billed_units": {"search_units": 3}}})

    made = await provider(script)
    entry = ranks("far", "openai/rank-1", api_base=f"{made.url}/v2")
    entry["model_info"] = {"mode": "rerank", "input_cost_per_query": 0.002}
    content["model_list"].append(entry)
    async with serve(content) as stack:
        body = {"model": "far", "query": "hull", "documents": ["A bulkhead divides a hull."] * 250}
        status, _, headers = await stack.post("/v1/rerank", body)
        assert status == 200
        assert float(headers["x-litellm-response-cost"]) == pytest.approx(0.006)
        status, answer, _ = await stack.post("/v1/rerank", body, **{"x-bulkhead-max-cost-microusd": "5999"})
        error = answer["error"]
        assert (status, error["code"], error["param"]) == (400, "max_cost_exceeded", "x-bulkhead-max-cost-microusd")
