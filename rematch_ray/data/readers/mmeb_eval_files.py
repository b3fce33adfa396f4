"""The files of MMEB's evaluation sets: pieces of queries, and of the targets of each subset.

What a row means is said in mmeb_eval.py. The targets of a subset are gathered when it is listed and
once more in every process that reads a piece of them. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import pyarrow as pa

from rematch_ray.data.readers.files import FileEntry, Place, look, parent
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.linked_images import load_images
from rematch_ray.data.readers.mmeb_eval import (
    COLUMNS,
    NAME,
    Target,
    qrels_of,
    query_id,
    targets_of,
    to_document,
    to_query,
)
from rematch_ray.data.readers.row_files import (
    MEDIA,
    UNIT_ROWS,
    check_columns,
    converted,
    detect_columns,
    list_rows,
    read_rows,
    row_tables,
    split_files,
)
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.splits import split_of
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.readers.unread import media
from rematch_ray.errors import UserError


def read_qrels(path: str | Path, *, split: str | None = None) -> pa.Table:
    """Judgements of the subsets at a path: what is right, and with score 0 the other candidates.

    Raises:
        UserError: no data file of the split, or a column is missing.
    """
    tables = [
        qrels_of(_rows(pieces), subset)
        for subset, pieces in _subsets(look(path), ReaderSettings(split=split)).items()
    ]
    return pa.concat_tables(tables)


def _list_units(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    list_part = _queries if settings.part == "queries" else _documents
    for subset, pieces in _subsets(place, settings).items():
        yield from list_part(subset, pieces)


def _queries(subset: str, pieces: Sequence[Unit]) -> Iterator[Unit]:
    number = 0
    for unit in pieces:
        yield replace(unit, options={**unit.options, "subset": subset, "number": number})
        number += unit.counted_rows


def _documents(subset: str, pieces: Sequence[Unit]) -> Iterator[Unit]:
    known = _targets(tuple(pieces))
    num_bytes = sum(unit.num_bytes for unit in pieces)
    for begin in range(0, len(known), UNIT_ROWS):
        end = min(begin + UNIT_ROWS, len(known))
        yield replace(
            pieces[0],
            num_rows=end - begin,
            num_bytes=num_bytes * (end - begin) // len(known),
            first_row=begin,
            begin=begin,
            end=end,
            stamp="".join(dict.fromkeys(unit.stamp for unit in pieces)),
            options={"subset": subset, "pieces": tuple(pieces), "folder": ""},
        )


def _subsets(place: Place, settings: ReaderSettings) -> dict[str, list[Unit]]:
    """The pieces of every subset. It is called as its file, or as the folder of a split's file."""
    found: dict[str, list[Unit]] = {}
    for entry in split_files(place, settings.split, otherwise="test"):
        check_columns(entry, COLUMNS, NAME)
        pieces = found.setdefault(_subset_of(entry), [])
        pieces.extend(list_rows(place, entry, NAME, "items", settings))
    return found


def _subset_of(entry: FileEntry) -> str:
    folder = parent(entry.path).rpartition("/")[2]
    return folder if split_of(entry) else Path(entry.name).stem


def _read_unit(unit: Unit) -> Iterator[pa.RecordBatch]:
    subset, pieces = unit.options["subset"], unit.options.get("pieces")
    if pieces is None:
        first = unit.options["number"]
        rows = [
            row if isinstance(row, UserError) else row | {"number": first + place}
            for place, row in enumerate(read_rows(unit))
        ]
        convert = partial(to_query, subset=subset)
        yield from converted(rows, convert, unit, id_of=lambda row: query_id(subset, row["number"]))
    else:
        targets = _targets(pieces)[unit.begin : unit.end]
        yield from converted(targets, partial(to_document, subset=subset), unit)


@lru_cache(maxsize=4)
def _targets(pieces: tuple[Unit, ...]) -> list[Target]:
    return targets_of(_rows(pieces))


def _rows(pieces: Sequence[Unit]) -> Iterator[Row]:
    for row in (row for unit in pieces for row in read_rows(unit)):
        if isinstance(row, UserError):
            raise UserError(f"{pieces[0].path}: {row}")
        yield row


FORMATS = (
    Format(
        name=NAME,
        claim="MMEB-eval V1, V2 images: columns qry_text, qry_img_path, tgt_text, tgt_img_path",
        rows=("items",),
        detect=partial(detect_columns, needed=COLUMNS),
        list_units=_list_units,
        read_unit=_read_unit,
        reads=lambda place, settings: row_tables(place),
        beside=media,
        open_rows=load_images,
        uses=frozenset({"split", "part", *MEDIA}),
    ),
)
