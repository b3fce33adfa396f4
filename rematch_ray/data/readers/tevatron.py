"""Tevatron's training rows: passages in the row (legacy), or ids of documents in a corpus (new).

Legacy: `query_id, query, positive_passages, negative_passages` of `{docid, title, text}`. New:
`query_id, query_text, query_image, positive_document_ids, negative_document_ids`, and a corpus of
`docid, title, text, image`. Document ids are kept: false negatives are known by them. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rematch_ray.data.readers.beir import document_parts
from rematch_ray.data.readers.files import Place
from rematch_ray.data.readers.joined import USES, named, open_documents, with_corpus
from rematch_ray.data.readers.row_files import Layout
from rematch_ray.data.readers.sample_rows import Row, item, sample
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit

LEGACY_COLUMNS = ("query", "positive_passages")
COLUMNS = ("query_id", "positive_document_ids")
_QUERY = ("query_text", "query_image", "query_video", "query_audio", "query")


def legacy_to_sample(row: Row) -> Row:
    """One legacy row as a Sample.

    Raises:
        UserError: no positive passage, or a passage without text.
    """
    return sample(
        item(document_parts({"text": row["query"]}), id=row.get("query_id")),
        [_passage(passage) for passage in row["positive_passages"] or ()],
        [_passage(passage) for passage in row.get("negative_passages") or ()],
    )


def to_sample(row: Row) -> Row:
    """One new row as a Sample whose documents are named and not fetched yet.

    Raises:
        UserError: the query has neither text nor image, or there is no positive.
    """
    return sample(
        item(document_parts({name: row.get(name) for name in _QUERY}), id=row["query_id"]),
        [named(name) for name in row["positive_document_ids"] or ()],
        [named(name) for name in row.get("negative_document_ids") or ()],
    )


def _passage(passage: Row) -> Row:
    return item(document_parts(passage), id=passage.get("docid"))


_NEW = Layout(
    name="tevatron",
    claim="Tevatron: columns query_id, positive_document_ids, and a corpus by docid",
    rows="samples",
    columns=COLUMNS,
    convert=to_sample,
    uses=(*Layout.uses, *USES),
).to_format()


def _list_units(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    joined, stamp = with_corpus(settings, _NEW.name)
    for unit in _NEW.list_units(place, joined, rows):
        yield replace(unit, stamp=f"{unit.stamp}:{stamp}")


FORMATS = (
    replace(_NEW, list_units=_list_units, open_rows=open_documents),
    Layout(
        name="tevatron-legacy",
        claim="Tevatron before ids: columns query, positive_passages",
        rows="samples",
        columns=LEGACY_COLUMNS,
        convert=legacy_to_sample,
    ).to_format(),
)
