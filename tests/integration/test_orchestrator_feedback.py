"""RecordFeedback: once a key, also after the end, joined to agent version and model, told in the thread, and gone with its user."""

import pytest
from bulkhead.orchestrator.v1 import admin_pb2, admin_pb2_grpc
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.common import testing
from services.common.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, PermissionDenied
from services.common.valkey import connect
from services.orchestrator import feedback
from services.orchestrator.adapters.store import Store
from services.orchestrator.records import RunRef
from services.orchestrator.testing.harness import data_of, served, settings_for, types, write_config


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"))
    async with served(settings, identities) as made:
        made.address = f"127.0.0.1:{settings.grpc_port}"
        yield made


async def judge(client, run_id, key="", principal=None, **fields):
    with testing.calling(client.identities, principal):
        return await client.runs.RecordFeedback(pb.RecordFeedbackRequest(run_id=run_id, idempotency_key=key, **fields))


async def test_feedback_is_an_event_of_the_thread_once_a_key_and_joined_to_what_answered(client, state_url):
    run = await client.wait((await client.start("say hello", thread_id="t")).run_id)
    first = await judge(client, run.run_id, "k", rating=2, thumbs=pb.THUMBS_DOWN, text="wrong", corrected_answer="hullo")
    again = await judge(client, run.run_id, "k", rating=2, thumbs=pb.THUMBS_DOWN, text="wrong", corrected_answer="hullo")
    assert again == first
    with pytest.raises(IdempotencyMismatch):
        await judge(client, run.run_id, "k", rating=5)
    await judge(client, run.run_id, signal=pb.FEEDBACK_SIGNAL_DWELL, dwell=Duration(seconds=3))
    log = await client.log(thread_id="t")
    assert types(log)[-2:] == ["feedback", "feedback"]
    assert log[-2].seq == first.seq
    told = data_of(log[-2])
    assert {name: told[name] for name in ("run_id", "agent", "agent_version", "model", "rating", "thumbs", "text", "corrected_answer")} == {
        "run_id": run.run_id, "agent": "quick", "agent_version": "1", "model": "m", "rating": 2, "thumbs": "down", "text": "wrong",
        "corrected_answer": "hullo",
    }  # fmt: skip
    assert data_of(log[-1])["dwell_ms"] == 3000
    # A watcher of the run ends with its last event all the same, whatever came behind it.
    followed = []
    await client.follow(run.run_id, followed)
    assert types(followed)[-1] == "run_finished"
    store = connect(state_url)
    kept = await Store(store, "reader").feedback(RunRef("acme", "t", run.run_id))
    assert [(entry.get("rating"), entry.get("signal")) for entry in kept] == [(2, None), (None, "dwell")]
    assert len(await store.zrange("tn:{acme}:feedback", 0, -1)) == 2
    await store.aclose()
    # The thread goes on behind it.
    assert (await client.wait((await client.start("say more", thread_id="t")).run_id)).output_text == "more"


async def test_feedback_on_a_run_at_work_stands_within_its_log(client, behind):
    behind.models.gate.close()
    run = await client.start("say one two three", thread_id="t")
    await testing.eventually_async(lambda: behind.models.gate.waiting, "at work")
    await judge(client, run.run_id, signal=pb.FEEDBACK_SIGNAL_ABANDON)
    behind.models.gate.open()
    assert (await client.wait(run.run_id)).output_text == "one two three"
    log = types(await client.log(thread_id="t"))
    assert log.index("feedback") < log.index("run_finished")
    assert "feedback" not in types(await client.log(run.run_id))


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"rating": 6}, {"rating": -1}, {"text": "x" * (8 * 1024 + 1)}, {"corrected_answer": "x" * (32 * 1024 + 1)},
        {"thumbs": pb.THUMBS_UP, "dwell": Duration(seconds=1)}, {"signal": pb.FEEDBACK_SIGNAL_DWELL, "dwell": Duration(seconds=172_800)},
    ],
)  # fmt: skip
async def test_feedback_that_says_nothing_or_too_much_is_refused(client, fields):
    run = await client.wait((await client.start("say hello")).run_id)
    with pytest.raises(InvalidInput):
        await judge(client, run.run_id, **fields)


async def test_feedback_is_for_runs_of_ones_own_and_bounded(client, monkeypatch):
    run = await client.wait((await client.start("say hello")).run_id)
    with pytest.raises(NotFound):
        await judge(client, run.run_id, principal=testing.principal_of(user="bob"), rating=1)
    with pytest.raises(NotFound):
        await judge(client, "none", rating=1)
    with pytest.raises(PermissionDenied):
        await judge(client, run.run_id, principal=testing.principal_of(scopes=["runs:read"]), rating=1)
    monkeypatch.setattr(feedback, "MOST_OF_RUN", 2)
    for _ in range(2):
        await judge(client, run.run_id, rating=5)
    with pytest.raises(Conflict) as full:
        await judge(client, run.run_id, rating=5)
    assert full.value.reason == "FEEDBACK_FULL"


async def test_an_admin_lists_the_feedback_of_the_tenant_by_run_agent_and_time_page_by_page(client, state_url, monkeypatch):
    admin = testing.principal_of(user="root", scopes=["admin"])
    async with testing.dialer("gateway", {"orchestrator": client.address}) as dialer:
        stub = admin_pb2_grpc.AdminServiceStub(dialer.channel("orchestrator"))

        async def listed(principal=admin, **fields):
            with testing.calling(client.identities, principal):
                return await stub.ListFeedback(admin_pb2.ListFeedbackRequest(**fields))

        runs = [await client.wait((await client.start("say hello", agent=agent)).run_id) for agent in ("quick", "asking")]
        told = [(await judge(client, runs[n % 2].run_id, "", rating=n % 5 + 1, text=f"word {n}")).feedback_id for n in range(7)]
        dwelt = Duration(seconds=3)
        told.append((await judge(client, runs[0].run_id, signal=pb.FEEDBACK_SIGNAL_DWELL, dwell=dwelt)).feedback_id)
        # Recorded in one millisecond, as far as the list can tell.
        store = connect(state_url)
        stamps = {member: 1_700_000_000_000 + 1000 * (n // 4) for n, member in enumerate(await store.zrange("tn:{acme}:feedback", 0, -1))}
        await store.zadd("tn:{acme}:feedback", stamps)
        newest = (await listed()).feedback
        assert {entry.feedback_id for entry in newest} == set(told)
        assert [entry.recorded_at.seconds for entry in newest] == sorted((entry.recorded_at.seconds for entry in newest), reverse=True)
        monkeypatch.setattr(feedback, "AT_ONCE", 2)
        for fields in ({}, {"agent": "quick"}, {"run_id": runs[1].run_id}, {"since": newest[0].recorded_at}):
            whole, token, pages = (await listed(**fields)).feedback, "", []
            while len(pages) < 20:
                page = await listed(page_size=1, page_token=token, **fields)
                pages += page.feedback
                if not (token := page.next_page_token):
                    break
            assert pages == list(whole)
        assert [entry.text for entry in newest if entry.run_id == runs[1].run_id] == [
            entry.text for entry in (await listed(run_id=runs[1].run_id, agent="asking")).feedback
        ]
        assert not (await listed(run_id=runs[1].run_id, agent="quick")).feedback
        assert len((await listed(since=newest[0].recorded_at)).feedback) == 4
        (dwell,) = [entry for entry in newest if entry.signal == pb.FEEDBACK_SIGNAL_DWELL]
        assert (dwell.dwell, dwell.agent, dwell.model, dwell.thread_id) == (dwelt, "quick", "m", runs[0].thread_id)
        # A page that looks at no more entries than it may is short, and tells where to go on.
        monkeypatch.setattr(feedback, "MOST_LOOKED_AT", 2)
        short = await listed(agent="none")
        assert not short.feedback
        assert short.next_page_token
        # Of a run that is gone there is none.
        await store.delete(*(key for key in await store.keys(f"t:{{acme/{runs[0].thread_id}}}*")))
        monkeypatch.setattr(feedback, "MOST_LOOKED_AT", 5_000)
        assert {entry.run_id for entry in (await listed()).feedback} == {runs[1].run_id}
        await store.aclose()
        assert not (await listed(testing.principal_of(tenant="zeta", scopes=["admin"]))).feedback
        with pytest.raises(NotFound):
            await listed(testing.principal_of(tenant="zeta", scopes=["admin"]), run_id=runs[1].run_id)
        with pytest.raises(PermissionDenied):
            await listed(testing.principal_of(scopes=["runs:read"]))
        for fields in ({"page_size": -1}, {"page_token": "x"}, {"run_id": "no/id"}):
            with pytest.raises(InvalidInput):
                await listed(**fields)
