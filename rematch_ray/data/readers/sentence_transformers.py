"""sentence-transformers' columns: anchor, positive and negatives, told apart by their order.

Columns of labels are `label, labels, score, scores`; a list of scores, one for each document, is a
teacher's. A cell is a text, the path or data URI of an image, an image, `{"text", "image"}`, or
chat messages. Middle floor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rematch_ray.data.readers.row_files import Layout
from rematch_ray.data.readers.sample_rows import Row, content, image_part, item, sample, text_part
from rematch_ray.errors import UserError

LABELS = ("label", "labels", "score", "scores")
NO_TEXT = (*LABELS, "dataset_name")
_NEGATIVE = re.compile(r"negative(_\d+)?")
_IMAGE = re.compile(r"data:image/\S+|\S+\.(png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE)


def looks_like(columns: Sequence[str]) -> bool:
    """Whether columns are unmistakably these: an anchor and a positive by their usual names."""
    first = {"anchor", "query", "question", "sentence1"} & set(columns)
    second = {"positive", "answer", "sentence2"} & set(columns)
    return bool(first and second) or any(_NEGATIVE.fullmatch(name) for name in columns)


def to_sample(row: Row) -> Row:
    """One row as a Sample: the first column asks, the second answers, the others are wrong.

    Raises:
        UserError: too few columns, a label of pairs, or a cell that is neither text nor image.
    """
    cells = [(name, cell) for name, cell in row.items() if name not in NO_TEXT]
    if len(cells) < 2:
        raise UserError(
            f"columns {', '.join(row)}: an anchor and a positive are needed, in this order"
        )
    documents = [item(parts_of(cell)) for _, cell in cells[1:] if cell is not None]
    return sample(
        item(parts_of(cells[0][1])),
        documents[:1] if cells[1][1] is not None else [],
        documents[1:],
        scores=_teacher_scores(row, len(cells) - 1, [cell for _, cell in cells[1:]]),
    )


def parts_of(cell: Any) -> list:
    """The parts of a cell.

    >>> [part["kind"] for part in parts_of({"text": "a", "image": "b.png"})]
    ['image', 'text']
    """
    if isinstance(cell, str):
        return [image_part(cell)] if _IMAGE.fullmatch(cell) else content(cell)
    if isinstance(cell, list):
        return [part for message in cell for part in _of_message(message)]
    if isinstance(cell, Mapping) and not {"bytes", "path"} & cell.keys():
        _refuse_media(cell)
        return content(cell.get("text"), [cell.get("image")])
    return [image_part(cell)]


def _of_message(message: Any) -> list:
    said = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(said, str):
        return [text_part(said)]
    if not isinstance(said, list):
        raise UserError("a cell is a list, but not of messages {role, content}")
    parts = []
    for piece in said:
        _refuse_media(piece)
        parts += content(piece.get("text"), [piece.get("image")])
    return parts


def _refuse_media(cell: Mapping[str, Any]) -> None:
    if found := [kind for kind in ("audio", "video") if cell.get(kind)]:
        raise UserError(f"a cell holds {found[0]}; only texts and images are read")


def _teacher_scores(row: Row, count: int, cells: Sequence[Any]) -> list[float | None]:
    """Scores of the negatives; a single number would grade the pair, which nothing here reads."""
    name = next((label for label in LABELS if row.get(label) is not None), None)
    if name is None:
        return []
    scores = row[name]
    if not isinstance(scores, list) or len(scores) != count:
        raise UserError(
            f"column {name!r} holds {scores!r}; allowed: a list of {count} teacher's scores, one "
            "for each document. Pairs graded by a number are no training rows of this objective"
        )
    kept = [score for score, cell in zip(scores, cells) if cell is not None]
    return kept[1:]


FORMATS = (
    Layout(
        name="sentence-transformers",
        claim="sentence-transformers: columns anchor, positive, negative_1 ..., in this order",
        rows="samples",
        columns=(),
        convert=to_sample,
        detected=looks_like,
    ).to_format(),
)
