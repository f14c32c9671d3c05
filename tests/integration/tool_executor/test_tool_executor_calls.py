"""Calls over real gRPC: who may, what is asked of the arguments, what comes back."""

import asyncio
import time

import orjson
import pytest
from bulkhead.tools.v1 import tools_pb2

from services.common import testing
from services.common.errors import (
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    PermissionDenied,
    QuotaExceeded,
)  # fmt: skip
from services.common.settings import StartRefused
from tests.integration.tool_executor.harness import DONE, FAILED, executor, http_tool, write_config

EVERYTHING = [
    {"name": "calculator", "version": "1.0.0"},
    {"name": "current_time", "scopes": ["time:read"], "timeout_s": 3},
    {"name": "python", "options": {"max_seconds": 20}},
]


@pytest.fixture
async def tools(tmp_path, state_url, identities):
    write_config(tmp_path, EVERYTHING)
    async with executor(tmp_path, state_url, identities) as client:
        yield client


@pytest.fixture
def caller(identities):
    """The calls of a test belong to a user with every scope."""
    with testing.calling(identities):
        yield


async def test_a_result_is_the_last_event_and_a_repeat_is_marked(tools, caller):
    first = await tools.result("calculator", {"expression": "17 * 23"}, "r/1/1")
    again = await tools.result("calculator", {"expression": "17 * 23"}, "r/1/1")
    assert (first.outcome, first.version, first.attempts, first.replayed) == (DONE, "1.0.0", 1, False)
    assert orjson.loads(first.output_json) == {"result": "391", "exact": True}
    assert again.replayed
    again.replayed = False
    assert again == first


async def test_a_listed_tool_says_all_that_a_caller_needs(tools, caller):
    listed = (await tools.stub.ListTools(tools_pb2.ListToolsRequest(names=["current_time", "nothing"]))).tools
    assert [t.name for t in listed] == ["current_time"]
    got = (await tools.stub.GetTool(tools_pb2.GetToolRequest(name="current_time", version="1.0.0"))).tool
    assert got == listed[0]
    assert orjson.loads(got.input_schema_json)["properties"]["timezone"]["default"] == "UTC"
    assert set(orjson.loads(got.output_schema_json)["required"]) == {"iso", "timezone", "weekday", "utc_offset", "unix_s"}
    assert (got.annotations.read_only, got.annotations.destructive, got.annotations.open_world) == (True, False, False)
    assert got.required_scopes == ["time:read"]
    assert got.timeout.ToMilliseconds() == 3000
    assert len(got.digest) == 64


async def test_lists_come_in_pages(tools, caller):
    names, token = [], ""
    while True:
        page = await tools.stub.ListTools(tools_pb2.ListToolsRequest(page_size=2, page_token=token))
        assert len(page.tools) <= 2
        names += [t.name for t in page.tools]
        token = page.next_page_token
        if not token:
            break
    assert names == ["calculator", "current_time", "python"]
    for request in (tools_pb2.ListToolsRequest(page_size=-1), tools_pb2.ListToolsRequest(page_token="x")):
        with pytest.raises(InvalidInput):
            await tools.stub.ListTools(request)


async def test_scopes_decide_what_is_seen_and_used(tools, identities):
    with testing.calling(identities, testing.principal_of(scopes=["tools:execute"])):
        assert [t.name for t in (await tools.stub.ListTools(tools_pb2.ListToolsRequest())).tools] == ["calculator", "python"]
        with pytest.raises(PermissionDenied) as caught:
            await tools.result("current_time")
        assert caught.value.metadata["missing_scopes"] == "time:read"
        with pytest.raises(PermissionDenied):
            await tools.stub.GetTool(tools_pb2.GetToolRequest(name="current_time"))
    with testing.calling(identities, testing.principal_of(scopes=["time:read"])):
        assert not (await tools.stub.ListTools(tools_pb2.ListToolsRequest())).tools
        for call in (tools.result("calculator", {"expression": "1"}), tools.known("k")):
            with pytest.raises(PermissionDenied):
                await call


@pytest.mark.parametrize(
    ("name", "version", "reason"), [("abacus", "", "TOOL_NOT_FOUND"), ("calculator", "9.9.9", "TOOL_VERSION_NOT_FOUND")]
)
async def test_unknown_tools(tools, caller, name, version, reason):
    with pytest.raises(NotFound) as caught:
        await tools.result(name, version=version)
    assert caught.value.reason == reason
    with pytest.raises(NotFound):
        await tools.stub.GetTool(tools_pb2.GetToolRequest(name=name, version=version))


async def test_a_request_without_name_and_endless_ids_are_invalid(tools, caller):
    one, endless = {"expression": "1"}, "k" * 256
    calls = {
        "name": tools.result(""),
        "idempotency_key": tools.result("calculator", one, endless),
        "run_id": tools.result("calculator", one, run_id=endless),
        "thread_id": tools.result("calculator", one, thread_id=endless),
    }
    for field, call in calls.items():
        with pytest.raises(InvalidInput) as caught:
            await call
        assert caught.value.violations[0].field == field
    with pytest.raises(InvalidInput):
        await tools.known("")


@pytest.mark.parametrize(
    ("raw", "path", "keyword"),
    [
        (b'{"expression":', "", "json"),
        (b"\xff\xfe", "", "json"),
        (b"[]", "", "type"),
        (b"null", "", "type"),
        (b"{}", "", "required"),
        (b'{"expression": ["SECRET"]}', "/expression", "type"),
        (b'{"expression": ""}', "/expression", "minLength"),
        (b'{"expression": "1", "mode": "SECRET"}', "/mode", "additionalProperties"),
        (b'{"expression": ' + b"[" * 200 + b"]" * 200 + b"}", "/expression", "type"),
        (b'{"expression": ' + b"[" * 1000 + b"]" * 1000 + b"}", "", "maxDepth"),
        (b"[" * 100_000, "", "json"),
    ],
)
async def test_wrong_arguments_are_a_result_with_violations_as_data(tools, caller, raw, path, keyword):
    result = await tools.result("calculator", raw, "bad")
    assert (result.outcome, result.error.code, result.error.retryable) == (FAILED, "input.invalid", False)
    assert (path, keyword) in [(v.path, v.keyword) for v in result.error.violations]
    assert "SECRET" not in str(result)
    assert result.attempts == 0


async def test_arguments_of_the_wrong_json_type_are_converted_with_a_warning(tools, caller):
    *events, last = await tools.events("calculator", {"expression": 5})
    assert last.result.outcome == DONE
    assert [e.warning.code for e in events] == ["arguments_coerced"]
    assert orjson.loads(events[0].warning.attributes_json) == {"paths": ["/expression"]}


async def test_an_expression_that_fails_is_the_tools_failure(tools, caller):
    result = await tools.result("calculator", {"expression": "1/0"})
    assert (result.outcome, result.error.code, result.error.agent_message) == (FAILED, "input.invalid", "division by zero")


async def test_the_rate_of_a_tier_holds_for_each_user(tools, identities):
    free = testing.principal_of(user="eve", tier="free")
    with testing.calling(identities, free):
        for number in range(3):
            assert (await tools.result("calculator", {"expression": str(number)})).outcome == DONE
        with pytest.raises(QuotaExceeded) as caught:
            await tools.result("calculator", {"expression": "1"})
    assert caught.value.metadata["policy"] == "tool_calls_per_minute"
    assert 0 < caught.value.retry_after_s <= 20
    for other in (testing.principal_of(user="eva", tier="free"), testing.principal_of("globex", "eve", tier="free")):
        with testing.calling(identities, other):
            assert (await tools.result("calculator", {"expression": "1"})).outcome == DONE


async def test_printed_text_comes_while_the_code_runs(tools, caller):
    request = tools_pb2.ExecuteToolRequest(
        name="python", arguments_json=orjson.dumps({"code": "print('early')\nx = 0\nwhile x < 300000: x += 1\nprint('late')\nx"})
    )
    arrived = []
    async for event in tools.stub.ExecuteTool(request):
        arrived.append((time.monotonic(), event))
    texts = [(at, e.partial_output.text) for at, e in arrived if e.WhichOneof("event") == "partial_output"]
    assert "".join(text for _, text in texts) == "early\nlate\n"
    assert texts[0][0] < arrived[-1][0]
    assert orjson.loads(arrived[-1][1].result.output_json)["result"] == 300000


async def test_the_callers_deadline_is_what_a_tool_gets(tmp_path, state_url, identities, outside):
    outside.gate.clear()
    write_config(tmp_path, [http_tool(outside, "read", "/read", annotations={"read_only": True}, timeout_s=20)])
    async with executor(tmp_path, state_url, identities) as client:
        started = time.monotonic()
        with testing.calling(identities, timeout_s=0.6):
            result = await client.result("read")
        assert time.monotonic() - started < 10
        assert (result.outcome, result.error.code) == (FAILED, "transport.timeout")
        with testing.calling(identities, timeout_s=0.025), pytest.raises(DeadlineExceeded):
            await client.result("read")


async def test_a_hung_tool_holds_its_own_slots_and_no_others(tmp_path, state_url, identities, outside, caller):
    outside.gate.clear()
    read = {"annotations": {"read_only": True}, "concurrent_calls": 2, "retry": {"times": 0}}
    write_config(tmp_path, [http_tool(outside, "hung", "/hung", **read), {"name": "calculator"}])
    async with executor(tmp_path, state_url, identities) as client:
        hung = [asyncio.create_task(client.result("hung", key=f"h{n}")) for n in range(2)]
        await testing.eventually_async(lambda: len(outside.seen) == 2, "both hang")
        busy = await client.result("hung", key="h3")
        assert (busy.outcome, busy.error.code, busy.error.retryable) == (FAILED, "limit.concurrency", True)
        assert (await client.result("calculator", {"expression": "2+2"})).outcome == DONE
        outside.gate.set()
        assert [r.outcome for r in await asyncio.gather(*hung)] == [DONE, DONE]
        # Nothing had happened under that key, so it is as good as new.
        assert (await client.result("hung", key="h3")).outcome == DONE


async def test_a_changed_file_takes_effect_and_a_bad_one_does_not(tmp_path, state_url, identities, caller):
    write_config(tmp_path, [{"name": "calculator"}])
    async with executor(tmp_path, state_url, identities) as client:

        async def names():
            return [t.name for t in (await client.stub.ListTools(tools_pb2.ListToolsRequest())).tools]

        write_config(tmp_path, "tools: [{name: abacus}]")
        await asyncio.sleep(1.2)  # longer than it takes to look: what must not happen has no event to wait for
        assert await names() == ["calculator"]
        write_config(tmp_path, [{"name": "calculator"}, {"name": "current_time"}])

        async def changed():
            return await names() == ["calculator", "current_time"]

        await testing.eventually_async(changed, "the new tool is listed", 10)


async def test_a_start_with_bad_files_tells_all_that_is_wrong(tmp_path, state_url, identities):
    write_config(tmp_path, "tools: [{name: abacus}, {name: calculator}, {name: calculator}]", policies="sets: 5")
    with pytest.raises(StartRefused) as caught:
        async with executor(tmp_path, state_url, identities):
            pass
    told = "\n".join(caught.value.problems)
    assert "abacus" in told
    assert "stands twice" in told
    assert "policies.yaml: sets" in told
