"""The tool `search_documents`."""

from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from services.tool_executor.ports import Documents, FoundPassage
from services.tool_executor.tools import ToolCall, tool

MAX_PASSAGES = 20


class FoundText(TypedDict):
    """One passage; `citation` is the id to cite it by."""

    citation: str
    title: str
    heading: str
    text: str


class Found(TypedDict):
    """Passages, the best first."""

    passages: list[FoundText]


class SearchDocuments:
    """Searches through a port."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents

    @tool(version="1.0.0", read_only=True, open_world=False, scopes=["documents:read"])
    async def search_documents(
        self,
        call: ToolCall,
        query: Annotated[str, Field(min_length=1, max_length=2000)],
        limit: Annotated[int, Field(ge=1, le=MAX_PASSAGES)] = 5,
    ) -> Found:
        """Searches the documents that were ingested and returns the passages that fit best, each with an id to cite it by.

        Args:
            query: What to look for, as a question or as keywords.
            limit: Largest number of passages.
        """
        found = await self._documents.search(query, int(limit))
        call.citations += [passage.citation for passage in found]
        return {"passages": [_shown(passage) for passage in found]}


def _shown(passage: FoundPassage) -> FoundText:
    source = passage.citation
    return {"citation": source.citation_id, "title": source.title, "heading": source.heading, "text": passage.text}
