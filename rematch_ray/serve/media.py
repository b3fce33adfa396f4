"""Images of documents, from inside the configured media roots and from nowhere else.

Knows paths and image types; whether a document exists is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

_TYPES_BY_SUFFIX = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}


class MediaRoots:
    """The directories that may be read from.

    Args:
        roots: directories; links are followed first, and the file they lead to must lie inside.
    """

    def __init__(self, roots: Iterable[Path]) -> None:
        self._roots = tuple(root.resolve() for root in roots)

    def find(self, payload: Mapping[str, Any]) -> tuple[Path, str] | None:
        """The image that a payload names in `media` or `uri`.

        A relative path is looked for under each root.

        Returns:
            Path and media type, or None when it names none that may be returned.
        """
        named = payload.get("media") or payload.get("uri")
        if not isinstance(named, str) or "\0" in named or "://" in named:
            return None
        for root in self._roots:
            path = (root / named).resolve()  # an absolute name replaces the root
            media_type = _TYPES_BY_SUFFIX.get(path.suffix.lower())
            if media_type and path.is_relative_to(root) and path.is_file():
                return path, media_type
        return None
