"""Whoever asks for more of a log than is kept is told so with a snapshot, and goes on from it with nothing missed."""

import asyncio
import json
from contextlib import asynccontextmanager

import jsonschema
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import Gone, NotFound, PermissionDenied
from services.gateway.fakes import frames_of
from services.orchestrator import snapshots
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import RunRef
from services.orchestrator.testing.harness import data_of, served, settings_for, types, write_config
from tests.integration.real_gateway import answered, gateway_before

HELD = 'tool send_mail {"to": "boss"}'


@pytest.fixture
def settings(identities, behind, state_url, tmp_path):
    return settings_for(identities, behind, state_url, write_config(tmp_path / "config"))


class View:
    """What a client knows of a thread: of each run its input, text and end, and what is asked of people."""

    def __init__(self):
        self.cursor, self.runs, self.asked, self.done = 0, {}, {}, {}

    def take(self, found):
        """Begins anew from a snapshot, as the native API has it."""
        self.__init__()
        self.cursor = found["resume_after"]
        for run in found["runs"]:
            at_work = run["terminal_seq"] == 0 and run["first_seq"] > self.cursor
            if not at_work:
                self.runs[run["run_id"]] = {
                    "said": [m["content"] for m in run["input"]],
                    "text": run["output_text"],
                    "status": run["status"],
                }
                self.done[run["run_id"]] = run["terminal_seq"]
        self.asked = {one["approval_id"]: one["tool"] for one in found["approvals"]}

    def hear(self, event):
        """One event of the log, as JSON."""
        assert event["seq"] > self.cursor
        self.cursor, data, run_id = event["seq"], event["data"], event["run_id"]
        if event["seq"] <= self.done.get(run_id, 0):
            return
        if event["type"] == "run_queued":
            self.runs[run_id] = {"said": [m["text"] for m in data["input"]], "text": "", "status": "queued"}
        run = self.runs[run_id]
        match event["type"]:
            case "run_started" | "run_resumed":
                run["status"] = "running"
            case "message_delta":
                run["text"] += data["text"]
            case "interrupt_raised":
                self.asked[data["interrupt_id"]] = data["tool"]
            case "interrupt_resolved":
                del self.asked[data["interrupt_id"]]
            case "run_finished":
                run["status"] = "succeeded"

    @property
    def state(self):
        return self.runs, self.asked


def as_json(event: pb.Event):
    return {"seq": event.seq, "run_id": event.run_id, "type": event.type, "data": data_of(event)}


async def forget_first(valkey, thread_id, run_id):
    """The retention of the thread's oldest run is over."""
    assert await Store(valkey, "another").expire(RunRef("acme", thread_id, run_id), 0.0)


async def the_rest(http, thread_id, view, until):
    """Follows the thread over HTTP until `until` has ended."""
    async with asyncio.timeout(testing.PATIENCE_S), http.get(f"/v1/threads/{thread_id}/events?after={view.cursor}") as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            if line.startswith(b"data: "):
                event = json.loads(line[6:])
                view.hear(event)
                if event["run_id"] == until and event["type"] == "run_finished":
                    return


def as_described(document, path, told):
    """A 410 is what the OpenAPI document says of the route."""
    described = document["paths"][path]["get"]["responses"]["410"]["content"]["application/problem+json"]["schema"]
    schema = jsonschema.Draft202012Validator(described | {"components": document["components"]})
    schema.validate(told)
    for member in ("oldest_seq", "snapshot"):
        assert not schema.is_valid({name: value for name, value in told.items() if name != member})


@asynccontextmanager
async def before_a_gateway(settings, identities, state_url):
    async with served(settings, identities) as client, gateway_before(identities, state_url, settings.grpc_port) as people:
        yield client, await people.session()


async def test_a_client_that_goes_on_from_the_snapshot_knows_what_one_knows_that_was_there_all_the_time(
    identities, settings, state_url, valkey
):
    async with before_a_gateway(settings, identities, state_url) as (client, http):
        always = View()
        gone = await client.wait((await client.start("say I am forgotten soon", thread_id="t")).run_id)
        kept = await client.wait((await client.start("say still here", thread_id="t")).run_id)
        at_work = await client.start(HELD, thread_id="t", agent="careful")
        behind = await client.start("say after that", thread_id="t")
        questions = await testing.eventually_async(lambda: client.asked(at_work.run_id), "the run asks")
        for event in await client.log(thread_id="t"):
            always.hear(as_json(event))
        await forget_first(valkey, "t", gone.run_id)
        document = await answered(http.get("/openapi.json"), 200)
        for path in ("/v1/threads/{thread_id}/events", "/replay/{thread_id}"):
            for after in (0, gone.terminal_seq - 1):
                told = await answered(http.get(path.format(thread_id="t"), params={"after": after}), 410)
                assert (told["reason"], told["oldest_seq"]) == ("RESUME_GAP", kept.first_seq)
                as_described(document, path, told)
        found = told["snapshot"]
        assert found == await answered(http.get("/v1/threads/t/snapshot"), 200)
        assert [run["run_id"] for run in found["runs"]] == [at_work.run_id, behind.run_id, kept.run_id]
        assert found["runs_after"] is None
        assert [(one["approval_id"], one["decidable"]) for one in found["approvals"]] == [(questions[0].approval_id, True)]
        # The text so far of the run at work stands in the log alone.
        assert found["resume_after"] == at_work.first_seq - 1
        late = View()
        late.take(found)
        await client.decide(questions[0].approval_id, approve={})
        await client.wait(behind.run_id)
        await the_rest(http, "t", late, behind.run_id)
        await the_rest(http, "t", always, behind.run_id)
        del always.runs[gone.run_id]
        assert late.state == always.state
        assert late.cursor == always.cursor
        # With nothing at work one goes on at the end of the log.
        found = await answered(http.get("/v1/threads/t/snapshot"), 200)
        assert found["resume_after"] == found["thread"]["last_seq"] == late.cursor
        late.take(found)
        assert late.state == always.state
        # A run that is there is kept whole, whatever its thread has lost.
        async with http.get(f"/v1/runs/{kept.run_id}/events?after=1") as response:
            assert (await frames_of(response))[0][2]["seq"] == kept.first_seq


async def test_the_text_so_far_of_a_run_at_work_is_not_lost(identities, settings, behind, state_url, valkey):
    behind.models.hold_after = 2
    async with before_a_gateway(settings, identities, state_url) as (client, http):
        gone = await client.wait((await client.start("say I go", thread_id="s")).run_id)
        behind.models.gate.close()
        at_work = await client.start("say one two three four", thread_id="s")

        async def spoken():
            return "message_delta" in types(await client.log(at_work.run_id))

        await testing.eventually_async(spoken, "there is text")
        await forget_first(valkey, "s", gone.run_id)
        late = View()
        late.take((await answered(http.get("/v1/threads/s/events"), 410))["snapshot"])
        behind.models.gate.open()
        await the_rest(http, "s", late, at_work.run_id)
        assert late.runs == {at_work.run_id: {"said": ["say one two three four"], "text": "one two three four", "status": "succeeded"}}


async def test_the_grpc_error_names_the_call_for_the_snapshot(identities, settings, valkey):
    async with served(settings, identities) as client:
        gone = await client.wait((await client.start("say one", thread_id="g")).run_id)
        kept = await client.wait((await client.start("say two", thread_id="g")).run_id)
        await forget_first(valkey, "g", gone.run_id)
        with pytest.raises(Gone) as refused:
            await client.log(thread_id="g")
        assert refused.value.metadata["snapshot_rpc"] == "bulkhead.orchestrator.v1.ThreadService/GetThreadSnapshot"
        with client.calling():
            found = (await client.threads.GetThreadSnapshot(pb.GetThreadSnapshotRequest(thread_id="g"))).snapshot
        assert [one.run for one in found.runs] == [kept]
        assert [m.text for m in found.runs[0].input] == ["say two"]
        assert (found.thread.oldest_seq, found.resume_after_seq) == (kept.first_seq, kept.terminal_seq)
        assert await client.log(thread_id="g", after_seq=found.resume_after_seq) == []
        with client.calling(), pytest.raises(NotFound):
            await client.threads.GetThreadSnapshot(pb.GetThreadSnapshotRequest(thread_id="other"))
    async with served(settings, identities, testing.principal_of(scopes=("threads:read",))) as client:
        with client.calling(), pytest.raises(PermissionDenied):
            await client.threads.GetThreadSnapshot(pb.GetThreadSnapshotRequest(thread_id="g"))


@pytest.mark.parametrize("bound", ["MOST_RUNS", "MOST_BYTES"])
async def test_a_snapshot_is_bounded_and_says_where_the_older_runs_follow(identities, settings, monkeypatch, bound):
    monkeypatch.setattr(snapshots, bound, {"MOST_RUNS": 3, "MOST_BYTES": 20}[bound])
    async with served(settings, identities) as client:
        runs = [await client.wait((await client.start("say it", thread_id="b")).run_id) for _ in range(5)]
        with client.calling():
            found = (await client.threads.GetThreadSnapshot(pb.GetThreadSnapshotRequest(thread_id="b"))).snapshot
            older = await client.runs.ListRuns(pb.ListRunsRequest(thread_id="b", page_token=found.runs_page_token))
        assert 0 < len(found.runs) < 5
        assert found.runs_page_token
        assert [*(one.run for one in found.runs), *older.runs] == runs[::-1]
