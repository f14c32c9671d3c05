"""What a provider bills beside tokens, over the whole way: HTTP in, the purse, the provider, headers and ledger."""

from structlog.testing import capture_logs

SEARCHED = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "claude-x", "stop_reason": "end_turn", "stop_sequence": None,
    "content": [{"type": "text", "text": "found"}],
    "usage": {"input_tokens": 1_000, "output_tokens": 100, "server_tool_use": {"web_search_requests": 2}},
}  # fmt: skip
ASKED = {
    "model": "claude", "max_tokens": 50, "messages": [{"role": "user", "content": "x"}],
    "tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 3}],
}  # fmt: skip


def entry(name, base, **info):
    prices = {"input_cost_per_token": 3e-6, "output_cost_per_token": 15e-6, "max_input_tokens": 20_000, **info}
    return {
        "model_name": name, "litellm_params": {"model": "anthropic/claude-x", "api_key": f"k-{name}", "api_base": base},
        "model_info": prices,
    }  # fmt: skip


async def test_searches_are_reserved_and_paid_or_refused_by_name(serve, provider, wire):
    made = await provider(lambda number, received: wire.answer(SEARCHED))
    unknown = {"model_name": "unknown", "litellm_params": {"model": "openai/x", "api_key": "k"}}
    content = {"model_list": [entry("claude", made.url, search_context_cost_per_query=0.01), entry("bare", made.url), unknown]}
    with capture_logs() as logs:
        async with serve(content, price_unknown="deny") as stack:
            status, answer, headers = await stack.post("/v1/messages", ASKED, **{"anthropic-version": "2023-06-01"})
            assert (status, answer["usage"]["server_tool_use"]["web_search_requests"]) == (200, 2)
            assert float(headers["x-litellm-response-cost"]) == 0.003 + 0.0015 + 0.02
            status, answer, _ = await stack.post("/v1/messages", {**ASKED, "model": "bare"}, **{"anthropic-version": "2023-06-01"})
            assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
            assert "web search (search_context_cost_per_query)" in answer["error"]["message"]
            assert len(made.received) == 1
            # Three searches and four whole contexts may cost more than the 27 cents that this call is given.
            terms = {"x-bulkhead-max-cost-microusd": "270000", "anthropic-version": "2023-06-01"}
            status, answer, _ = await stack.post("/v1/messages", ASKED, **terms)
            assert (status, len(made.received)) == (400, 1)
    said = [(line.get("models") or line.get("missing"), line["outcome"]) for line in logs if line["event"] == "price_unknown"]
    assert said[0] == (["unknown"], "refused")
    assert said[1] == ("web search (search_context_cost_per_query)", "refused, unless another deployment is left")
    assert made.received[0].body["tools"][0]["max_uses"] == 3
