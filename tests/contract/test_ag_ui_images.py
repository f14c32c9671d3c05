"""Images in messages of AG-UI, built with the protocol's own types: kept once, given to the run, and shown again to who comes back."""

import base64

import pytest
from ag_ui.core import BinaryInputContent, DataSource, FileSource, ImageInputContent, TextInputContent, UrlSource, UserMessage
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.gateway.inputs import MOST_IMAGES
from services.gateway.surfaces.ag_ui.history import history
from tests.contract.ag_ui_client import Client, checked, parsed

pytestmark = pytest.mark.asyncio(loop_scope="module")
PIXEL = b"\x89PNG\r\n\x1a\n" + b"pixel"
BASE64 = base64.b64encode(PIXEL).decode()


def image(source):
    return ImageInputContent(type="image", source=source)


def data(value=BASE64, mime_type="image/png"):
    return image(DataSource(type="data", value=value, mime_type=mime_type))


def said(*parts, text="What is it?", message_id="u1"):
    content = [*parts, *([TextInputContent(type="text", text=text)] if text else [])]
    return UserMessage(id=message_id, role="user", content=content).model_dump(mode="json", by_alias=True, exclude_none=True)


def asked(run_id, *messages, thread=""):
    return {"threadId": thread or f"t-{run_id}", "runId": run_id, "messages": list(messages)}


async def events_of(http, body, **options):
    async with http.post("/ag-ui/assistant", json=body, **options) as response:
        assert response.status == 200, await response.text()
        return checked(parsed(await response.read()))


def given(served, run_id):
    """(type, content) of the images that a run was given, as they were kept for its user."""
    images = [one for message in served.log.runs["acme", run_id].request.input for one in message.images]
    blobs = [served.blobs.kept[one.blob_id] for one in images]
    assert all(blob.owner == ("acme", "ana") for blob in blobs)
    return [(blob.blob.mime_type, blob.content) for blob in blobs]


async def test_images_that_are_brought_along_are_kept_and_given_to_the_run(http, served):
    url = image(UrlSource(type="url", value=f"data:image/gif;base64,{BASE64}"))
    before = BinaryInputContent(type="binary", mime_type="image/webp", data=BASE64)
    message = said(data(), url)
    message["content"].insert(2, before.model_dump(mode="json", by_alias=True, exclude_none=True))
    events = await events_of(http, asked("r-img", message))
    assert given(served, "r-img") == [("image/png", PIXEL), ("image/gif", PIXEL), ("image/webp", PIXEL)]
    client = Client([message]).take(events)
    assert (client.answer, client.customs) == ("You said: What is it?", [])
    kept = len(served.blobs.kept)
    # Sent again it takes the run up, with its images as parts of this version of the protocol.
    again = Client().take(await events_of(http, asked("r-img", message)))
    assert len(served.blobs.kept) == kept
    assert [part["type"] for part in again.messages[0]["content"]] == ["image", "image", "image", "text"]
    assert again.messages[0]["content"][2]["source"] == {"type": "data", "value": BASE64, "mimeType": "image/webp"}


async def test_an_image_alone_is_a_question_and_one_that_was_kept_is_named(http, served):
    await events_of(http, asked("r-only", said(data(), text="")))
    (blob_id,) = (one.blob_id for message in served.log.runs["acme", "r-only"].request.input for one in message.images)
    kept = len(served.blobs.kept)
    await events_of(http, asked("r-again", said(image(FileSource(type="file", value=blob_id, provider="bulkhead")))))
    assert given(served, "r-again") == [("image/png", PIXEL)]
    assert len(served.blobs.kept) == kept


async def test_who_comes_without_a_conversation_is_shown_its_images():
    run = pb.Run(run_id="r1", thread_id="t", first_seq=1)
    asked = [
        pb.InputMessage(role="user", text="What is it?", images=[pb.InputImage(blob_id="b1")]),
        pb.InputMessage(role="user", text="Well?"),
    ]
    found = pb.ThreadSnapshot(runs=[pb.SnapshotRun(run=run, input=asked)])

    class Threads:
        async def GetThreadSnapshot(self, request):
            return pb.GetThreadSnapshotResponse(snapshot=found)

    picture = {"type": "image", "source": {"type": "file", "value": "b1", "provider": "bulkhead"}}
    assert await history(Threads(), run) == [
        {"id": "r1/input/0", "role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]},
        {"id": "r1/input/1", "role": "user", "content": "Well?"},
    ]


async def test_of_a_conversation_that_is_there_only_new_images_are_kept(http, served):
    first = said(data())
    await events_of(http, asked("r-first", first, thread="t-img"))
    kept = len(served.blobs.kept)
    more = [first, {"id": "a1", "role": "assistant", "content": "A pixel."}, said(text="Of what colour?", message_id="u2")]
    await events_of(http, asked("r-second", *more, thread="t-img"))
    assert (len(served.blobs.kept), given(served, "r-second")) == (kept, [])


async def test_a_conversation_that_was_held_elsewhere_brings_the_images_there_is_room_for(http, served):
    """What a thread that is new is given of old messages costs nobody the conversation."""
    old = [said(data(), data(), text=f"{number}?", message_id=f"o{number}") for number in range(MOST_IMAGES)]
    broken = [said(data(mime_type="image/tiff"), text="", message_id="o-tiff"), said(data("???"), message_id="o-none")]
    events = await events_of(http, asked("r-elsewhere", *old, *broken, said(data(), message_id="last")))
    told = served.log.runs["acme", "r-elsewhere"].request.input
    assert [(one.text, len(one.images)) for one in told] == [
        *((f"{number}?", 0) for number in range(4)), ("4?", 1), ("5?", 2), ("6?", 2), ("7?", 2), ("What is it?", 0), ("What is it?", 1),
    ]  # fmt: skip
    assert [(name, value["capability_lost"]) for name, value in Client().take(events).customs] == [("bulkhead.warning", "image")]


async def test_another_image_under_the_same_run_that_was_refused_is_another_image(http, served):
    for part in (data(), data(base64.b64encode(b"GIF89a..").decode(), "image/gif")):
        message = said(part)
        async with http.post("/ag-ui/nobody", json=asked("r-again-refused", message)) as response:
            assert response.status == 404, await response.text()


async def test_what_is_no_image_that_can_be_read_is_refused_by_its_place_or_told(http, served):
    before = len(served.blobs.kept)
    for parts, at in (
        ([data("not base64")], "0].source.value"), ([data(mime_type="image/tiff")], "0].source.mimeType"),
        ([image(UrlSource(type="url", value="data:text/plain,x"))], "0].source.value"),
        ([data()] * (MOST_IMAGES + 3), f"{MOST_IMAGES}].source.value"),
        ([image(FileSource(type="file", value="../x", provider="bulkhead"))], "0].source.value"),
    ):  # fmt: skip
        async with http.post("/ag-ui/assistant", json=asked("r-bad", said(*parts))) as response:
            error = (await response.json())["metadata"]["bulkhead"]["errors"][0]
            assert (response.status, error["field"]) == (400, f"messages[0].content[{at}")
    assert ("acme", "r-bad") not in served.log.runs
    assert len(served.blobs.kept) == before
    elsewhere = [
        image(UrlSource(type="url", value="https://example.com/x.png")),
        image(FileSource(type="file", value="f", provider="other")),
    ]
    client = Client().take(await events_of(http, asked("r-else", said(*elsewhere))))
    assert [(name, value["capability_lost"]) for name, value in client.customs] == [("bulkhead.warning", "image")]
    assert given(served, "r-else") == []


async def test_to_keep_an_image_takes_the_scope_of_blobs(http, served):
    headers = {"authorization": f"Bearer {await served.issue(scopes=('runs:read', 'runs:write'))}"}
    async with http.post("/ag-ui/assistant", json=asked("r-scope", said(data())), headers=headers) as response:
        assert (response.status, (await response.json())["code"]) == (403, "SCOPE_MISSING")
    await events_of(http, asked("r-scope", said()), headers=headers)
