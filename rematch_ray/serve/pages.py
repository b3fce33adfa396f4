"""The pages for people: the search page at ``/`` and the API's at ``/docs``.

Everything they load comes from the package: no CDN, no build step. What a page may do is said in
its headers. Knows nothing of searching.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files

from fastapi import FastAPI, Request
from fastapi.responses import Response

_TYPES_BY_SUFFIX = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_PATHS = {"index.html": "/", "docs.html": "/docs", "icon.svg": "/favicon.ico"}
_POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' blob: data:",
    "base-uri": "'none'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
    # no text ever becomes markup: the browser refuses innerHTML and its like
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
_HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "cache-control": "no-cache",
    "cross-origin-opener-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def add_pages(api: FastAPI) -> None:
    """Add the pages and, under ``/assets``, the files they load."""
    folder = files("rematch_ray.serve") / "web"
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        media_type = _TYPES_BY_SUFFIX.get(file.name.rpartition(".")[2])
        if media_type is None:
            continue
        path = _PATHS.get(file.name, f"/assets/{file.name}")
        route = _page(file.read_bytes(), media_type)
        api.add_api_route(path, route, methods=["GET"], include_in_schema=False)


def _page(content: bytes, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**_HEADERS, "etag": tag}

    async def page(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return page
