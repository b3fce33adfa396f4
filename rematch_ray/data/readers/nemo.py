"""NeMo's retrieval data: one JSON of rows and the corpus they name, or JSONL with texts inline.

`{"corpus": [{"path"}], "data": [{question_id, question, corpus_id, pos_doc: [{id}], neg_doc}]}`,
the corpus being Parquet of `id, text, image`; inline: `query | question, pos_doc, neg_doc`. Middle
floor.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.beir import document_parts
from rematch_ray.data.readers.file_list import FileList
from rematch_ray.data.readers.files import (
    FileEntry,
    Place,
    open_file,
    parent,
    read_bytes,
)
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.joined import USES, named, open_documents, with_corpus
from rematch_ray.data.readers.mmeb import listed
from rematch_ray.data.readers.references import path_inside, shown
from rematch_ray.data.readers.row_files import MEDIA, UNIT_ROWS, Layout, converted
from rematch_ray.data.readers.sample_rows import Row, content, item, sample
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.errors import UserError

NAME, SUFFIX = "nemo", ".json"
_BEGINNING = re.compile(rb'\s*\{\s*"(corpus|data)"\s*:')


def to_sample(row: Row) -> Row:
    """One row as a Sample whose documents are named and not fetched yet.

    Raises:
        UserError: no question, no positive, or a document without an id.
    """
    return sample(
        item(content(row["question"]), id=row.get("question_id")),
        [_named(document) for document in listed(row["pos_doc"])],
        [_named(document) for document in listed(row.get("neg_doc"))],
    )


def inline_to_sample(row: Row) -> Row:
    """One inline row as a Sample; documents are texts or `{id, text, image}`.

    Raises:
        UserError: no question, or no positive.
    """
    return sample(
        item(content(row.get("query") or row.get("question")), id=row.get("question_id")),
        [_inline(document) for document in listed(row["pos_doc"])],
        [_inline(document) for document in listed(row.get("neg_doc"))],
    )


def _named(document: Any) -> Row:
    return named(document.get("id") if isinstance(document, Mapping) else document)


def _inline(document: Any) -> Row:
    if isinstance(document, Mapping):
        return item(document_parts(document), id=document.get("id"))
    return item(content(document))


def _inline_columns(columns: Sequence[str]) -> bool:
    return "pos_doc" in columns and bool({"query", "question"} & set(columns))


def _detect(place: Place) -> str | None:
    entry = next(iter(place.ending(SUFFIX)), None)
    if entry is None or len(place.ending(SUFFIX)) > 1:
        return None
    with open_file(entry.path) as file:
        begins = _BEGINNING.match(file.read(4096))
    found = _content(entry.path, entry.stamp) if begins else {}
    return "keys corpus, data" if {"corpus", "data"} <= found.keys() else None


def _reads(place: Place, settings: ReaderSettings) -> FileList:
    try:
        is_nemo = _detect(place) is not None
    # what only begins like one
    except UserError:
        is_nemo = False
    # any other JSON describes something
    return place.ending(SUFFIX) if is_nemo else place.files[:0]


def _list_units(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    for entry in place.ending(SUFFIX):
        found = _content(entry.path, entry.stamp)
        if not isinstance(found.get("data"), list):
            raise UserError(f"{entry.path}: no list `data`; keys: {', '.join(found) or 'none'}")
        corpus = settings.corpus or _corpus_of(entry, found.get("corpus"))
        joined, stamp = with_corpus(settings.model_copy(update={"corpus": corpus}), NAME)
        digest = hashlib.sha256(json.dumps(found["data"]).encode()).hexdigest()
        count = len(found["data"])
        for begin in range(0, count, UNIT_ROWS):
            end = min(begin + UNIT_ROWS, count)
            yield Unit(
                format=NAME,
                path=entry.path,
                rows=rows,
                num_rows=end - begin,
                num_bytes=entry.size * (end - begin) // count,
                first_row=begin,
                begin=begin,
                end=end,
                stamp=f"{digest}:{stamp}",
                settings=joined,
                options={"file": entry.stamp, "folder": ""},
            )


def _corpus_of(entry: FileEntry, given: Any) -> str:
    """The corpus that a file names, which somebody else may have written: it lies beside it."""
    paths = [one.get("path") for one in listed(given) if isinstance(one, Mapping)]
    if len(paths) != 1 or not isinstance(paths[0], str):
        raise UserError(
            f"{entry.path} names {len(paths)} corpora; one is read for a source: split the rows by "
            "corpus_id, or set `corpus` where all documents lie in one"
        )
    folder = parent(entry.path)
    if posixpath.normpath(paths[0]) == ".":
        return folder
    try:
        return path_inside(paths[0], folder)
    except UserError as error:
        raise UserError(
            f"{entry.path} names the corpus {shown(paths[0])}, which does not lie below the folder "
            "of that file; say where it lies with `corpus`, if you mean to read it"
        ) from error


def _read_unit(unit: Unit) -> Iterator[pa.RecordBatch]:
    rows = _content(unit.path, unit.options["file"])["data"][unit.begin : unit.end]
    if len(rows) != unit.num_rows:
        raise UserError(f"{unit.path} changed since it was listed")
    yield from converted(rows, to_sample, unit)


@lru_cache(maxsize=2)
def _content(path: str, stamp: str) -> dict[str, Any]:
    try:
        found = json.loads(read_bytes(path))
    # RecursionError: thousands of brackets
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    return found if isinstance(found, dict) else {}


FORMATS = (
    Format(
        name=NAME,
        claim="NeMo: one .json with the keys corpus and data",
        rows=("samples",),
        detect=_detect,
        list_units=_list_units,
        read_unit=_read_unit,
        reads=_reads,
        # the corpus that the rows name
        beside=lambda place, settings: place.files,
        uses=frozenset({*MEDIA, *USES}),
        open_rows=open_documents,
    ),
    Layout(
        name="nemo-inline",
        claim="NeMo's JSONL: columns query or question, pos_doc, neg_doc",
        rows="samples",
        columns=("pos_doc",),
        convert=inline_to_sample,
        detected=_inline_columns,
    ).to_format(),
)
