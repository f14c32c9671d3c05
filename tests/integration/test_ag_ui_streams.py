"""AG-UI streams whose run waits, whose orchestrator goes away, and whose store loses a part of the log."""

import asyncio

import aiohttp
import pytest
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.gateway import fake_scripts, fakes
from services.gateway.fake_orchestrator import FakeOrchestrator
from services.orchestrator.testing.harness import served, settings_for, write_config
from tests.contract.ag_ui_client import Client, checked, parsed
from tests.integration.real_gateway import answered, gateway_before


def asked(run_id, text, **more):
    return {"threadId": "t", "runId": run_id, "messages": [{"id": f"u-{run_id}", "role": "user", "content": text}], **more}


async def told(http, body, agent="helper", **headers):
    """All events of one answer."""
    async with http.post(
        f"/ag-ui/{agent}", json=body, headers={name.replace("_", "-"): value for name, value in headers.items()}
    ) as response:
        assert response.status == 200, await response.text()
        return checked(parsed(await response.read()))


@pytest.fixture
async def real(identities, state_url, behind, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities), gateway_before(identities, state_url, settings.grpc_port) as people:
        yield await people.session(), behind


async def test_a_run_waits_behind_the_one_at_work_unless_it_says_otherwise(real):
    http, behind = real
    behind.models.gate.close()
    first = asyncio.ensure_future(told(http, asked("r-1", "say one two three four")))

    async def held():
        return behind.models.gate.waiting

    await testing.eventually_async(held, "the first is at work")
    rejecting = {"forwardedProps": {"bulkhead": {"onBusy": "reject"}}}
    error = await answered(http.post("/ag-ui/helper", json=asked("r-0", "say no", **rejecting)), 409)
    assert (error["code"], error["metadata"]["bulkhead"]["run_id"]) == ("THREAD_BUSY", "r-1")
    second = asyncio.ensure_future(told(http, asked("r-2", "say five"), idempotency_key="k"))

    async def queued():
        async with http.get("/v1/runs/r-2") as response:
            return response.status == 200

    await testing.eventually_async(queued, "the second waits")
    # Under its key it is still the same, and under the key of another request it is refused.
    again = asyncio.ensure_future(told(http, asked("r-2", "say five"), idempotency_key="k"))
    error = await answered(http.post("/ag-ui/helper", json=asked("r-3", "say six"), headers={"idempotency-key": "k"}), 422)
    assert error["code"] == "IDEMPOTENCY_MISMATCH"
    behind.models.gate.open()
    answers = [Client().take(await stream) for stream in (first, second, again)]
    assert [client.answer for client in answers] == ["one two three four", "five", "five"]
    assert ("bulkhead.run_queued", {"queue_position": 1}) in answers[1].customs


async def test_instructions_and_context_reach_the_model_for_this_run_alone(real):
    http, _ = real
    system = {"id": "s", "role": "system", "content": "Be\x00 kind."}
    context = [{"description": "page", "value": "/sums"}]
    for run_id, text in (("r-1", "say hello"), ("r-2", "echo context")):
        body = asked(run_id, text, context=context)
        heard = Client().take(await told(http, {**body, "messages": [system, *body["messages"]]})).answer
    assert heard.count("system:Be\x00 kind.") == 1
    assert heard.count("system:Context that the application gives:\n- page: /sums") == 1
    later = Client().take(await told(http, asked("r-3", "echo context"))).answer
    # What the run before it has said of them, and no more.
    assert ("say hello" in later, later.count("Be\x00 kind.")) == (True, heard.count("Be\x00 kind."))


async def test_who_comes_with_nothing_is_told_the_conversation_of_the_thread(real):
    http, _ = real
    for run_id, text in (("r-1", "say one"), ("r-2", "say two")):
        await told(http, asked(run_id, text))
    events = await told(http, {"threadId": "t", "runId": "r-2", "messages": []})
    client = Client().take(events)
    assert [message["content"] for message in client.messages] == ["say one", "one", "say two", "two"]
    # And with what it was told it comes again, and nothing is there twice.
    again = Client(client.messages).take(await told(http, {"threadId": "t", "runId": "r-2", "messages": client.messages}))
    assert again.messages == client.messages


async def test_a_gateway_that_drains_says_that_the_run_goes_on(identities, state_url):
    async with (
        fakes.gateway(identities, state_url, drain_grace_s=1) as front,
        aiohttp.ClientSession(front.url, headers=front.headers()) as http,
        http.post("/ag-ui/hang", json=asked("r-1", "hello")) as response,
    ):
        before = await response.content.readuntil(b"Working")
        front.stops[-1].set()
        events = parsed(before + await response.read())
        run = front.log.runs[("acme", "r-1")]
        assert (events[-1]["type"], events[-1]["code"]) == ("RUN_ERROR", "DRAINING")
        assert events[-1]["metadata"]["bulkhead"]["retryable"] is True
        assert not run.cancelled.is_set()


async def losing(run):
    """A replica of the store takes over, which has not heard of the last words."""
    own = run.run.run_id
    yield "step_started", {"step": 1}, False
    yield "message_delta", {"text": "One", "message_id": f"{own}/1"}, True
    yield "message_delta", {"text": " lost", "message_id": f"{own}/1"}, True
    yield "plan_updated", {"version": 1, "steps": []}, False
    await run.cancelled.wait()
    yield "log_gap", {"from_seq": run.run.first_seq + 4}, False
    yield "message_delta", {"text": " two", "message_id": f"{own}/1"}, True
    yield "message_completed", {"text": "One two", "message_id": f"{own}/1"}, False
    yield "run_finished", {"output_text": "One two", "finish_reason": "stop", "usage": {}}, False


@pytest.mark.parametrize("replicas", [1, 2])
async def test_what_the_store_lost_is_taken_back_and_an_orchestrator_that_goes_away_is_not_seen(
    identities, state_url, monkeypatch, replicas
):
    monkeypatch.setitem(fake_scripts.SCRIPTS, "losing", losing)
    # With two, each breaks its streams off after three events.
    cut = 3 if replicas == 2 else 0
    async with (
        fakes.gateway(identities, state_url, replicas=replicas, cut_after=cut) as front,
        aiohttp.ClientSession(front.url, headers=front.headers()) as http,
    ):
        async with http.post("/ag-ui/losing", json=asked("r-1", "hello")) as response:
            before = await response.content.readuntil(b"STATE_DELTA")
            log = front.log.events[("acme", "t")]
            assert [event.type for event in log[-2:]] == ["message_delta", "plan_updated"]
            for event in log[-2:]:
                # As if they had never been written.
                event.run_id = "r-lost"
            front.log.runs[("acme", "r-1")].cancelled.set()
            events = checked(parsed(before + await response.read()))
        kinds = [event["type"] for event in events]
        assert "STATE_SNAPSHOT" in kinds[2:]
        client = Client(asked("r-1", "hello")["messages"]).take(events)
        assert (client.answer, client.state["plan"], client.outcome) == ("One two", None, "success")
        late = Client(asked("r-1", "hello")["messages"]).take(await told(http, asked("r-1", "hello"), agent="losing"))
        assert (late.messages, late.state, late.outcome) == (client.messages, client.state, client.outcome)


async def test_who_comes_back_with_an_event_that_a_promotion_of_the_store_has_lost_is_told_how_the_run_stands(
    identities, state_url, monkeypatch
):
    whole = FakeOrchestrator._stream

    async def stream(replica, tenant, request):
        """As the real one behind the end of a log that has lost its last events: reading has it go on, above their numbers."""
        if request.after_seq > len(replica.log.events[(tenant, "t")]):
            lost = pb.Event(seq=1000, thread_id="t", type="log_gap", data_json=b'{"from_seq":9}')
            yield pb.StreamEventsResponse(batch=pb.EventBatch(events=[lost]))
            return
        async for response in whole(replica, tenant, request):
            yield response

    async with (
        fakes.gateway(identities, state_url) as front,
        aiohttp.ClientSession(front.url, headers=front.headers()) as http,
    ):
        client = Client(asked("r-1", "hello")["messages"]).take(await told(http, asked("r-1", "hello"), agent="assistant"))
        lost = str(front.log.threads[("acme", "t")].last_seq + 1)
        error = await answered(http.post("/ag-ui/assistant", json=asked("r-1", "hello"), headers={"last-event-id": lost}), 422)
        assert error["metadata"]["bulkhead"]["errors"][0]["field"] == "Last-Event-ID"
        monkeypatch.setattr(FakeOrchestrator, "_stream", stream)
        back = Client().take(await told(http, asked("r-1", "hello"), agent="assistant", last_event_id=lost))
        assert (back.messages, back.outcome) == (client.messages, "success")
