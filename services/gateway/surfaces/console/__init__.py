"""The web console at `/` and the API pages: static files, no address but our own."""

from pathlib import Path

from fastapi import APIRouter
from starlette.responses import Response

STATIC = Path(__file__).with_name("static")
# Pictures and sounds come with the key, so they are shown from the page's own memory (blob:); nothing may become a script.
POLICY = (
    "default-src 'self'; img-src 'self' blob:; media-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def router() -> APIRouter:
    """Routes of the pages. The files are read once: they are small and never change while the process lives."""
    routes = APIRouter(include_in_schema=False)
    pages = {"/": "index.html", "/docs": "docs.html", "/favicon.ico": "icon.svg"}
    for path in sorted(STATIC.iterdir()):
        _serve(routes, f"/console/{path.name}", path)
    for path, name in pages.items():
        _serve(routes, path, STATIC / name)
    return routes


def _serve(routes: APIRouter, path: str, file: Path) -> None:
    content = file.read_bytes()
    headers = {
        "content-security-policy": POLICY,
        "cache-control": "no-cache",
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
    }

    async def serve() -> Response:
        return Response(content, 200, headers, _TYPES[file.suffix])

    routes.add_api_route(path, serve, methods=["GET"])
