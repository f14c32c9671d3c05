"""A tool that fails again and again rests; nobody else's does."""

import pytest

from services.common import testing
from services.tool_executor.breaker import TOOL_BREAKER
from tests.integration.tool_executor.harness import DONE, FAILED, executor, http_tool, write_config


def test_its_numbers_are_those_that_are_documented():
    assert (TOOL_BREAKER.failures_in_row, TOOL_BREAKER.first_open_s, TOOL_BREAKER.longest_open_s) == (5, 30.0, 30.0)
    assert TOOL_BREAKER.failure_rate == 0.0


@pytest.fixture
def tools(tmp_path, state_url, identities, outside):
    """Runs an executor with the tools `ask`, which is never repeated by itself, and `other`."""
    read = {"annotations": {"read_only": True}, "retry": {"times": 0, "backoff_s": [0, 0]}}
    write_config(tmp_path, [http_tool(outside, "ask", "/ask", **read), http_tool(outside, "other", "/other", **read)])
    return lambda: executor(tmp_path, state_url, identities)


async def codes(client, times: int, name: str = "ask") -> list[str]:
    return [(await client.result(name)).error.code for _ in range(times)]


async def test_after_five_failures_in_a_row_it_is_not_asked_and_others_are(tools, identities, outside):
    outside.answers["/ask"] = [500]
    async with tools() as client, tools() as replica:
        with testing.calling(identities):
            found = await codes(client, 5)
            assert found == ["upstream.server"] * 5
            refused = await testing.eventually_async(lambda: refusal(replica), "the other replica has heard")
            assert refused.outcome == FAILED
            assert refused.error.retryable
            assert 1 <= refused.error.retry_after.seconds <= 30
            asked = len(outside.seen)
            assert await codes(client, 3) == ["limit.breaker_open"] * 3
            assert len(outside.seen) == asked
            assert (await client.result("other")).outcome == DONE
        with testing.calling(identities, testing.principal_of("globex")):
            assert await codes(client, 1) == ["upstream.server"]


async def refusal(client):
    result = await client.result("ask")
    return result if result.error.code == "limit.breaker_open" else None


async def test_what_the_tool_refuses_never_opens_it(tools, identities, outside):
    outside.answers["/ask"] = [404]
    async with tools() as client:
        with testing.calling(identities):
            assert await codes(client, 8) == ["upstream.not_found"] * 8
            outside.answers["/ask"] = [500, 500, 500, 500, {"ok": 1}, 500]
            assert await codes(client, 9) == [*["upstream.server"] * 4, "", *["upstream.server"] * 4]
