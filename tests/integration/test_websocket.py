"""`/ws` with the `websockets` client: start, follow, resume, control, and the refusals of single commands."""

import asyncio

import aiohttp
import orjson
import pytest
from bulkhead.orchestrator.v1 import approvals_pb2

from services.common import testing
from services.gateway.fakes import frames_of
from services.gateway.surfaces.websocket.asking import Ask
from services.gateway.surfaces.websocket.commands import VERBS
from tests.integration.websocket_client import talk

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def started(ws, thread, agent, **members):
    """A run that is watched under the id of its start; both ids."""
    ack = await ws.ask("start", thread_id=thread, input="one two", agent=agent, watch=True, **members)
    assert ack["type"] == "ack", ack
    return ack["result"]["run_id"], ack["id"]


async def test_start_and_follow_to_the_end_as_server_sent_events_tell_it(front, ana):
    async with talk(front) as ws:
        assert (ws.hello["protocol"], ws.hello["limits"]["watches"]) == ("bulkhead.v1", 32)
        run_id, watch = await started(ws, "ws-start", "tools")
        events = await ws.followed(watch)
        assert ws.ended[watch] == {
            "type": "watch_ended",
            "watch": watch,
            "run_id": run_id,
            "after": events[-1]["seq"],
            "reason": "finished",
        }
    async with ana.get(f"/v1/runs/{run_id}/events") as response:
        assert [data for _, _, data in await frames_of(response)] == events
    assert events[-1]["type"] == "run_finished"


async def test_cut_at_every_event_the_rest_is_the_rest(front):
    for agent in ("tools", "takeover"):
        thread = f"ws-cut-{agent}"
        async with talk(front) as ws:
            run_id, watch = await started(ws, thread, agent)
            whole = await ws.followed(watch)
        assert len(whole) > 5
        for subject in ({"run_id": run_id}, {"thread_id": thread}):
            for cut in range(1, len(whole)):
                async with talk(front) as ws:
                    head = (await ws.ask("watch", **subject))["id"]
                    await ws.until(lambda ws=ws, head=head, cut=cut: len(ws.events.get(head, ())) >= cut)
                    assert ws.events[head][:cut] == whole[:cut]
                async with talk(front) as ws:
                    ack = await ws.ask("watch", **subject, after=whole[cut - 1]["seq"])
                    assert ack["result"] == {"watch": ack["id"], **subject, "after": whole[cut - 1]["seq"]}
                    tail, rest = ack["id"], whole[cut:]
                    await ws.until(lambda ws=ws, tail=tail, rest=rest: len(ws.events.get(tail, ())) >= len(rest))
                    assert ws.events[tail] == rest


async def test_a_run_at_work_is_followed_over_a_new_connection_for_each_event(front):
    seen = []
    async with talk(front) as ws:
        run_id, watch = await started(ws, "ws-live", "slow")
    while not seen or seen[-1]["type"] != "run_finished":
        async with talk(front) as ws:
            watch = await ws.send("watch", run_id=run_id, after=seen[-1]["seq"] if seen else 0)
            await ws.until(lambda ws=ws, watch=watch: ws.events.get(watch))
            seen += ws.events[watch]
    assert [event["seq"] for event in seen] == list(range(1, 44))


async def test_several_watches_share_a_connection_and_one_that_is_ended_says_no_more(front):
    async with talk(front) as ws:
        (hangs, one), (_, two) = await started(ws, "ws-many", "hang"), await started(ws, "ws-many-2", "tools")
        of_thread = (await ws.ask("watch", thread_id="ws-many", id="thread"))["id"]
        await ws.followed(two)
        await ws.until(lambda: len(ws.events.get(one, ())) == len(ws.events.get(of_thread, ())) == 3)
        told = (await ws.ask("unwatch", watch=one))["result"]
        assert told == {"watch": one, "run_id": hangs, "after": 3}
        assert (await ws.ask("unwatch", watch=one))["problem"]["reason"] == "WATCH_NOT_FOUND"
        assert (await ws.ask("watch", run_id=hangs, id="thread"))["problem"]["reason"] == "WATCH_EXISTS"
        await ws.ask("cancel", run_id=hangs)
        await ws.until(lambda: ws.events[of_thread][-1]["type"] == "run_cancelled")
        assert len(ws.events[one]) == 3
    assert ws.ended.keys() == {two}


async def test_each_command_is_the_request_that_its_route_takes(front):
    approval = approvals_pb2.Approval(approval_id="run-ws/1/0", run_id="run-ws", thread_id="t", arguments_json=b"{}", decidable=True)
    edited = approvals_pb2.Approval(approval_id="run-ws/1/1", run_id="run-ws", thread_id="t", arguments_json=b"{}", decidable=True)
    for one in (approval, edited):
        front.log.desk.raise_approval("acme", one)
    async with talk(front) as ws:
        run_id, watch = await started(ws, "ws-verbs", "silent", run_id="run-ws-verbs")
        front.log.desk.asked.clear()
        told = [
            await ws.ask("steer", run_id=run_id, text="shorter"),
            await ws.ask("update_plan", run_id=run_id, version=3, steps=[{"title": "a", "status": "done"}]),
            await ws.ask("cancel_tool_call", run_id=run_id, call_id="t1", continuation="substitute", result={"n": 1}),
            await ws.ask("approve", approval_id=approval.approval_id, reason="fine"),
            await ws.ask("decide", approval_id=edited.approval_id, verb="edit", arguments={"n": 2}),
            await ws.ask("cancel_runs", filter={"thread_id": "ws-nobody"}, idempotency_key="bulk"),
            await ws.ask("stop", run_id=run_id),
        ]
        assert [(answer["type"], answer.get("status")) for answer in told] == [
            *[("ack", 202)] * 3, ("ack", 200), ("ack", 200), ("ack", 200), ("ack", 202),
        ]  # fmt: skip
        assert (told[0]["result"]["number"], told[0]["result"]["run"]["run_id"]) == (1, run_id)
        assert [type(asked).__name__ for asked in front.log.desk.asked] == [
            "SteerRunRequest", "UpdatePlanRequest", "CancelToolCallRequest", "DecideApprovalRequest", "DecideApprovalRequest",
            "CancelRunsRequest", "StopGenerationRequest",
        ]  # fmt: skip
        assert front.log.desk.asked[0].text == "shorter"
        assert (told[3]["result"]["state"], told[4]["result"]["arguments"]) == ("approved", {"n": 2})
        await ws.followed(watch)
        late = (await ws.ask("steer", run_id=run_id, text="too late"))["problem"]
        assert (late["status"], late["reason"], late["instance"]) == (409, "RUN_ENDED", f"/v1/runs/{run_id}/steer")
        second = (await ws.ask("approve", approval_id=approval.approval_id))["problem"]
        assert (second["reason"], second["decided_by"]) == ("ALREADY_DECIDED", "bo")


async def test_commands_are_carried_out_in_their_order(front, monkeypatch):
    # The first would be the last if they were carried out side by side.
    read, waits = Ask._receive, iter([0.2])

    async def late(ask):
        await asyncio.sleep(next(waits, 0))
        return await read(ask)

    async with talk(front) as ws:
        await ws.ask("start", thread_id="ws-order", run_id="run-ws-order", input="x", agent="silent")
        monkeypatch.setattr(Ask, "_receive", late)
        for number in range(10):
            await ws.send("steer", run_id="run-ws-order", text=str(number))
        last = await ws.send("cancel", run_id="run-ws-order")
        await ws.answer(last)
    assert all(answer["type"] == "ack" for answer in ws.answers.values())
    said = [one.text for one in front.log.desk.asked if getattr(one, "run_id", "") == "run-ws-order" and hasattr(one, "text")]
    assert said == [str(number) for number in range(10)]


async def test_a_key_of_idempotency_answers_the_first_answer_again(front):
    async with talk(front) as ws:
        asked = {"thread_id": "ws-key", "input": "x", "agent": "tools", "idempotency_key": "ws-once"}
        first, again = await ws.ask("start", **asked), await ws.ask("start", **asked)
        assert first["result"]["run_id"] == again["result"]["run_id"]
        assert (first["replayed"], again["replayed"]) == (False, True)
        assert (await ws.ask("start", **{**asked, "input": "y"}))["type"] == "error"
        # A client that was cut off sends the very command again and is shown the very run.
        whole = []
        for _ in range(2):
            run_id, watch = await started(ws, "ws-key-watch", "tools", idempotency_key="ws-watched")
            whole.append((run_id, await ws.followed(watch)))
        assert whole[0] == whole[1]
        assert (await ws.ask("watch", thread_id="ws-key", idempotency_key="k"))["problem"]["errors"][0]["field"] == "idempotency_key"
        assert (await ws.ask("cancel_runs", filter={"thread_id": "ws-key"}))["problem"]["errors"][0]["field"] == "Idempotency-Key"


ONE_OF_EACH = {
    "start": ({"thread_id": "ws-scope", "input": "x"}, "runs:write"),
    "steer": ({"run_id": "r", "text": "x"}, "runs:write"),
    "cancel": ({"run_id": "r"}, "runs:write"),
    "stop": ({"run_id": "r"}, "runs:write"),
    "update_plan": ({"run_id": "r", "version": 1, "steps": [{"title": "a", "status": "done"}]}, "runs:write"),
    "cancel_tool_call": ({"run_id": "r", "call_id": "c", "continuation": "skip"}, "runs:write"),
    "cancel_runs": ({"filter": {"thread_id": "t"}, "idempotency_key": "k"}, "runs:write"),
    "decide": ({"approval_id": "r/1/0", "verb": "approve"}, "approvals:write"),
    "approve": ({"approval_id": "r/1/0"}, "approvals:write"),
    "watch": ({"run_id": "r"}, "runs:read"),
}


async def test_each_command_needs_the_scope_of_its_route(front):
    assert set(ONE_OF_EACH) == set(VERBS) - {"unwatch"}
    every = {scope for _, scope in ONE_OF_EACH.values()}
    for kind, (members, scope) in ONE_OF_EACH.items():
        key = await front.issue(scopes=tuple(every - {scope}), user="eve")
        before = len(front.log.desk.asked)
        async with talk(front, key=key) as ws:
            problem = (await ws.ask(kind, **members))["problem"]
            assert (problem["status"], problem["reason"], problem["missing_scopes"]) == (403, "SCOPE_MISSING", scope), kind
        assert len(front.log.desk.asked) == before


async def test_what_is_another_tenants_is_not_there(front):
    async with talk(front) as ws:
        run_id, _ = await started(ws, "ws-mine", "hang")
    front.log.desk.raise_approval("acme", approvals_pb2.Approval(approval_id=f"{run_id}/1/0", arguments_json=b"{}", decidable=True))
    mine = {"run_id": run_id, "thread_id": "ws-mine", "approval_id": f"{run_id}/1/0"}
    async with talk(front, key=await front.issue("other")) as ws:
        for kind in ("steer", "stop", "update_plan", "cancel_tool_call", "decide", "approve", "watch"):
            members, _ = ONE_OF_EACH[kind]
            asked = {name: mine.get(name, value) for name, value in members.items()}
            problem = (await ws.ask(kind, **asked))["problem"]
            assert problem["status"] == 404, kind
        assert (await ws.ask("watch", thread_id="ws-mine"))["problem"]["status"] == 404
        # An id that is not there yet is cancelled when it comes: to the tenant that asks.
        await ws.ask("cancel", run_id=run_id)
    assert not front.log.runs[("acme", run_id)].cancelled.is_set()
    front.log.runs[("acme", run_id)].cancelled.set()


@pytest.mark.parametrize("leaving", ["continue", "cancel"])
@pytest.mark.parametrize("how", ["started", "watched", "unwatched"])
async def test_a_client_that_leaves_cancels_only_when_it_said_so(front, leaving, how):
    thread = f"ws-leave-{how}-{leaving}"
    async with talk(front) as ws:
        if how == "started":
            run_id, watch = await started(ws, thread, "hang", on_disconnect=leaving)
        else:
            run_id = (await ws.ask("start", thread_id=thread, input="x", agent="hang"))["result"]["run_id"]
            watch = (await ws.ask("watch", run_id=run_id, on_disconnect=leaving))["id"]
        await ws.until(lambda: len(ws.events.get(watch, ())) == 3)
        if how == "unwatched":
            await ws.ask("unwatch", watch=watch)
    run = front.log.runs[("acme", run_id)]
    await testing.eventually_async(lambda: front.replicas[0].open_streams == 0, "the gateway lets go of the log")
    if leaving == "cancel" and how != "unwatched":
        await asyncio.wait_for(run.cancelled.wait(), 5)
    assert run.cancelled.is_set() == (leaving == "cancel" and how != "unwatched")
    run.cancelled.set()


WRONG = [
    ({"type": "start", "thread_id": "t"}, "input"),
    ({"type": "start", "thread_id": "t", "input": "x", "stream": True}, "stream"),
    ({"type": "start", "thread_id": "t", "input": "x", "on_disconnect": "cancel"}, "on_disconnect"),
    ({"type": "start", "thread_id": "t", "input": "x", "watch": 1}, "watch"),
    ({"type": "start", "thread_id": "a/b", "input": "x"}, "thread_id"),
    ({"type": "cancel", "run_id": "x/tool-calls/y"}, "run_id"),
    ({"type": "cancel_tool_call", "run_id": "r", "call_id": "a/b", "continuation": "skip"}, "call_id"),
    ({"type": "cancel_tool_call", "run_id": "r", "call_id": "..", "continuation": "skip"}, "call_id"),
    ({"type": "cancel", "run_id": "r", "wait": True}, "wait"),
    ({"type": "approve", "approval_id": "r/1/0", "verb": "reject"}, "verb"),
    ({"type": "approve", "approval_id": "r"}, "approval_id"),
    ({"type": "watch"}, "run_id"),
    ({"type": "watch", "run_id": "r", "thread_id": "t"}, "run_id"),
    ({"type": "watch", "run_id": "r", "after": "5"}, "after"),
    ({"type": "watch", "run_id": "r", "after": -1}, "after"),
    ({"type": "watch", "run_id": "r", "types": "usage"}, "types"),
    ({"type": "watch", "run_id": "r", "kinds": ["usage"]}, "kinds"),
    ({"type": "watch", "thread_id": "t", "on_disconnect": "cancel"}, "on_disconnect"),
    ({"type": "unwatch"}, "watch"),
    ({"type": "steer", "run_id": "r", "text": "x", "idempotency_key": "a\nb"}, "idempotency_key"),
    ({"type": "dance"}, "type"),
    ({"type": ["start"]}, "type"),
    ({}, "type"),
]


async def test_a_command_that_is_wrong_is_refused_by_the_name_of_its_member(front):
    async with talk(front) as ws:
        for number, (members, field) in enumerate(WRONG):
            await ws.connection.send(orjson.dumps({"id": f"w{number}", **members}).decode())
            problem = (await ws.answer(f"w{number}"))["problem"]
            assert (problem["status"], problem["errors"][0]["field"]) == (422, field), members
            assert problem["type"] == "urn:bulkhead:problem:invalid-input"


async def test_a_cursor_from_the_future_and_a_run_that_is_nowhere_are_refused_as_over_http(front, ana):
    async with talk(front) as ws:
        _, watch = await started(ws, "ws-future", "tools")
        await ws.followed(watch)
        for members, path in (
            ({"thread_id": "ws-future", "after": 99}, "/v1/threads/ws-future/events?after=99"),
            ({"run_id": "run-nowhere"}, "/v1/runs/run-nowhere/events"),
        ):
            told = (await ws.ask("watch", **members))["problem"]
            async with ana.get(path) as response:
                over_http = await response.json(content_type=None)
            for own in ("request_id", "trace_id"):
                del told[own], over_http[own]
            assert told == over_http


NO_COMMANDS = [
    ("{", "INVALID_JSON"),
    ("", "INVALID_JSON"),
    ("[]", "INVALID_JSON"),
    ('"start"', "INVALID_JSON"),
    ("null", "INVALID_JSON"),
    ("NaN", "INVALID_JSON"),
    ("\0", "INVALID_JSON"),
    ('{"id": "n", "type": "steer", "run_id": "r", "text": "\\ud83d"}', "INVALID_JSON"),
    ('{"id": "n", "type": "steer", "run_id": "r\\u0000", "text": "x"}', "INVALID_INPUT"),
    ('{"id": "n", "type": "cancel", "run_id": "r", "run_id": "s"}', "INVALID_JSON"),
    ('{"id": "n", "type": "decide", "approval_id": "r/1/0", "verb": "edit", "arguments": {"a": {"b": 1, "b": 2}}}', "INVALID_JSON"),
    ('{"id": "n", "type": "steer", "text": ' + "[" * 1000 + "]" * 1000 + "}", "NESTED_TOO_DEEPLY"),
    ('{"id": "n", "type": "steer", "text": ' + "[" * 100_000, "INVALID_JSON"),
    ('{"id": "' + "n" * 65 + '", "type": "stop", "run_id": "r"}', "INVALID_INPUT"),
    ('{"id": "n", "type": "watch", "thread_id": "t", "after": ' + "9" * 5000 + "}", "INVALID_JSON"),
    ('{"id": 5, "type": "stop", "run_id": "r"}', "INVALID_INPUT"),
]


async def test_what_is_no_command_is_answered_and_the_connection_goes_on(front):
    async with talk(front) as ws:
        for text, reason in NO_COMMANDS:
            await ws.connection.send(text)
            await ws.until(lambda: ws.answers)
            ((command_id, answer),) = ws.answers.items()
            ws.answers.clear()
            assert answer["problem"]["reason"] in (reason, "NESTED_TOO_DEEPLY" if "[[[" in text else reason), text[:80]
            assert command_id == ("n" if reason == "INVALID_INPUT" and '"id": "n"' in text else None), text[:80]
            assert answer["problem"]["instance"] == "/ws"
        assert (await ws.ask("cancel", run_id="run-after-all-that"))["type"] == "ack"


async def test_other_paths_and_plain_requests_are_refused_in_the_native_form(front, ana):
    async with ana.get("/ws") as response:
        problem = await response.json(content_type=None)
        assert (response.status, problem["reason"], response.headers["upgrade"]) == (426, "UPGRADE_REQUIRED", "websocket")
    for path in ("/", "/v1/runs", "/ws/more"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await ana.ws_connect(path)
        assert refused.value.status == 404


async def test_a_client_that_leaves_before_it_hears_of_its_run_cancels_it_too(front):
    for number in range(3):
        async with talk(front) as ws:
            # The connection is closed behind the command, so that its answer finds nobody.
            await ws.send("start", thread_id=f"ws-early-{number}", run_id=f"ws-early-{number}", input="x", agent="hang", watch=True,
                          on_disconnect="cancel")  # fmt: skip
        run = await testing.eventually_async(lambda number=number: front.log.runs.get(("acme", f"ws-early-{number}")), "it is started")
        await asyncio.wait_for(run.cancelled.wait(), 5)


async def test_a_client_that_leaves_while_its_run_is_still_being_made_cancels_it_as_well(front, monkeypatch):
    read, asked = Ask._receive, asyncio.Event()

    async def late(ask):
        if b'"late"' in ask._body and not ask._given:
            asked.set()
            await asyncio.sleep(0.5)
        return await read(ask)

    monkeypatch.setattr(Ask, "_receive", late)
    async with talk(front) as ws:
        # That one's events are what the gateway hears of the leaving by.
        _, watch = await started(ws, "ws-going", "slow")
        await ws.until(lambda: ws.events.get(watch))
        late_one = {"thread_id": "ws-late", "run_id": "ws-late", "input": "late", "agent": "hang", "watch": True}
        await ws.send("start", **late_one, on_disconnect="cancel")
        async with asyncio.timeout(20):
            await asked.wait()
        ws.connection.transport.abort()
    run = await testing.eventually_async(lambda: front.log.runs.get(("acme", "ws-late")), "it is started")
    async with asyncio.timeout(20):
        await run.cancelled.wait()
