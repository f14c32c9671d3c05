"""Lines of batches as providers get them: what their official SDKs would have sent, and results as those SDKs have them."""

import orjson
import pytest
from anthropic.types.messages import MessageBatch
from anthropic.types.messages.batch_create_params import Request
from google.genai import types
from pydantic import TypeAdapter

from services.llm_gateway.adapters.anthropic_batch import AnthropicBatches
from services.llm_gateway.adapters.anthropic_batch import _batch as read_messages
from services.llm_gateway.adapters.batch_http import BatchHttp
from services.llm_gateway.adapters.gemini_batch import GeminiBatches, _batch
from services.llm_gateway.adapters.openai_batch import OpenAiBatches
from services.llm_gateway.batches.provider_prices import Cached, batch_prices
from services.llm_gateway.money import Prices
from services.llm_gateway.registry import Deployment

CHAT = "/v1/chat/completions"
BODY = {
    "model": "m",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
    "max_tokens": 20,
    "temperature": 0.5,
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
}


def deployment(adapter: str, base: str = "", provider: str = "", **more) -> Deployment:
    return Deployment("d", "g", provider or adapter, adapter, "m", "chat", api_base=base, api_key="k", **more)


def test_a_line_for_anthropic_is_a_request_of_its_sdk():
    made = AnthropicBatches(BatchHttp()).line(deployment("anthropic"), CHAT, "batch_" + "0" * 32, 49_999, BODY)
    TypeAdapter(Request).validate_json(made)
    line = orjson.loads(made)
    assert line["custom_id"] == f"batch_{'0' * 32}-49999"
    assert len(line["custom_id"]) <= 64
    assert (line["params"]["system"], line["params"]["max_tokens"]) == ("Be brief.", 20)
    assert "stream" not in line["params"]
    assert AnthropicBatches(BatchHttp()).line(deployment("anthropic"), CHAT, "b", 1, {**BODY, "anthropic": {"betas": ["x"]}}) is None
    assert AnthropicBatches(BatchHttp()).line(deployment("anthropic"), CHAT, "b", 1, {**BODY, "n": 2}) is None


def test_a_line_for_gemini_is_content_of_its_sdk():
    line = orjson.loads(GeminiBatches(BatchHttp()).line(deployment("gemini"), CHAT, "b", 7, BODY))
    assert line.keys() == {"key", "request"}
    assert line["key"] == "7"
    (content,) = [types.Content.model_validate(found) for found in line["request"]["contents"]]
    assert (content.role, content.parts[0].text) == ("user", "hi")
    assert types.GenerationConfig.model_validate(line["request"]["generationConfig"]).max_output_tokens == 20


@pytest.mark.parametrize(
    ("base", "version", "files", "url"),
    [
        ("https://r.openai.azure.com/openai/deployments/m", "", "/openai/files?api-version=2024-10-21", "/chat/completions"),
        ("https://r.openai.azure.com/openai/deployments/m", "2025-04-01-preview", "/openai/files?api-version=2025-04-01-preview", None),
        ("https://r.openai.azure.com/openai/v1", "", "/openai/v1/files", "/v1/chat/completions"),
    ],
)
def test_azure_has_batches_at_the_resource_and_not_at_the_deployment(base, version, files, url):
    azure = deployment("openai", base, "azure", api_version=version, headers={"api-key": "k"})
    batches = OpenAiBatches(BatchHttp())
    assert batches._address(azure, "/files")[0] == f"https://r.openai.azure.com{files}"
    assert orjson.loads(batches.line(azure, CHAT, "b", 1, BODY))["url"] == (url or "/chat/completions")
    assert not batches.serves(azure, "/v1/embeddings")


def test_a_message_batch_of_the_sdk_is_read():
    counts = {"processing": 0, "succeeded": 3, "errored": 1, "canceled": 0, "expired": 0}
    told = MessageBatch.model_validate(
        {
            "id": "msgbatch_1", "type": "message_batch", "processing_status": "ended", "request_counts": counts,
            "created_at": "2026-01-01T00:00:00Z", "expires_at": "2026-01-02T00:00:00Z", "results_url": "https://elsewhere.test/x",
        }
    )  # fmt: skip
    found = read_messages(orjson.loads(told.model_dump_json()))
    assert (found.status, found.results, found.completed, found.failed) == ("completed", ("msgbatch_1",), 3, 1)


@pytest.mark.parametrize(
    ("state", "more", "status"),
    [
        ("BATCH_STATE_RUNNING", {}, "in_progress"),
        ("JOB_STATE_SUCCEEDED", {"done": True, "response": {"responsesFile": "files/x"}}, "completed"),
        ("BATCH_STATE_EXPIRED", {"done": True}, "expired"),
        ("", {"done": True, "error": {"code": 1}}, "cancelled"),
        ("", {"done": True, "error": {"code": 13}}, "failed"),
    ],
)
def test_the_states_of_gemini_are_read_under_both_of_their_names(state, more, status):
    found = _batch({"name": "batches/1", "metadata": {"state": state, "batchStats": {"successfulRequestCount": "2"}}, **more})
    assert (found.status, found.completed) == (status, 2)
    assert found.results == (("files/x",) if status == "completed" else ())


def test_prices_of_batches_follow_from_those_that_are_named():
    tier = Prices(input=2_000, output=4_000, cached_input=200, reasoning=4_000, known=True)
    prices = Prices(1_000, 3_000, 100, 3_000, True, 1_250, 500, 1_500, above_tokens=10, above=tier)
    claude, gemini, openai = (batch_prices(prices, cached) for cached in (Cached.REDUCED, Cached.OUTSIDE, Cached.AS_INPUT))
    assert (claude.input, claude.output, claude.cached_input, claude.cache_write, claude.cache_write_1h) == (500, 1_500, 50, 625, 1_000)
    assert (gemini.cached_input, gemini.cache_write) == (100, 500)
    assert (openai.cached_input, openai.cache_write, openai.reasoning) == (500, 500, 1_500)
    assert claude.above == tier  # a tier without prices of batches costs what it costs
