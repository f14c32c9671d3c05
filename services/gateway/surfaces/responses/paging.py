"""Lists of items as OpenAI's API has them: what a client may ask of them, and their pages."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import Query

from services.common.errors import InvalidInput
from services.gateway.surfaces.openai.fields import unsupported

LARGEST_PAGE = 100
After = Annotated[str, Query(max_length=512, description="The item behind which to go on.")]
Limit = Annotated[int, Query(ge=1, le=LARGEST_PAGE)]
Order = Annotated[Literal["asc", "desc"], Query()]
# The SDK writes lists so.
Include = Annotated[list[str] | None, Query(alias="include[]", description="Nothing of it is supported.")]


def refuse_include(include: list[str] | None) -> None:
    """Raises InvalidInput where more is asked for than items have here."""
    if include:
        raise unsupported("include")


def page(items: Sequence[dict[str, Any]], *, has_more: bool) -> dict[str, Any]:
    """A page of items as OpenAI's API has it."""
    first, last = (items[0]["id"], items[-1]["id"]) if items else (None, None)
    return {"object": "list", "data": list(items), "first_id": first, "last_id": last, "has_more": has_more}


def cut(items: Sequence[dict[str, Any]], *, after: str, limit: int) -> dict[str, Any]:
    """The page behind the item `after`. Raises InvalidInput where there is no such item."""
    start = 0
    if after:
        found = [position for position, item in enumerate(items, 1) if item["id"] == after]
        if not found:
            raise bad_cursor()
        start = found[0]
    return page(items[start : start + limit], has_more=len(items) > start + limit)


def bad_cursor() -> InvalidInput:
    """The refusal of an item that the list does not have."""
    return InvalidInput.field("after", "is not the id of an item of this list")
