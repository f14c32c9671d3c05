"""What is refused on /ag-ui, in the form of the surface: the event RUN_ERROR, with the status that fits."""

import aiohttp
import orjson
import pytest
import pytest_asyncio
from ag_ui.core import RunErrorEvent

from services.gateway import fakes
from services.gateway.fake_log import EXPLODES

pytestmark = pytest.mark.asyncio(loop_scope="module")
USER = {"id": "u", "role": "user", "content": "hello"}
GOOD = {"threadId": "t", "runId": "r", "messages": [USER]}
CALL = {"id": "c", "type": "function", "function": {"name": "n", "arguments": "{}"}}
TOOL = {"name": "confirm", "description": "asks", "parameters": {}}
ASKING = {"id": "a", "role": "assistant", "toolCalls": [CALL]}
RESULT = {"id": "r1", "role": "tool", "toolCallId": "c", "content": "x"}
BAD = {"name": "a b", "arguments": ""}
ANSWER = {"interruptId": "r/1/0", "status": "resolved", "payload": {"approved": True}}


@pytest_asyncio.fixture(loop_scope="module")
async def http(served):
    async with aiohttp.ClientSession(served.url, headers={**served.headers(), "content-type": "application/json"}) as session:
        yield session


async def refused(response, status):
    """The code and the rest of an error, which is one of the protocol."""
    async with response as answer:
        text = await answer.text()
        assert answer.status == status, text
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["x-request-id"]
    error = orjson.loads(text)
    model = RunErrorEvent.model_validate(error)
    assert not model.model_extra
    return error["code"], error["metadata"]["bulkhead"]


def message(**more):
    return {"messages": [USER, {**USER, "id": "m", **more}, {**USER, "id": "last"}]}


def said(*messages):
    return {"messages": [USER, *messages]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"threadId": None}, "threadId"),
        ({"threadId": 1}, "threadId"),
        ({"threadId": "a b"}, "threadId"),
        ({"threadId": ".."}, "threadId"),
        ({"threadId": "x" * 129}, "threadId"),
        ({"threadId": "t\x00"}, "threadId"),
        ({"runId": "r/1"}, "runId"),
        ({"runId": ""}, "runId"),
        ({"parentRunId": "a b"}, "parentRunId"),
        ({"protocolVersion": "2.0"}, "protocolVersion"),
        ({"protocolVersion": 1}, "protocolVersion"),
        ({"messages": None}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [USER] * 2}, "messages[1].id"),
        ({"messages": [{**USER, "id": str(n)} for n in range(1001)]}, "messages"),
        # More than one run takes; on a thread that is there only the last of them is new.
        ({"messages": [{**USER, "id": str(n)} for n in range(513)]}, "messages"),
        ({"messages": ["hello"]}, "messages[0]"),
        ({"messages": [{**USER, "content": " \n"}]}, "messages[0].content"),
        ({"messages": [USER, {"id": "a", "role": "assistant", "content": "hi"}]}, "messages"),
        (message(role="alien"), "messages[1].role"),
        (message(role=["user"]), "messages[1].role"),
        (message(role=None), "messages[1].role"),
        (message(id=7), "messages[1].id"),
        (message(id=""), "messages[1].id"),
        (message(name=7), "messages[1].name"),
        (message(metadata=[]), "messages[1].metadata"),
        (message(content=None), "messages[1].content"),
        (message(content={"text": "x"}), "messages[1].content"),
        (message(content=[1]), "messages[1].content[0]"),
        (message(content=[{"type": "hologram"}]), "messages[1].content[0].type"),
        (message(content=[{"type": "text", "text": 1}]), "messages[1].content[0].text"),
        (message(role="system", content=[]), "messages[1].content"),
        (message(role="tool"), "messages[1].toolCallId"),
        (message(role="activity", activityType="a"), "messages[1].content"),
        (message(role="assistant", toolCalls={}), "messages[1].toolCalls"),
        (message(role="assistant", toolCalls=[{**CALL, "type": "magic"}]), "messages[1].toolCalls[0].type"),
        (message(role="assistant", toolCalls=[{**CALL, "function": {"name": "n"}}]), "messages[1].toolCalls[0].function.arguments"),
        ({"state": []}, "state"),
        ({"state": {"plan": None, "secret": 1}}, "state.secret"),
        ({"tools": {}}, "tools"),
        ({"tools": ["confirm"]}, "tools[0]"),
        ({"tools": [TOOL] * 65}, "tools"),
        ({"tools": [TOOL, TOOL]}, "tools[1].name"),
        ({"tools": [{**TOOL, "name": "no spaces"}]}, "tools[0].name"),
        ({"tools": [{**TOOL, "description": 5}]}, "tools[0].description"),
        ({"tools": [{**TOOL, "parameters": []}]}, "tools[0].parameters"),
        ({"tools": [{**TOOL, "parameters": {"type": "array"}}]}, "tools[0].parameters"),
        ({"tools": [{**TOOL, "surprise": 1}]}, "tools[0].surprise"),
        (message(role="tool", content="x", toolCallId="c"), "messages[1].toolCallId"),
        (message(role="tool", content="x", toolCallId=""), "messages[1].toolCallId"),
        (said(ASKING, RESULT, {**RESULT, "id": "again"}), "messages[3].toolCallId"),
        (said(ASKING, RESULT, {**RESULT, "id": "r2", "toolCallId": "c3"}), "messages[3].toolCallId"),
        (said({**ASKING, "toolCalls": [{**CALL, "function": BAD}]}, RESULT), "messages[1].toolCalls[0].function.name"),
        ({"context": {}}, "context"),
        ({"context": [{"description": "x"}]}, "context[0].value"),
        ({"forwardedProps": {"bulkhead": []}}, "forwardedProps.bulkhead"),
        ({"forwardedProps": {"bulkhead": {"speed": 1}}}, "forwardedProps.bulkhead.speed"),
        ({"forwardedProps": {"bulkhead": {"onBusy": "steer"}}}, "forwardedProps.bulkhead.onBusy"),
        ({"forwardedProps": {"bulkhead": {"onDisconnect": {}}}}, "forwardedProps.bulkhead.onDisconnect"),
        ({"resume": {}}, "resume"),
        ({"resume": [7]}, "resume[0]"),
        ({"resume": [{**ANSWER, "interruptId": ""}]}, "resume[0].interruptId"),
        ({"resume": [ANSWER, ANSWER]}, "resume[1].interruptId"),
        ({"resume": [{**ANSWER, "status": "maybe"}]}, "resume[0].status"),
        ({"resume": [{**ANSWER, "payload": True}]}, "resume[0].payload"),
        ({"resume": [{**ANSWER, "status": "cancelled"}]}, "resume[0].payload"),
        ({"resume": [ANSWER]}, "resume[0].interruptId"),
        ({"resume": [{**ANSWER, "interruptId": "\x00" * 300}]}, "resume[0].interruptId"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_and_begins_nothing(http, served, change, field):
    before = len(served.log.runs)
    code, more = await refused(http.post("/ag-ui/assistant", data=orjson.dumps({**GOOD, **change})), 422)
    assert more["errors"][0]["field"] == field
    assert code == ("UNSUPPORTED_PARAMETER" if field in ("tools[0].surprise", "state.secret") else "INVALID_INPUT")
    assert len(served.log.runs) == before


def nested(depth):
    return b'{"threadId":"t","runId":"r","messages":[],"forwardedProps":' + b"[" * depth + b"]" * depth + b"}"


@pytest.mark.parametrize(
    ("data", "code", "status"),
    [
        (b"{", "INVALID_JSON", 400),
        (b'{"a":NaN}', "INVALID_JSON", 400),
        (b'{"a":"\xff"}', "INVALID_ENCODING", 400),
        (b'{"a":"\\ud800"}', "INVALID_JSON", 400),
        (b'{"a":"x\x00"}', "INVALID_JSON", 400),
        (nested(1000), "NESTED_TOO_DEEPLY", 400),
        (b"[" * 100_000, "NESTED_TOO_DEEPLY", 400),
        (b"[]", "INVALID_INPUT", 422),
        (b"", "INVALID_INPUT", 422),
        (b"null", "INVALID_INPUT", 422),
        (orjson.dumps({**GOOD, "padding": "x" * 5_000_000}), "BODY_TOO_LARGE", 413),
    ],
    ids=["cut", "nan", "latin", "surrogate", "nul", "deep", "abyss", "list", "empty", "null", "large"],
)  # fmt: skip
async def test_bodies_that_are_no_input_at_all(http, data, code, status):
    assert (await refused(http.post("/ag-ui/assistant", data=data), status))[0] == code


async def test_of_two_equal_keys_none_holds_and_a_nul_in_a_text_is_a_character_of_it(http, served):
    twice = b'{"threadId":"t-twice","runId":"r-nul","messages":[{"id":"u","role":"user","id":"v","content":"x"}]}'
    code, more = await refused(http.post("/ag-ui/assistant", data=twice), 400)
    assert (code, [error["field"] for error in more["errors"]]) == ("INVALID_JSON", ["id"])
    nul = b'{"threadId":"t-nul","runId":"r-nul","messages":[{"id":"u","role":"user","content":"a\\u0000b"}]}'
    async with http.post("/ag-ui/assistant", data=nul) as response:
        assert (response.status, b"RUN_FINISHED" in await response.read()) == (200, True)
    run = served.log.runs[("acme", "r-nul")]
    assert (run.run.thread_id, run.said) == ("t-nul", "a\x00b")


async def test_agents_routes_methods_and_media_types_that_are_not_there(http):
    good = orjson.dumps({**GOOD, "runId": "r-none", "threadId": "t-none"})
    assert (await refused(http.post("/ag-ui/nobody", data=good), 404))[0] == "AGENT_NOT_FOUND"
    assert (await refused(http.post("/ag-ui/a%20b", data=good), 400))[1]["errors"][0]["field"] == "agent"
    assert (await refused(http.get("/ag-ui/assistant"), 405))[0] == "METHOD_NOT_ALLOWED"
    assert (await refused(http.post("/ag-ui/assistant/more", data=good), 404))[0] == "ROUTE_NOT_FOUND"
    assert (await refused(http.post("/ag-ui/assistant?speed=1", data=good), 400))[1]["errors"][0]["field"] == "speed"
    assert (await refused(http.post("/ag-ui/assistant", data=good, headers={"content-type": "text/plain"}), 415))[
        0
    ] == "UNSUPPORTED_MEDIA_TYPE"
    code, more = await refused(http.post("/ag-ui/assistant", data=orjson.dumps({**GOOD, "threadId": EXPLODES})), 500)
    assert (code, "secret" in str(more)) == ("INTERNAL", False)


@pytest.mark.parametrize(("cursor", "status"), [("x", 422), ("-1", 422), ("1" * 20, 422), ("9", 422), ("1e3", 422)])
async def test_cursors_that_are_none_and_those_of_the_future(http, cursor, status):
    headers = {"last-event-id": cursor}
    code, more = await refused(http.post("/ag-ui/assistant", data=orjson.dumps({**GOOD, "threadId": "t-new"}), headers=headers), status)
    assert (code, more["errors"][0]["field"]) == ("INVALID_INPUT", "Last-Event-ID")


async def test_a_run_belongs_to_its_thread_its_agent_and_its_tenant(http, served):
    mine = {**GOOD, "threadId": "t-mine", "runId": "r-mine"}
    async with http.post("/ag-ui/assistant", data=orjson.dumps(mine)) as response:
        await response.read()
        last = served.log.threads[("acme", "t-mine")].last_seq
    for agent, body in (("tools", mine), ("assistant", {**mine, "threadId": "t-other"})):
        _, more = await refused(http.post(f"/ag-ui/{agent}", data=orjson.dumps(body)), 422)
        assert more["errors"][0]["field"] == "runId"
    gone_on = {**mine, "runId": "r-never"}
    code, _ = await refused(http.post("/ag-ui/assistant", data=orjson.dumps(gone_on), headers={"last-event-id": str(last)}), 404)
    assert code == "RUN_NOT_FOUND"
    # The same names of another tenant are that tenant's own.
    theirs = {"authorization": f"Bearer {await served.issue('globex')}"}
    async with http.post("/ag-ui/assistant", data=orjson.dumps(mine), headers=theirs) as response:
        assert b"MESSAGES_SNAPSHOT" not in await response.read()
    assert ("globex", "r-mine") in served.log.runs


async def test_keys_and_scopes(http, served):
    good = orjson.dumps({**GOOD, "runId": "r-scopes"})
    assert (await refused(http.post("/ag-ui/assistant", data=good, headers={"authorization": "Bearer bh_none"}), 401))[
        0
    ] == "INVALID_API_KEY"
    for held, missing in ((("runs:write",), "runs:read"), (("runs:read",), "runs:write")):
        headers = {"authorization": f"Bearer {await served.issue(scopes=held)}"}
        code, more = await refused(http.post("/ag-ui/assistant", data=good, headers=headers), 403)
        assert (code, more["missing_scopes"]) == ("SCOPE_MISSING", missing)
    both = {"authorization": f"Bearer {await served.issue(scopes=('runs:read', 'runs:write'))}"}
    async with http.post("/ag-ui/assistant", data=good, headers=both) as response:
        assert (response.status, b"RUN_FINISHED" in await response.read()) == (200, True)


async def test_a_store_that_goes_away_within_a_stream_is_an_error_of_the_protocol(identities, _state_server):
    async with fakes.gateway(identities, _state_server, cut_after=3, stream_reconnect_s=0.2) as served:
        async with aiohttp.ClientSession(served.url, headers=served.headers()) as session:
            body = {"threadId": "t-cut", "runId": "r-cut", "messages": [USER]}
            async with session.post("/ag-ui/hang", json=body) as response:
                await response.content.readuntil(b"Working")
                for stop in served.stops[:1]:
                    stop.set()
                rest = await response.read()
    error = orjson.loads(rest.split(b"data: ")[-1])
    assert (error["type"], error["metadata"]["bulkhead"]["retryable"]) == ("RUN_ERROR", True)
