"""The messages of a run's input as every surface reads them: texts, images, calls of the client's own tools and their results."""

import base64
import binascii
import hashlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from bulkhead.orchestrator.v1 import blobs_pb2
from bulkhead.orchestrator.v1 import orchestrator_pb2 as pb

from services.common.errors import InvalidInput
from services.common.rpc import context as call_context
from services.gateway.client_tools import NAME_PATTERN, Call
from services.gateway.edge.keyed import named_by
from services.gateway.refusals import unsupported

SCOPE = "blobs:write"
MOST_ID_CHARS = 128
IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
MOST_IMAGES = 8
MOST_IMAGE_BYTES = 2 * 1024 * 1024
DETAILS = ("low", "high", "auto")
CHUNK_BYTES = 1024 * 1024
BLOB_PATTERN = r"[A-Za-z0-9._:-]{1,128}"
_DATA_URL = re.compile(r"data:([A-Za-z0-9.+-]+/[A-Za-z0-9.+-]+)((?:;[A-Za-z0-9=._-]+)*);base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Image:
    """An image: a blob of the caller's, or its own content, which is made one. `where` is its place in the body."""

    where: str
    detail: str
    blob_id: str = ""
    mime_type: str = ""
    content: bytes = b""


@dataclass(frozen=True, slots=True)
class Said:
    """One message. `calls` are those that it asks a client for, `answers` the id of the call that it answers."""

    role: str
    text: str
    where: str = ""
    images: tuple[Image, ...] = ()
    calls: tuple[Call, ...] = ()
    answers: str = ""


class BlobCalls(Protocol):
    """The one call that is needed of the blobs."""

    PutBlob: Callable[..., Awaitable[blobs_pb2.PutBlobResponse]]


async def input_of(
    blobs: BlobCalls, said: Sequence[Said], key: str, thread_id: str = "", *, by_content: bool = False
) -> list[pb.InputMessage]:
    """The input of a run. What images bring with them is kept first, once for each `key`, and as long as the thread where one is named,
    which has to be there. With `by_content` the key is none that a client gave, and other images may come under it.

    Raises InvalidInput that names the image that is none, PermissionDenied without the scope to keep one, and what refuses to keep it.
    """
    found, number = [], 0
    for one in said:
        message = message_of(one)
        for image in one.images:
            name = hashlib.sha256(f"{image.mime_type}\n".encode() + image.content).hexdigest() if by_content else str(number)
            blob_id = image.blob_id or await _keep(blobs, image, named_by(f"image-{name}", key) if key else "", thread_id)
            message.images.add(blob_id=blob_id, detail=image.detail)
            number += 1
        found.append(message)
    return found


def message_of(one: Said) -> pb.InputMessage:
    """A message as a run is given it, without its images."""
    calls = [pb.ClientToolCall(tool_call_id=c.tool_call_id, name=c.name, arguments_json=c.arguments.encode()) for c in one.calls]
    return pb.InputMessage(role=one.role, text=one.text, tool_calls=calls, tool_call_id=one.answers)


def as_the_client_says(error: InvalidInput, names: Mapping[str, str], said: Sequence[Said] = ()) -> None:
    """Gives the fields that a service refuses, and the beginning of the message, the names that a surface has for them.

    `names` are patterns of a service's names, and what stands for them; what a message of the input is called, and an image in it, is what
    was `said`.
    """
    told = []
    for one in error.violations:
        field = _named(one.field, names, said)
        if error.message.startswith(f"{one.field}: "):
            error.message = f"{field}: {one.description}"
        told.append(replace(one, field=field))
    error.violations = tuple(told)


def _named(field: str, names: Mapping[str, str], said: Sequence[Said]) -> str:
    message = re.match(r"input\[(\d{1,4})\]", field)
    if message and int(message.group(1)) < len(said):
        one, rest = said[int(message.group(1))], field[message.end() :]
        image = re.match(r"\.images\[(\d{1,2})\]", rest)
        if image and int(image.group(1)) < len(one.images):
            return one.images[int(image.group(1))].where
        return one.where + names.get(rest, rest)
    for pattern, name in names.items():
        if found := re.match(pattern, field):
            return found.expand(name) + field[found.end() :]
    return field


async def _keep(blobs: BlobCalls, image: Image, key: str, thread_id: str) -> str:
    async def pieces() -> AsyncIterator[blobs_pb2.PutBlobRequest]:
        yield blobs_pb2.PutBlobRequest(start=blobs_pb2.BlobStart(mime_type=image.mime_type, thread_id=thread_id, idempotency_key=key))
        for at in range(0, len(image.content), CHUNK_BYTES):
            yield blobs_pb2.PutBlobRequest(chunk=image.content[at : at + CHUNK_BYTES])

    # Asked for here, as routes of blobs do: the surface's own route needs no more than the scopes of runs.
    call_context.principal().require(SCOPE)
    try:
        return (await blobs.PutBlob(pieces())).blob.blob_id
    except InvalidInput as error:
        # Its own names for what is wrong are those of a request that the client never made.
        why = error.violations[0].description if error.violations else error.message
        raise InvalidInput.field(image.where, why) from error


def image_of_url(url: Any, where: str, detail: Any) -> Image:
    """An image that a data: URL brings. Raises InvalidInput; addresses are refused by name, as nothing is fetched for a client."""
    if not isinstance(url, str) or not url:
        raise InvalidInput.field(where, "must be a data: URL")
    if re.match(r"https?:", url, re.IGNORECASE):
        raise unsupported(where, "an image is not fetched from an address; send it as a data: URL")
    begins = _DATA_URL.match(url)
    if begins is None:
        raise InvalidInput.field(where, "must be a data: URL of an image in base64")
    return image_of_base64(begins.group(1), url[begins.end() :], where, detail)


def image_of_base64(mime_type: Any, told: Any, where: str, detail: Any, type_where: str = "") -> Image:
    """An image that is brought along as what it is `told`, in base64; its type stands at `type_where`. Raises InvalidInput."""
    # A name that no registry has, and many clients.
    mime_type = str(mime_type).lower().replace("image/jpg", "image/jpeg")
    if mime_type not in IMAGE_TYPES:
        raise unsupported(type_where or where, f"must be one of {', '.join(IMAGE_TYPES)}")
    if not isinstance(told, str):
        raise InvalidInput.field(where, "must be a string")
    if len(told) > (MOST_IMAGE_BYTES + 2) // 3 * 4:
        raise InvalidInput.field(where, f"an image must be at most {MOST_IMAGE_BYTES} bytes")
    try:
        content = base64.b64decode(told, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput.field(where, "is not base64") from None
    if not 0 < len(content) <= MOST_IMAGE_BYTES:
        raise InvalidInput.field(where, f"an image must be 1 to {MOST_IMAGE_BYTES} bytes")
    return Image(where, _detail(detail, where), mime_type=mime_type, content=content)


def image_of_blob(blob_id: Any, where: str, detail: Any) -> Image:
    """An image that was kept before. Raises InvalidInput."""
    if not isinstance(blob_id, str) or not re.fullmatch(BLOB_PATTERN, blob_id):
        raise InvalidInput.field(where, "must be the id of a blob")
    return Image(where, _detail(detail, where), blob_id=blob_id)


def _detail(value: Any, where: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or value not in DETAILS:
        raise unsupported(f"{where.rpartition('.')[0] or where}.detail", f"must be one of {', '.join(DETAILS)}")
    return value


def check_images(said: Sequence[Said]) -> None:
    """Raises InvalidInput for more images than one input may have."""
    images = [image for one in said for image in one.images]
    if len(images) > MOST_IMAGES:
        raise InvalidInput.field(images[MOST_IMAGES].where, f"an input must have at most {MOST_IMAGES} images")


def checked_call(tool_call_id: Any, name: Any, arguments: Any, where: str, names: Sequence[str], wrong: type[InvalidInput]) -> Call:
    """A call as a client sends it back; `names` are how its three fields are called there. Raises `wrong`."""
    checked_id(tool_call_id, f"{where}.{names[0]}", wrong)
    if not isinstance(name, str) or not re.fullmatch(NAME_PATTERN, name):
        raise wrong.field(f"{where}.{names[1]}", f"must match {NAME_PATTERN}")
    if not isinstance(arguments, str):
        raise wrong.field(f"{where}.{names[2]}", "must be a string")
    return Call(tool_call_id, name, arguments)


def checked_id(tool_call_id: Any, where: str, wrong: type[InvalidInput] = InvalidInput) -> str:
    """The id of a call. Raises `wrong`."""
    if not isinstance(tool_call_id, str) or not 0 < len(tool_call_id) <= MOST_ID_CHARS:
        raise wrong.field(where, f"must be a string of 1 to {MOST_ID_CHARS} characters")
    return tool_call_id


def start_of_new(said: Sequence[Said]) -> int:
    """Where in a conversation begins what is new on a thread that has the rest: the results of calls at its end, and what the user says
    behind them."""
    start = len(said) - bool(said and said[-1].role == "user")
    while start and said[start - 1].role == "tool":
        start -= 1
    return start


def check_answers(said: Sequence[Said], id_name: str, *, whole: bool, wrong: type[InvalidInput] = InvalidInput) -> None:
    """Holds calls and results of an input against each other. `whole`: nothing was said before it, so each result has its call there.

    Raises `wrong` for an id that stands twice, a result of no call, and a call without its result.
    """
    known: set[str] = set()
    answered: set[str] = set()
    waiting: dict[str, str] = {}
    for one in said:
        if one.role == "tool":
            where = f"{one.where}.{id_name}"
            if one.answers in answered:
                raise wrong.field(where, "is answered twice")
            if one.answers not in waiting and (whole or known):
                raise wrong.field(where, "is the id of no call before it that waits for its result")
            answered.add(one.answers)
            waiting.pop(one.answers, None)
            continue
        _refuse_waiting(waiting, wrong)
        for call in one.calls:
            if call.tool_call_id in known:
                raise wrong.field(one.where, "has a call whose id is that of another call")
            known.add(call.tool_call_id)
            waiting[call.tool_call_id] = one.where
    _refuse_waiting(waiting, wrong)


def _refuse_waiting(waiting: Mapping[str, str], wrong: type[InvalidInput]) -> None:
    if waiting:
        raise wrong.field(next(iter(waiting.values())), "asks for calls that have no result behind it")
