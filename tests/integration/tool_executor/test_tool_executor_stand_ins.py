"""What stands in for a tool that failed: another tool, an old result, and what of it the caller is told."""

import json

import pytest

from services.common import testing
from services.common.config import ConfigProblem
from services.tool_executor.registry import parse_tools
from tests.integration.tool_executor.harness import DONE, FAILED, executor, http_tool, write_config

ANY = {"type": "object", "properties": {"q": {"type": "integer"}}}
DOWN = (500, {}, b"")
READ = {"input_schema": ANY, "annotations": {"read_only": True}, "retry": {"times": 1, "backoff_s": [0, 0]}}


def told(events):
    return [(e.warning.code, json.loads(e.warning.attributes_json)) for e in events if e.WhichOneof("event") == "warning"]


@pytest.fixture
async def client(tmp_path, state_url, identities, outside):
    tools = [
        http_tool(outside, "ask", "/ask", fallback="other", stale_s=60, **READ),
        http_tool(outside, "other", "/other", **READ),
        http_tool(outside, "alone", "/alone", stale_s=60, **READ),
        http_tool(outside, "brief", "/brief", stale_s=0.5, **READ),
        http_tool(outside, "effect", "/effect", fallback="other@1.0.0", retry={"times": 0, "backoff_s": [0, 0]}),
    ]
    write_config(tmp_path, tools)
    async with executor(tmp_path, state_url, identities) as client:
        with testing.calling(identities):
            yield client


async def test_after_its_retries_the_fallback_answers_and_says_so(client, outside):
    outside.answers |= {"/ask": [DOWN], "/other": [{"from": "other"}]}
    events = await client.events("ask", {"q": 1}, "k-1")
    assert [seen.path for seen in outside.seen] == ["/ask", "/ask", "/other"]
    assert (events[-1].result.outcome, json.loads(events[-1].result.output_json)) == (DONE, {"from": "other"})
    assert told(events)[-1] == ("tool_fallback", {"tool": "ask", "source": "other@1.0.0", "reason": "upstream.server"})
    # Under the same key the tool itself is asked again, as it has done nothing.
    outside.answers["/ask"] = [{"from": "ask"}]
    assert json.loads((await client.result("ask", {"q": 1}, "k-1")).output_json) == {"from": "ask"}


async def test_where_the_fallback_fails_as_well_the_last_good_result_of_the_same_call_answers(client, outside):
    outside.answers |= {"/ask": [{"n": 1}, DOWN], "/other": [DOWN]}
    await client.result("ask", {"q": 1}, "k-1")

    async def stale():
        events = await client.events("ask", {"q": 1}, "k-2")
        return events if events[-1].result.outcome == DONE else None

    events = await testing.eventually_async(stale, "the result is kept")
    assert json.loads(events[-1].result.output_json) == {"n": 1}
    code, attributes = told(events)[-1]
    assert (code, attributes["source"], attributes["reason"]) == ("tool_stale_result", "ask@1.0.0", "upstream.server")
    assert attributes["age_s"] >= 0
    # Of other arguments nothing is known, and another user's results are another's.
    assert (await client.result("ask", {"q": 2}, "k-3")).outcome == FAILED


async def test_old_results_are_a_user_s_own_and_can_be_erased(client, outside, identities):
    outside.answers["/alone"] = [{"n": 1}, DOWN]
    await client.result("alone", {}, "k-1")

    async def known():
        return (await client.result("alone", {})).outcome == DONE

    await testing.eventually_async(known, "the result is kept")
    with testing.calling(identities, testing.principal_of(user="ben")):
        assert (await client.result("alone", {})).error.code == "upstream.server"


async def test_nothing_stands_in_for_a_call_that_was_wrong_or_whose_effect_is_not_known(client, outside):
    outside.answers |= {"/ask": [404], "/effect": [DOWN]}
    assert (await client.result("ask", {}, "k-1")).error.code == "upstream.not_found"
    result = await client.result("effect", {}, "k-2")
    assert result.error.code == "upstream.server"
    assert "/other" not in {seen.path for seen in outside.seen}


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"fallback": "nobody"}, "no tool is called"),
        ({"fallback": "a"}, "for itself"),
        ({"fallback": "b"}, "read_only or idempotent"),
        ({"stale_s": 5, "annotations": {}}, "read_only"),
    ],
)
def test_what_could_never_stand_in_is_refused(fields, problem):
    def tool(name, **more):
        http = {"url": "http://localhost/x"}
        return {"name": name, "version": "1.0.0", "description": "d", "input_schema": {"type": "object"}, "http": http, **more}

    content = {"tools": [tool("a", **{"annotations": {"read_only": True}, **fields}), tool("b")]}
    with pytest.raises(ConfigProblem) as caught:
        parse_tools(content, [], lambda config: None)
    assert problem in str(caught.value.problems)


async def test_an_old_result_is_kept_for_its_own_time_whatever_else_is_kept_beside_it(client, outside, valkey):
    outside.answers |= {"/alone": [{"n": 1}, DOWN], "/brief": [{"n": 2}]}
    for name in ("alone", "brief"):
        await client.result(name, {})
        count = ("alone", "brief").index(name) + 1

        async def kept(count=count):
            keys = [key async for key in valkey.scan_iter("tool_results:*")]
            return keys if keys and await valkey.hlen(keys[0]) == count else None

        (key,) = await testing.eventually_async(kept, "the result is kept")
    assert await valkey.pttl(key) > 30_000
    assert (await client.result("alone", {})).outcome == DONE
