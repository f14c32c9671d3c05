"""Embeddings belong to inputs by their place: an answer with one more or less is none."""

import pytest
from bulkhead.llm.v1 import llm_pb2

from services.common import testing
from services.common.errors import UpstreamFailed

pytestmark = pytest.mark.asyncio(loop_scope="function")


@pytest.mark.parametrize("given", [1, 3])
async def test_as_many_embeddings_as_inputs_or_an_error(serve, provider, wire, deployment, given):
    def script(number, request):
        data = [{"index": place, "embedding": [0.5, 0.5]} for place in range(given)]
        return wire.answer({"object": "list", "data": data, "usage": {"prompt_tokens": 2}})

    made = await provider(script)
    entry = deployment("vectors", "embed-1", f"{made.url}/v1")
    entry["model_info"]["mode"] = "embedding"
    async with serve({"model_list": [entry]}, model_num_retries=0) as stack:
        status, answer, _ = await stack.post("/v1/embeddings", {"model": "vectors", "input": ["a", "b"]})
        assert (status, answer["error"]["failure_class"]) == (502, "malformed")
        with testing.calling(stack.identities), pytest.raises(UpstreamFailed):
            await stack.embedder.Embed(llm_pb2.EmbedRequest(model="vectors", texts=["a", "b"]))
        # All of these are as many inputs as there are embeddings.
        inputs = ["a", [1, 2, 3], ["a"]] if given == 1 else [["a", "b", "c"], [[1], [2], [3]]]
        for one in inputs:
            status, answer, _ = await stack.post("/v1/embeddings", {"model": "vectors", "input": one})
            assert (status, len(answer["data"])) == (200, given)
