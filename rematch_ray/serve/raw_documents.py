"""Raw documents of hits, by the reference that their payload holds.

An image comes from inside the configured media roots, a document of text alone from its payload.
Knows no model and no index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rematch_ray.data.item import Item, Part
from rematch_ray.serve.media import MediaRoots

if TYPE_CHECKING:
    from rematch_ray.index.hits import Hit

_TEXT = "text"
_REFERENCES = ("media", "uri")


def raw_documents(hits: Sequence[Hit], media: MediaRoots) -> list[Item | None]:
    """What each hit's document was made of, as far as it can be found.

    The image that `media` or `uri` of the payload names; where the payload names none, its `text`.

    Args:
        hits: with their payloads.
        media: where images may be read from.

    Returns:
        Of each hit its item; None where the reference leads nowhere, or there is none.
    """
    return [_document_of(hit, media) for hit in hits]


def _document_of(hit: Hit, media: MediaRoots) -> Item | None:
    if any(hit.payload.get(field) for field in _REFERENCES):
        found = media.find(hit.payload)
        if found is None:
            return None
        try:
            return Item(hit.id, (Part.of_image(found[0].read_bytes()),))
        except OSError:  # removed since it was found, or not ours to read
            return None
    text = hit.payload.get(_TEXT)
    return Item(hit.id, (Part.of_text(text),)) if isinstance(text, str) and text else None
