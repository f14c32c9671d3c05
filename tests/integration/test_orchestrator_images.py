"""Images of an input: whose they must be and what, and how they come before the model of a run."""

import base64

import orjson
import pytest
from bulkhead.orchestrator.v1 import blobs_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common import testing
from services.common.errors import FailedPrecondition, InvalidInput
from services.orchestrator.testing.harness import data_of, served, settings_for, write_config
from tests.integration.blob_client import Blobs, png, sealing_keys

ANA, BOB = testing.principal_of(user="ana"), testing.principal_of(user="bob")


@pytest.fixture
async def client(identities, behind, state_url, tmp_path):
    fields = {"segments_dir": tmp_path / "segments", "envelope_keys_file": sealing_keys(tmp_path)}
    settings = settings_for(identities, behind, state_url, write_config(tmp_path / "config"), **fields)
    async with (
        served(settings, identities, ANA) as made,
        testing.dialer("gateway", {"orchestrator": f"127.0.0.1:{settings.grpc_port}"}) as d,
    ):
        made.ana, made.bob = Blobs(d, identities, ANA), Blobs(d, identities, BOB)
        yield made


def seen(*blob_ids, text="say I see", detail=""):
    return pb.InputMessage(role="user", text=text, images=[pb.InputImage(blob_id=blob_id, detail=detail) for blob_id in blob_ids])


async def made(client, *said, agent="helper", **fields):
    with client.calling():
        return (await client.runs.CreateRun(pb.CreateRunRequest(agent=agent, input=said, **fields))).run


async def test_an_image_of_the_callers_is_seen_by_the_model_and_the_next_turns_are_told_that_there_was_one(client, behind):
    picture = png()
    blob = await client.ana.put(picture, name="cat.png")
    run = await client.wait((await made(client, seen(blob.blob_id, detail="high"), thread_id="t")).run_id)
    assert run.output_text == "I see"
    (told,) = [m for m in behind.models.calls[-1].request.messages if m.role == "user"]
    url = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    assert orjson.loads(told.content_json) == [
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}}, {"type": "text", "text": "say I see"},
    ]  # fmt: skip
    log = await client.log(run.run_id)
    assert data_of(log[0])["input"] == [{"role": "user", "text": "say I see", "images": [{"blob_id": blob.blob_id, "detail": "high"}]}]
    assert not any(b"base64" in event.data_json for event in log)
    await testing.eventually_async(lambda: behind.sessions.turns["acme", "t"], "the turn is in memory")
    (turn,) = behind.sessions.turns["acme", "t"].values()
    assert turn.user_text == "say I see\n[The user sent an image here.]"
    with client.calling():
        snapshot = (await client.threads.GetThreadSnapshot(pb.GetThreadSnapshotRequest(thread_id="t"))).snapshot
    assert [image.blob_id for image in snapshot.runs[0].input[0].images] == [blob.blob_id]


async def test_an_image_alone_is_enough(client, behind):
    blob = await client.ana.put(png())
    behind.models.reply = lambda request: type(request.messages[0])(role="assistant", text="a picture")
    run = await client.wait((await made(client, seen(blob.blob_id, text=""))).run_id)
    assert run.output_text == "a picture"


async def test_an_image_that_is_deleted_meanwhile_is_told_of(client, behind):
    blob = await client.ana.put(png())
    behind.models.hold_after = 0
    behind.models.gate.close()
    first = await made(client, seen(blob.blob_id), thread_id="t")
    second = await made(client, seen(blob.blob_id), thread_id="t")
    with client.ana.calling():
        await client.ana.stub.DeleteBlob(blobs_pb2.DeleteBlobRequest(blob_id=blob.blob_id))
    behind.models.gate.open()
    await client.wait(first.run_id)
    await client.wait(second.run_id)
    parts = orjson.loads([m for m in behind.models.calls[-1].request.messages if m.role == "user"][-1].content_json)
    assert [part["type"] for part in parts] == ["text", "text"]
    codes = [data_of(event)["code"] for event in await client.told(second.run_id, "warning")]
    assert codes == ["image_gone"]


async def test_what_is_no_image_of_the_callers_is_refused_with_its_field(client, monkeypatch):
    own, others = await client.ana.put(png()), await client.bob.put(png())
    text = await client.ana.put(b"hello", "text/plain")
    large = await client.ana.put(png(more=b"x" * 2 * 1024 * 1024))
    for said, field in (
        (seen("blob_" + "0" * 32), "input[0].images[0].blob_id"),
        (seen(own.blob_id, others.blob_id), "input[0].images[1].blob_id"),
        (seen(text.blob_id), "input[0].images[0].blob_id"),
        (seen(large.blob_id), "input[0].images[0].blob_id"),
        (seen(""), "input[0].images[0].blob_id"),
        (seen(*[own.blob_id] * 9), "input[0].images"),
        (seen(*[own.blob_id] * 8), "input"),
        (seen(own.blob_id, detail="very"), "input[0].images[0].detail"),
        (pb.InputMessage(role="system", text="x", images=[pb.InputImage(blob_id=own.blob_id)]), "input[0].images"),
    ):
        with pytest.raises(InvalidInput) as caught:
            more = [said] * 8 if field == "input" else []
            await made(client, said, *more, pb.InputMessage(role="user", text="say hi"), run_id="r")
        assert field in [violation.field for violation in caught.value.violations]
    with pytest.raises(FailedPrecondition) as caught:
        await made(client, seen(own.blob_id), agent="flow")
    assert caught.value.reason == "UNSUPPORTED"
    with pytest.raises(InvalidInput) as caught:
        await made(client, seen(own.blob_id), thread_id="t", on_busy=pb.ON_BUSY_STEER)
    assert [violation.field for violation in caught.value.violations] == ["on_busy"]


async def test_where_nothing_keeps_blobs_images_are_refused(identities, behind, state_url, tmp_path):
    async with served(settings_for(identities, behind, state_url, write_config(tmp_path / "config")), identities) as client:
        with pytest.raises(InvalidInput) as caught:
            await made(client, seen("blob_" + "0" * 32))
        assert [violation.field for violation in caught.value.violations] == ["input[0].images[0].blob_id"]
