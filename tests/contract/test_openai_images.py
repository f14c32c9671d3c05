"""The openai SDK, unmodified, with images: in messages of chat completions and in the input of responses."""

import base64

import openai
import orjson
import pytest

from services.gateway.inputs import MOST_IMAGE_BYTES, MOST_IMAGES

pytestmark = pytest.mark.asyncio(loop_scope="module")
PIXEL = b"\x89PNG\r\n\x1a\n" + b"pixel"


def url(content=PIXEL, mime_type="image/png"):
    return f"data:{mime_type};base64,{base64.b64encode(content).decode()}"


def chat_image(value, **more):
    return {"type": "image_url", "image_url": {"url": value, **more}}


def asked(*parts):
    return {"model": "assistant", "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": "What is it?"}]}]}


def response_asked(*parts):
    return {"model": "assistant", "input": [{"role": "user", "content": [*parts, {"type": "input_text", "text": "What is it?"}]}]}


def kept(served):
    """(type, content, detail) of the images of the newest run, as they were kept for its user."""
    images = [image for message in served.log.newest().request.input for image in message.images]
    blobs = [served.blobs.kept[image.blob_id] for image in images]
    assert all(blob.owner == ("acme", "ana") for blob in blobs)
    return [(blob.blob.mime_type, blob.content, image.detail) for blob, image in zip(blobs, images, strict=True)]


async def test_images_of_a_message_are_kept_and_named_in_the_input(sdk, served):
    answer = await sdk.chat.completions.create(
        **asked(chat_image(url(), detail="low"), chat_image(url(b"GIF89a..", "image/gif")), chat_image(url(b"\xff\xd8", "image/jpg")))
    )
    assert answer.choices[0].message.content == "You said: What is it?"
    assert kept(served) == [("image/png", PIXEL, "low"), ("image/gif", b"GIF89a..", ""), ("image/jpeg", b"\xff\xd8", "")]
    only = await sdk.chat.completions.create(model="assistant", messages=[{"role": "user", "content": [chat_image(url())]}])
    assert only.choices[0].finish_reason == "stop"


async def test_of_a_conversation_on_a_named_thread_only_new_images_are_kept(sdk, served):
    before = len(served.blobs.kept)
    said = asked(chat_image(url()))["messages"]
    said += [{"role": "assistant", "content": "A pixel."}, {"role": "user", "content": "Of what colour?"}]
    await sdk.chat.completions.create(model="assistant", messages=said, metadata={"thread_id": "images"})
    assert len(served.blobs.kept) == before


async def test_images_of_a_response_are_kept_and_listed(sdk, served):
    uploaded = await sdk.responses.create(**response_asked({"type": "input_image", "image_url": url(), "detail": "high"}))
    assert kept(served) == [("image/png", PIXEL, "high")]
    (item,) = (await sdk.responses.input_items.list(uploaded.id)).data
    image, text = item.content
    assert (image.type, image.detail, text.text) == ("input_image", "high", "What is it?")
    # What is listed may be asked about again: the image is named by its blob.
    again = await sdk.responses.create(**response_asked({"type": "input_image", "file_id": image.file_id, "detail": "auto"}))
    assert served.log.newest().request.input[0].images[0].blob_id == image.file_id
    assert again.status == "completed"
    assert (await sdk.responses.input_items.list(again.id)).data[0].content[0].file_id == image.file_id


async def test_an_image_goes_with_the_conversation_that_is_there(sdk, served):
    image = {"type": "input_image", "image_url": url()}

    def thread_of():
        return served.blobs.kept[served.log.newest().request.input[0].images[0].blob_id].blob.thread_id

    first = await sdk.responses.create(**response_asked(image))
    assert thread_of() == ""
    await sdk.responses.create(**response_asked(image), previous_response_id=first.id)
    assert f"conv_{thread_of()}" == first.conversation.id
    made = await sdk.conversations.create()
    await sdk.responses.create(**response_asked(image), conversation=made.id)
    assert f"conv_{thread_of()}" == made.id


@pytest.mark.parametrize("route", ["chat", "responses"])
async def test_the_same_key_keeps_an_image_once(sdk, served, route):
    before = len(served.blobs.kept)
    key = {"Idempotency-Key": f"image-{route}"}
    ids = set()
    for _ in range(2):
        if route == "chat":
            ids.add((await sdk.chat.completions.create(**asked(chat_image(url()), chat_image(url())), extra_headers=key)).id)
        else:
            image = {"type": "input_image", "image_url": url()}
            ids.add((await sdk.responses.create(**response_asked(image, image), extra_headers=key)).id)
    assert (len(ids), len(served.blobs.kept) - before) == (1, 2)


TOO_LARGE = url(b"\x89PNG" + b"x" * MOST_IMAGE_BYTES)


@pytest.mark.parametrize(
    ("value", "detail", "code", "says"),
    [
        ("https://example.com/x.png", None, "unsupported_parameter", "not fetched"),
        ("HTTP://example.com/x.png", None, "unsupported_parameter", "not fetched"),
        ("file:///etc/passwd", None, "invalid_input", "data: URL"),
        ("data:image/png,plain", None, "invalid_input", "base64"),
        ("data:image/png;base64,***", None, "invalid_input", "base64"),
        ("data:image/png;base64,", None, "invalid_input", "1 to"),
        (url(b"<svg/>", "image/svg+xml"), None, "unsupported_parameter", "image/webp"),
        (url(b"%PDF", "application/pdf"), None, "unsupported_parameter", "image/png"),
        (TOO_LARGE, None, "invalid_input", f"{MOST_IMAGE_BYTES} bytes"),
        (url(b"no image"), None, "invalid_input", "is no image/png"),
        (url(), "original", "unsupported_parameter", "low, high, auto"),
        (5, None, "invalid_input", "data: URL"),
        ("", None, "invalid_input", "data: URL"),
    ],
    ids=["https", "http", "file", "plain", "letters", "empty", "svg", "pdf", "large", "none", "detail", "number", "nothing"],
)
async def test_what_is_no_image_is_named_and_not_repeated(sdk, served, value, detail, code, says):
    before = len(served.log.runs)
    more = {"detail": detail} if detail else {}
    places = ("messages[0].content[0].image_url.url", "input[0].content[0].image_url")
    if detail:
        places = ("messages[0].content[0].image_url.detail", "input[0].content[0].detail")
    for call, param in (
        (sdk.chat.completions.create(**asked(chat_image(value, **more))), places[0]),
        (sdk.responses.create(**response_asked({"type": "input_image", "image_url": value, **more})), places[1]),
    ):
        with pytest.raises(openai.BadRequestError) as caught:
            await call
        assert (caught.value.param, caught.value.code) == (param, code)
        assert says in caught.value.body["message"]
        assert "example.com" not in orjson.dumps(caught.value.body).decode()
    assert len(served.log.runs) == before


async def test_more_images_than_one_input_may_have(sdk, served):
    image = chat_image(url())
    await sdk.chat.completions.create(**asked(*[image] * MOST_IMAGES))
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.chat.completions.create(**asked(*[image] * (MOST_IMAGES + 1)))
    assert caught.value.param == f"messages[0].content[{MOST_IMAGES}].image_url.url"
    with pytest.raises(openai.BadRequestError) as caught:
        await sdk.responses.create(**response_asked(*[{"type": "input_image", "image_url": url()}] * (MOST_IMAGES + 1)))
    assert caught.value.param == f"input[0].content[{MOST_IMAGES}].image_url"


async def test_images_are_the_users_alone_and_need_their_scope(sdk, served):
    limited = sdk.with_options(api_key=await served.issue(scopes=("runs:read", "runs:write")))
    with pytest.raises(openai.PermissionDeniedError) as caught:
        await limited.chat.completions.create(**asked(chat_image(url())))
    assert "blobs:write" in str(caught.value)
    assert (await limited.chat.completions.create(**asked())).choices[0].finish_reason == "stop"


async def test_where_nothing_can_be_kept_no_run_is_made(sdk, served):
    before = len(served.log.runs)
    served.blobs.away = True
    try:
        with pytest.raises(openai.InternalServerError) as caught:
            await sdk.chat.completions.create(**asked(chat_image(url())))
        assert caught.value.status_code == 503
        assert caught.value.response.headers["x-should-retry"] == "true"
    finally:
        served.blobs.away = False
    assert len(served.log.runs) == before
