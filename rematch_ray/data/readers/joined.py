"""Rows that name their documents by ids: the documents are fetched when the rows are needed.

A row is read with items that have an id and no parts; opening it fills them from the corpus and
drops negatives beyond the first few before anything is fetched for them. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.beir import document_parts
from rematch_ray.data.readers.corpus import corpus_stamp, open_corpus
from rematch_ray.data.readers.files import absolute_path, look, parent
from rematch_ray.data.readers.linked_images import items_of, load_images
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.schema import sample_schema
from rematch_ray.errors import UserError

USES = ("corpus", "corpus_copy", "max_negatives")


def named(name: Any) -> Row:
    """A document of the corpus that is not fetched yet.

    Raises:
        UserError: there is no id.
    """
    if name in (None, ""):
        raise UserError("a document has no id")
    return {"id": str(name)}


def with_corpus(settings: ReaderSettings, name: str) -> tuple[ReaderSettings, str]:
    """Settings with the corpus's absolute path and its folder as the default root; its stamp.

    Raises:
        UserError: no corpus is named, or it cannot be one.
    """
    if settings.corpus is None:
        raise UserError(
            f"format {name} names documents by their ids; say where they are with `corpus`: "
            "Parquet or JSONL of docid, text, title, image"
        )
    path = absolute_path(settings.corpus)
    place = look(path)
    root = settings.image_root or (place.path if place.is_folder else parent(place.path))
    changed = settings.model_copy(update={"corpus": path, "image_root": root})
    return changed, corpus_stamp(path)


def open_documents(
    table: pa.Table | pa.RecordBatch, settings: ReaderSettings
) -> Iterator[pa.RecordBatch]:
    """Samples with the documents they name; a row that names one that is not there is bad.

    Args:
        table: Samples whose documents may be ids alone.
        settings: the corpus, where its copy is kept, how many negatives stay.
    """
    assert settings.corpus is not None
    rows = table.to_pylist()
    for row in rows:
        row["negatives"] = (row["negatives"] or [])[: settings.max_negatives]
    wanted = {item["id"] for row in rows for item in items_of(row) if _is_named(item)}
    held = open_corpus(settings.corpus, settings.corpus_copy).rows(sorted(wanted))
    filled = (_filled(row, held) for row in rows)
    for batch in to_batches(filled, sample_schema()):
        yield from load_images(batch, settings)


def _filled(row: Row, held: dict[str, Row]) -> Row:
    try:
        for item in items_of(row):
            if _is_named(item):
                if item["id"] not in held:
                    raise UserError(f"document {item['id']!r} is not in the corpus")
                item["parts"] = document_parts(held[item["id"]])
    except UserError as refused:
        return error_row(str(refused), source=row["source"])
    return row


def _is_named(item: Row) -> bool:
    return item["id"] is not None and not item["parts"]
