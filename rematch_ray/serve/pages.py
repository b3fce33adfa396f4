"""The pages for people: the search page at ``/`` and the API's at ``/docs``.

Everything they load comes from the package: no CDN, no build step. Knows nothing of searching.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

_TYPES_BY_SUFFIX = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PAGES = {
    "/": "index.html",
    "/docs": "docs.html",
    "/assets/style.css": "style.css",
    "/assets/search.js": "search.js",
    "/assets/docs.js": "docs.js",
    "/favicon.ico": "icon.svg",
}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' blob: data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_pages(api: FastAPI) -> None:
    """Add the pages and the files they load."""
    folder = files("rematch_ray.serve") / "web"
    for path, name in _PAGES.items():
        media_type = _TYPES_BY_SUFFIX[name.rpartition(".")[2]]
        route = _page((folder / name).read_bytes(), media_type)
        api.add_api_route(path, route, methods=["GET"], include_in_schema=False)


def _page(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def page() -> Response:
        return Response(content, media_type=media_type, headers=_HEADERS)

    return page
