"""Corpora and queries in BEIR's style: an id, a text, a title, an image.

BEIR's `corpus.jsonl` and `queries.jsonl`, the Parquet of mteb and ViDoRe (`corpus-id, image`) and
Tevatron's corpora (`docid`) differ in names only. Judgements are read by qrels.py. Middle floor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rematch_ray.data.readers.files import Place, join, look
from rematch_ray.data.readers.row_files import MEDIA, Layout
from rematch_ray.data.readers.sample_rows import Row, content, item
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError

IDS = ("_id", "id", "docid", "corpus-id", "corpus_id", "query-id", "query_id")
_TEXTS = ("text", "query", "query_text")
_IMAGES = ("image", "query_image", "image_path")
_MEDIA = ("video", "audio", "query_video", "query_audio")


def looks_like(columns: Sequence[str]) -> bool:
    """Whether columns are those of a corpus or of queries: an id of theirs beside a text or image.

    Plain `id` and `text` are too common a pair to be told from any other table.
    """
    known = {"_id", "docid", "corpus-id", "corpus_id", "query-id"} & set(columns)
    return bool(known) and bool({"text", "query", "image"} & set(columns))


def to_item(row: Row) -> Row:
    """One row as an Item.

    Raises:
        UserError: neither text nor image, no id, or a video or sound.
    """
    found = id_of(row)
    if found is None:
        raise UserError(f"there is no id; looked for {', '.join(IDS)}")
    return item(document_parts(row), id=found)


def id_of(row: Row) -> str | None:
    """The id of a row under any of its names, as text."""
    found = _first(row, IDS)
    return None if found is None else str(found)


def document_parts(row: Mapping[str, Any]) -> list:
    """Image, title and text of a document or query, in this order.

    >>> [part["text"] for part in document_parts({"title": "Tea", "text": "A drink."})]
    ['Tea A drink.']
    """
    if media := [name for name in _MEDIA if row.get(name)]:
        raise UserError(f"{media[0]!r} is given; only texts and images are read")
    text, image = _first(row, _TEXTS), _first(row, _IMAGES)
    words = [row.get("title"), text, row.get("instruction")]
    return content(" ".join(word for word in words if word), [image])


def _within(place: Place, settings: ReaderSettings) -> Place:
    """The file or folder of the corpus, or of the queries, in a data set's folder."""
    if not place.is_folder:
        return place
    if place.find(f"{settings.part}.jsonl"):
        return look(join(place.path, f"{settings.part}.jsonl"))
    inside = place.files.starting(f"{settings.part}/")
    return look(join(place.path, settings.part)) if len(inside) else place


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)


FORMATS = (
    Layout(
        name="beir",
        claim="BEIR, mteb, ViDoRe: corpus.jsonl or queries.jsonl, or a Parquet folder each",
        rows="items",
        columns=(),
        convert=to_item,
        id_of=id_of,
        detected=looks_like,
        split="test",
        within=_within,
        uses=("part", *MEDIA),
    ).to_format(),
)
