"""sentence-transformers' columns: anchor, positive and negatives, told apart by their order.

`columns` may say it instead (`anchor=question,positive=answer,negative=hard_1+hard_2`); columns of
ids are never one of them. Labels stand in `label, labels, score, scores`; a list of scores, one for
each document, is a teacher's. A cell is a text, the path or data URI of an image, an image,
`{"text", "image"}`, or chat messages. Middle floor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.files import Place
from rematch_ray.data.readers.row_files import (
    MEDIA,
    PARQUET,
    Layout,
    columns_of,
    converted,
    list_rows,
    read_rows,
    split_files,
)
from rematch_ray.data.readers.sample_rows import Row, content, image_part, item, sample, text_part
from rematch_ray.data.readers.settings import SAMPLE_ROLES, ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.errors import UserError, did_you_mean

LABELS = ("label", "labels", "score", "scores")
NO_TEXT = (*LABELS, "dataset_name")
_ID = re.compile(r"_?id|.+[_-]ids?|docid")
_NEGATIVE = re.compile(r"negative(_\d+)?")
_IMAGE = re.compile(r"data:image/\S+|\S+\.(png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE)


def looks_like(columns: Sequence[str]) -> bool:
    """Whether columns are unmistakably these: an anchor and a positive by their usual names."""
    first = {"anchor", "query", "question", "sentence1"} & set(columns)
    second = {"positive", "answer", "sentence2"} & set(columns)
    return bool(first and second) or any(_NEGATIVE.fullmatch(name) for name in columns)


def ordered(columns: Sequence[str], settings: ReaderSettings) -> tuple[str, ...]:
    """The columns that are read: anchor, positive, negatives.

    Raises:
        SchemaError: a column that `columns` names is not there, or there are less than two.

    >>> ordered(["id", "question", "answer", "negative_1", "score"], ReaderSettings())
    ('question', 'answer', 'negative_1')
    """
    told = [name for role in SAMPLE_ROLES for name in settings.columns_for(role)]
    for name in told:
        if name not in columns:
            raise SchemaError(f"no column {name!r}; {did_you_mean(name, columns)}")
    if told and not (settings.columns_for("anchor") and settings.columns_for("positive")):
        raise SchemaError("say which column is the anchor and which the positive")
    names = told or [name for name in columns if name not in NO_TEXT and not _ID.fullmatch(name)]
    if len(names) < 2:
        raise SchemaError(
            f"columns {', '.join(columns) or 'none'}: an anchor and a positive are needed, in this "
            "order"
        )
    return tuple(names)


def to_sample(row: Row, names: Sequence[str]) -> Row:
    """One row as a Sample: the first column asks, the second answers, the others are wrong.

    Args:
        row: the row; what it lacks is empty.
        names: of the columns, from `ordered`: every row of a file has the roles of the first.

    Raises:
        UserError: no anchor or positive, a label of pairs, or a cell of another kind.
    """
    anchor, *documents = (row.get(name) for name in names)
    positive, *negatives = [None if cell is None else item(parts_of(cell)) for cell in documents]
    scores = _teacher_scores(row, documents)
    kept = [(wrong, score) for wrong, score in zip(negatives, scores[1:]) if wrong is not None]
    return sample(
        item(parts_of(anchor)),
        [] if positive is None else [positive],
        [wrong for wrong, _ in kept],
        scores=[score for _, score in kept],
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


def _teacher_scores(row: Row, documents: Sequence[Any]) -> list[float | None]:
    """A score of every document; a single number would grade the pair, which nothing here reads."""
    name = next((label for label in LABELS if row.get(label) is not None), None)
    if name is None:
        return [None] * len(documents)
    scores, given = row[name], [document is not None for document in documents]
    if isinstance(scores, list) and len(scores) == len(documents):
        return scores
    if isinstance(scores, list) and len(scores) == sum(given):
        in_turn = iter(scores)
        return [next(in_turn) if is_given else None for is_given in given]
    raise UserError(
        f"column {name!r} holds {scores!r}; allowed: a list of {sum(given)} teacher's scores, one "
        "for each document. Pairs graded by a number are no training rows here"
    )


_BY_ORDER = Layout(
    name="sentence-transformers",
    claim="sentence-transformers: columns anchor, positive, negative_1 ..., in this order",
    rows="samples",
    columns=(),
    convert=partial(to_sample, names=()),
    detected=looks_like,
    uses=(*MEDIA, "columns"),
).to_format()


def _list_units(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    for entry in split_files(place, settings.split, otherwise="train"):
        try:
            names = ordered(columns_of(entry), settings)
        except SchemaError as refused:
            raise SchemaError(f"{entry.path}: {refused}") from refused
        for unit in list_rows(place, entry, _BY_ORDER.name, rows, settings):
            yield replace(unit, options={**unit.options, "columns": names})


def _read_unit(unit: Unit) -> Iterator[pa.RecordBatch]:
    names = unit.options["columns"]
    rows: Iterable[Row | UserError] = read_rows(unit)
    if not unit.path.lower().endswith(PARQUET) and not unit.settings.columns:
        # rows of JSONL may have more negatives than the first
        rows = list(rows)
        keys = dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row)
        names += tuple(name for name in keys if name not in names and _NEGATIVE.fullmatch(name))
    yield from converted(rows, partial(to_sample, names=names), unit)


FORMATS = (replace(_BY_ORDER, list_units=_list_units, read_unit=_read_unit),)
