"""Images in the messages of a RunAgentInput: brought along in base64 or as a data: URL, or kept here before."""

from collections.abc import Mapping
from typing import Any

from services.gateway.inputs import Image, image_of_base64, image_of_blob, image_of_url

# The provider of file sources whose value is the id of a blob.
PROVIDER = "bulkhead"


def is_readable(part: Mapping[str, Any]) -> bool:
    """Whether a part is an image that a run can be given: nothing is fetched from an address, and of elsewhere no file is known."""
    if part.get("type") == "binary":
        # As before the protocol's first version: the content, or where it is, stands in the part itself.
        return str(part.get("mimeType", "")).startswith("image/") and (part.get("data") is not None or _is_data(part.get("url")))
    source = part.get("source")
    if part.get("type") != "image" or not isinstance(source, dict):
        return False
    match source.get("type"):
        case "data":
            return True
        case "url":
            return _is_data(source.get("value"))
        case "file":
            return source.get("provider") == PROVIDER
    return False


def image_of(part: Mapping[str, Any], where: str) -> Image:
    """The image of a readable part. Raises InvalidInput."""
    if part["type"] == "binary":
        if part.get("data") is not None:
            return image_of_base64(part["mimeType"], part["data"], f"{where}.data", None, f"{where}.mimeType")
        return image_of_url(part["url"], f"{where}.url", None)
    source, value = part["source"], f"{where}.source.value"
    if source["type"] == "data":
        return image_of_base64(source.get("mimeType"), source.get("value"), value, None, f"{where}.source.mimeType")
    return image_of_blob(source.get("value"), value, None) if source["type"] == "file" else image_of_url(source["value"], value, None)


def in_this_version(part: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """A part as this version of the protocol has it; None for one of before that is no readable image."""
    if part.get("type") != "binary":
        return part
    if not is_readable(part):
        return None
    kind = "data" if part.get("data") is not None else "url"
    return {"type": "image", "source": {"type": kind, "value": part[kind], "mimeType": part["mimeType"]}}


def part_of(blob_id: str) -> dict[str, Any]:
    """An image that was kept, as a part of a message."""
    return {"type": "image", "source": {"type": "file", "value": blob_id, "provider": PROVIDER}}


def _is_data(url: Any) -> bool:
    return isinstance(url, str) and url[:5].lower() == "data:"
