"""RecordFeedback: once a key, also after the end, joined to agent version and model, told in the thread, and gone with its user."""

import pytest
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
