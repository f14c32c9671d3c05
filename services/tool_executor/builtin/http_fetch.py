"""The tool `http_fetch`."""

import asyncio
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from services.tool_executor.builtin.page_text import text_of_html
from services.tool_executor.failures import ToolFailure
from services.tool_executor.ports import Allowed, Page, Web
from services.tool_executor.tools import ToolCall, tool

MAX_URL = 4096
_READABLE = ("application/json", "application/xml", "application/xhtml+xml", "application/javascript", "application/yaml")


class Host(BaseModel):
    """One entry of the allow-list: a host, or every host below one as `*.example.com`."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    host: Annotated[str, Field(pattern=r"^(\*\.)?[A-Za-z0-9:_]([A-Za-z0-9._:-]*[A-Za-z0-9:])?$", max_length=253)]
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
    private: bool = False

    def covers(self, scheme: str, host: str, port: int) -> bool:
        """Whether the entry permits this; without a port of its own only 80 for http and 443 for https."""
        name = self.host.lower()
        same = host.endswith(name[1:]) if name.startswith("*.") else host == name
        return same and port == (self.port or {"http": 80, "https": 443}.get(scheme))


class HttpFetchOptions(BaseModel):
    """Options in tools.yaml. An empty allow-list permits nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    allow: tuple[Host, ...] = ()
    max_bytes: Annotated[int, Field(ge=1, le=200_000)] = 100_000

    def allowed(self) -> Allowed:
        """The allow-list as the web asks it."""

        def check(scheme: str, host: str, port: int) -> bool | None:
            entries = [entry for entry in self.allow if entry.covers(scheme, host.lower(), port)]
            return any(entry.private for entry in entries) if entries else None

        return check


class FetchedPage(TypedDict):
    """A page as text; `truncated` when there is more of it."""

    url: str
    status: int
    content_type: str
    text: str
    truncated: bool


class HttpFetch:
    """Fetches through a port, which checks every address."""

    def __init__(self, web: Web) -> None:
        self._web = web

    @tool(version="1.0.0", read_only=True, open_world=True, options=HttpFetchOptions)
    async def http_fetch(self, call: ToolCall, url: Annotated[str, Field(min_length=1, max_length=MAX_URL)]) -> FetchedPage:
        """Fetches a web page or document with GET and returns its text. Only hosts that the operator allows can be reached.

        Args:
            url: Full address of the page, beginning with https:// or http://.
        """
        options: HttpFetchOptions = call.options

        def progress(received: int, total: int | None) -> None:
            call.progress(min(received / total, 1.0) if total else -1.0, f"{received} bytes")

        page = await self._web.get(url, options.allowed(), options.max_bytes, progress)
        return {
            "url": page.url,
            "status": page.status,
            "content_type": page.content_type,
            "text": await _text(page),
            "truncated": page.truncated,
        }


async def _text(page: Page) -> str:
    kind = page.content_type
    if not (kind.startswith("text/") or kind in _READABLE or kind.endswith(("+json", "+xml"))):
        raise ToolFailure("output.blocked", f"The page is of type {kind[:100]} and not text.")
    try:
        text = page.body.decode(page.charset, errors="replace")
    except LookupError:
        text = page.body.decode("utf-8", errors="replace")
    if kind in ("text/html", "application/xhtml+xml"):
        # Parsing is CPU work.
        return await asyncio.to_thread(text_of_html, text)
    return text
