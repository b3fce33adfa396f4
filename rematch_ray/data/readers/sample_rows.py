"""Items and Samples as plain rows, and the pieces that foreign layouts have in common.

A row is a dict in the shape of the Arrow schemas. Texts with placeholders become interleaved parts;
an image cell may be bytes, a path, a data URI or Hugging Face's `{bytes, path}`. It does not know
files or formats, and opens no image. Middle floor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rematch_ray.errors import UserError

Row = dict[str, Any]


def text_part(text: str) -> Row:
    """A text part."""
    return {"kind": "text", "text": text}


def image_part(cell: Any) -> Row:
    """An image part from a cell of a table.

    Args:
        cell: encoded bytes; a path, data URI or URL as text; or a mapping with `bytes` or `path`.

    Raises:
        UserError: the cell is none of these, or empty.
    """
    if isinstance(cell, Mapping):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, bytes) and cell:
        return {"kind": "image", "image": cell}
    if isinstance(cell, str) and cell:
        return {"kind": "image", "uri": cell}
    raise UserError(
        f"an image is {_spelled(cell)}; allowed: bytes, a path, a data URI, or {{bytes, path}}"
    )


def content(text: Any, images: Sequence[Any] = (), *, tag: re.Pattern[str] | None = None) -> list:
    """The parts of a text and its images, in reading order.

    Args:
        text: may hold placeholders; None and "" are no text.
        images: cells, in the order of the placeholders; None and "" are no image.
        tag: what a placeholder looks like. A text without any stands behind its images.

    Returns:
        Parts, as rows. Whitespace around a placeholder falls away.

    Raises:
        UserError: neither text nor image; as many placeholders as images are needed, or none.

    >>> shown = content("a <image> b", ["x.png"], tag=re.compile("<image>"))
    >>> [part.get("text") or part["uri"] for part in shown]
    ['a', 'x.png', 'b']
    """
    if text is not None and not isinstance(text, str):
        raise UserError(f"a text is {_spelled(text)}; allowed: text")
    shown = [image_part(cell) for cell in images if cell is not None and cell != ""]
    texts = tag.split(text or "") if tag else [text or ""]
    if len(texts) == 1:
        ordered = [*shown, *([text_part(texts[0].strip())] if texts[0].strip() else [])]
    elif len(texts) - 1 != len(shown):
        raise UserError(
            f"the text has {len(texts) - 1} placeholders for images and the row {len(shown)} "
            f"images: {_shortened(text)}"
        )
    else:
        ordered = []
        for place, piece in enumerate(texts):
            ordered += [text_part(piece.strip())] if piece.strip() else []
            ordered += shown[place : place + 1]
    if not ordered:
        raise UserError("there is neither text nor image")
    return ordered


def item(parts: list, *, id: Any = None, source: str | None = None) -> Row:
    """An Item; without an id it will be known by its content."""
    return {"id": None if id is None else str(id), "parts": parts, "source": source}


def sample(
    query: Row,
    positives: Sequence[Row],
    negatives: Sequence[Row] = (),
    *,
    scores: Sequence[float | None] = (),
    source: str | None = None,
    instruction: str | None = None,
) -> Row:
    """A Sample.

    Args:
        query: an item.
        positives: items, at least one.
        negatives: items that the data labels as wrong.
        scores: a teacher's score of each negative; none = not known.
        source: name of the data set.
        instruction: put before the query; None = the model's own for the source.

    Raises:
        UserError: there is no positive.
    """
    if not positives:
        raise UserError("there is no positive document")
    scored = [*scores, *[None] * (len(negatives) - len(scores))]
    return {
        "query": query,
        "positives": [{"item": right, "grade": 1.0} for right in positives],
        "negatives": [
            {"item": wrong, "kind": "given", "teacher_score": score}
            for wrong, score in zip(negatives, scored)
        ],
        "instruction": instruction,
        "source": source,
    }


def _spelled(value: Any) -> str:
    return "empty" if value in (None, "", b"") else f"a {type(value).__name__}"


def _shortened(text: Any) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")
