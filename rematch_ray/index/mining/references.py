"""What tells one document from another while negatives are mined: id, source, content, modality.

Content is canonical: texts without differences of blank space, images by their decoded pixels, so
that the same picture saved twice is one document. Knows nothing of rows, scores or files. Middle
floor.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from rematch_ray.data.item import Item, Part
from rematch_ray.data.media import decode_image
from rematch_ray.data.rows import stable_id
from rematch_ray.errors import UserError

Int64 = NDArray[np.int64]
TEXT, IMAGE = 1, 2
ANY_MODALITY = 0
NO_SOURCE = 0
REFERENCE_FIELDS = [
    pa.field("id_key", pa.int64()),
    pa.field("source_key", pa.int64()),
    pa.field("content", pa.int64()),
    pa.field("modality", pa.int8()),
]


@dataclass(frozen=True)
class Reference:
    """One document.

    Args:
        id_key: of its id.
        source_key: of its source; `NO_SOURCE` when it has none.
        content: of its canonical content.
        modality: `TEXT`, `IMAGE` or their sum.
        problem: why its images cannot be read, or "".
    """

    id_key: int
    source_key: int
    content: int
    modality: int
    problem: str = ""


@dataclass(frozen=True)
class References:
    """n documents as arrays, each (n,) int64; see `Reference`."""

    id_key: Int64
    source_key: Int64
    content: Int64

    @classmethod
    def of(cls, references: Sequence[Reference]) -> References:
        """The arrays of some documents."""
        return cls(
            np.array([one.id_key for one in references], np.int64),
            np.array([one.source_key for one in references], np.int64),
            np.array([one.content for one in references], np.int64),
        )

    def __len__(self) -> int:
        return len(self.id_key)

    def __getitem__(self, rows: Int64 | slice) -> References:
        return References(self.id_key[rows], self.source_key[rows], self.content[rows])


def same(first: References, second: References) -> NDArray[np.bool_]:
    """Which documents are one: equal content, or equal ids of one source.

    A document without a source may be of any: its id alone decides.

    Args:
        first: n documents.
        second: m documents.

    Returns:
        (n, m) True where both are the same document.

    >>> a = References(*(np.array(x) for x in ([1, 2], [5, 5], [10, 11])))
    >>> b = References(*(np.array(x) for x in ([1, 1, 9], [5, 6, 6], [12, 12, 11])))
    >>> same(a, b).tolist()
    [[True, False, False], [False, False, True]]
    """
    ids = first.id_key[:, None] == second.id_key[None]
    sources = first.source_key[:, None], second.source_key[None]
    one_source = (sources[0] == sources[1]) | (sources[0] == NO_SOURCE) | (sources[1] == NO_SOURCE)
    return (ids & one_source) | (first.content[:, None] == second.content[None])


def source_key(source: str) -> int:
    """Key of a source; `NO_SOURCE` for the empty one."""
    return stable_id(source) if source else NO_SOURCE


def parse_modality(text: str | None) -> int:
    """The modality that a row's `target_modality` names.

    Raises:
        UserError: neither text, image nor both.

    >>> parse_modality("image"), parse_modality("text,image"), parse_modality(None)
    (2, 3, 0)
    """
    known = {"text": TEXT, "image": IMAGE}
    modality = ANY_MODALITY
    for word in re.findall(r"[^\s,;+&/|]+", (text or "").lower()):
        if word not in known:
            raise UserError(
                f"target_modality {text!r} is not known; allowed: text, image, 'image,text' or none"
            )
        modality |= known[word]
    return modality


def item_modality(item: Item) -> int:
    """`TEXT`, `IMAGE` or their sum; an empty text beside an image does not count.

    >>> item_modality(Item.of("a red bar"))
    1
    """
    modality = IMAGE if item.images else ANY_MODALITY
    return modality | (TEXT if item.text.strip() or not item.images else ANY_MODALITY)


class ReferenceMaker:
    """Makes references of items; pictures that come again are not decoded again.

    Args:
        max_pixels: larger images are refused before they are decoded.
    """

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._decoded: dict[bytes, bytes] = {}

    def of(self, item: Item, source: str = "") -> Reference:
        """The reference of an item.

        Args:
            item: the document or query.
            source: of the row it stands in, for an item without its own.
        """
        problem = ""
        digest = hashlib.blake2b(digest_size=8)
        for part in item.parts:
            try:
                content = self._canonical(part)
            except UserError as refused:
                problem = problem or str(refused)
                content = part.image or (part.uri or "").encode()
            digest.update(f"{part.kind}:{len(content)}:".encode())
            digest.update(content)
        return Reference(
            id_key=stable_id(item.id),
            source_key=source_key(item.source or source),
            content=int.from_bytes(digest.digest(), "little") >> 1,
            modality=item_modality(item),
            problem=problem,
        )

    def _canonical(self, part: Part) -> bytes:
        if part.kind == "text":
            return " ".join(unicodedata.normalize("NFC", part.text or "").split()).encode()
        if part.image is None:
            raise UserError("an image part has no bytes, only a uri: give the image itself")
        key = hashlib.blake2b(part.image, digest_size=16).digest()
        if key not in self._decoded:
            image = decode_image(part.image, max_pixels=self._max_pixels)
            pixels = hashlib.blake2b(f"{image.size}".encode(), digest_size=16)
            pixels.update(image.tobytes())
            self._decoded[key] = pixels.digest()
        return self._decoded[key]
