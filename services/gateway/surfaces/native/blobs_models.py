"""Types, bodies, answers and shapes of /v1/blobs."""

from collections.abc import Mapping
from typing import Annotated, Any

from bulkhead.orchestrator.v1 import blobs_pb2 as pb
from pydantic import Field

from services.gateway.surfaces.native.models import Body
from services.gateway.surfaces.native.outputs import Out
from services.gateway.surfaces.native.shapes import moment

MOST_LIFETIME_S = 7 * 86_400
MOST_NAME_CHARS = 255
ANY_TYPE = "application/octet-stream"
# What is taken, each with the endings of its files; the first is given to names that have none of them.
ENDINGS: Mapping[str, tuple[str, ...]] = {
    "image/png": ("png",),
    "image/jpeg": ("jpg", "jpeg"),
    "image/gif": ("gif",),
    "image/webp": ("webp",),
    "audio/mpeg": ("mp3",),
    "audio/wav": ("wav",),
    "audio/ogg": ("ogg", "oga", "opus"),
    "application/pdf": ("pdf",),
    "text/plain": ("txt",),
    "text/csv": ("csv",),
    "text/markdown": ("md",),
    "application/json": ("json",),
    "application/zip": ("zip",),
    ANY_TYPE: ("bin",),
}


class Uploaded(Body):
    """What a refusal of an upload may be about, beside its parameters; no body of a request."""

    content: str


class LinkCreate(Body):
    """For how long a link is to hold."""

    lifetime_s: Annotated[int, Field(ge=1, le=MOST_LIFETIME_S)] | None = Field(None, description="Absent: an hour.")


class BlobOut(Out):
    """A blob; without `expires_at` it lives as long as its thread."""

    blob_id: str
    mime_type: str
    size: int
    sha256: str
    name: str
    created_at: str | None
    thread_id: str | None
    expires_at: str | None


class LinkOut(Out):
    """A link: whoever has the `url`, which begins at the root of the gateway, has the content, without any credential."""

    url: str
    expires_at: str | None


def blob(message: pb.Blob) -> dict[str, Any]:
    """A blob."""
    return {
        "blob_id": message.blob_id,
        "mime_type": message.mime_type,
        "size": message.size,
        "sha256": message.sha256,
        "name": message.name,
        "created_at": moment(message, "created_at"),
        "thread_id": message.thread_id or None,
        "expires_at": moment(message, "expires_at"),
    }
