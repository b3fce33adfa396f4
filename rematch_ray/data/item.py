"""Items and samples as Python objects.

An `Item` is an ordered, interleaved list of text and image parts; a `Sample` is a training row: a
query, its positives and its hard negatives. Images stay encoded bytes here: decoding is
`data/media.py`. This module does not know Arrow, files, models or prompts. Middle floor.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from rematch_ray.errors import UserError


class SchemaError(UserError):
    """A table does not have the columns, types or values that an Item or a Sample needs."""


@dataclass(frozen=True)
class Part:
    """One piece of an item: a text, or an image as encoded bytes or as a reference (`uri`)."""

    kind: Literal["text", "image"]
    text: str | None = None
    image: bytes | None = None
    uri: str | None = None

    def __post_init__(self) -> None:
        if self.kind == "text" and self.text is None:
            raise SchemaError("a part of kind 'text' has no text; give it one, or drop the part")
        if self.kind == "image" and self.image is None and not self.uri:
            raise SchemaError(
                "a part of kind 'image' has neither image bytes nor a uri; give it one of them"
            )
        if self.kind not in ("text", "image"):
            raise SchemaError(f"part kind {self.kind!r} is unknown; allowed: 'text', 'image'")

    @classmethod
    def of_text(cls, text: str) -> Part:
        """A text part."""
        return cls("text", text=text)

    @classmethod
    def of_image(cls, image: bytes | Image.Image) -> Part:
        """An image part from encoded bytes (kept as they are) or a PIL image (stored as PNG)."""
        if isinstance(image, Image.Image):
            buffer = io.BytesIO()
            image.save(buffer, format="PNG")
            image = buffer.getvalue()
        return cls("image", image=bytes(image))


@dataclass(frozen=True)
class Item:
    """A query or a document: parts in reading order, plus what the dataset says about it."""

    id: str
    parts: tuple[Part, ...]
    parent_id: str | None = None
    source: str = ""
    payload: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @classmethod
    def of(
        cls,
        *parts: str | bytes | Image.Image | Part,
        id: str | None = None,
        source: str = "",
        payload: Mapping[str, Any] | None = None,
        parent_id: str | None = None,
    ) -> Item:
        """Build an item from text, encoded image bytes, PIL images or ready parts.

        Args:
            parts: in reading order.
            id: identity of the item; None takes the SHA-256 of the parts.
            source: name of the dataset.
            payload: fields that belong to the dataset and are returned with a hit.
            parent_id: the item this one was cut from (a page's document), if any.

        Returns:
            The item.

        >>> Item.of("a red bar").id == Item.of("a red bar", source="scenes").id
        True
        """
        made = tuple(_as_part(part) for part in parts)
        return cls(id or content_id(made), made, parent_id, source, dict(payload or {}))

    @property
    def text(self) -> str:
        """All text parts joined by a space."""
        return " ".join(part.text for part in self.parts if part.text)

    @property
    def images(self) -> tuple[Part, ...]:
        """The image parts, in order."""
        return tuple(part for part in self.parts if part.kind == "image")


@dataclass(frozen=True)
class Positive:
    """A relevant document and how relevant it is."""

    item: Item
    grade: float = 1.0


@dataclass(frozen=True)
class Negative:
    """A document that the data or a miner labels as not relevant, and how it came about."""

    item: Item
    kind: str = ""
    teacher_score: float | None = None


@dataclass(frozen=True)
class Sample:
    """A training row."""

    query: Item
    positives: tuple[Positive, ...]
    negatives: tuple[Negative, ...] = ()
    instruction: str | None = None
    target_modality: str | None = None
    source: str = ""


def content_id(parts: Iterable[Part]) -> str:
    """SHA-256 (hex) of the parts' kinds and contents, each with its length in front.

    >>> content_id([Part.of_text("ab")]) != content_id([Part.of_text("a"), Part.of_text("b")])
    True
    """
    digest = hashlib.sha256()
    for part in parts:
        content = part.image if part.image is not None else (part.text or part.uri or "").encode()
        digest.update(f"{part.kind}:{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


def _as_part(part: str | bytes | Image.Image | Part) -> Part:
    if isinstance(part, Part):
        return part
    if isinstance(part, str):
        return Part.of_text(part)
    if isinstance(part, bytes | bytearray | memoryview | Image.Image):
        return Part.of_image(part if isinstance(part, Image.Image) else bytes(part))
    raise SchemaError(
        f"an item part is a {type(part).__name__}; allowed: str, bytes, PIL image, Part"
    )
