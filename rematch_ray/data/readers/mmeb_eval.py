"""MMEB's evaluation sets, V1 and the image tasks of V2: queries, their targets, what is right.

A row holds `qry_text, qry_img_path` and lists `tgt_text, tgt_img_path` whose first entry is right;
V2 adds `qry_inst` and `tgt_inst`. Targets repeat from row to row, so the corpus of a subset is
their set. V2's visual documents are BEIR-style (beir.py); its videos are not read. Middle floor.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.mmeb import TAG, listed
from rematch_ray.data.readers.sample_rows import Row, content, item
from rematch_ray.data.schema import QRELS_SCHEMA

NAME = "mmeb-eval"
# instruction, text, path of the image; "" where there is none
Target = tuple[str, str, str]
COLUMNS = ("qry_text", "qry_img_path", "tgt_text")


def to_query(row: Row, subset: str) -> Row:
    """The query of a row as an Item.

    Args:
        row: the row, with its number in the subset as `number`, which becomes the id.
        subset: name of the subset.

    Raises:
        UserError: more or fewer images than placeholders, or neither text nor image.
    """
    parts = content(_joined(row.get("qry_inst"), row["qry_text"]), [row["qry_img_path"]], tag=TAG)
    return item(parts, id=query_id(subset, row["number"]), source=subset)


def to_document(target: Target, subset: str) -> Row:
    """A target as an Item.

    Args:
        target: from `targets_of`.
        subset: name of the subset.
    """
    instruction, text, image = target
    words = _joined(instruction, text) if image else text
    return item(
        content(words, [image], tag=TAG), id=document_id(subset, text, image), source=subset
    )


def targets_of(rows: Iterable[Row]) -> list[Target]:
    """The targets of all rows as (instruction, text, image), each once, in order of appearance."""
    found: dict[tuple[str, str], str] = {}
    for row in rows:
        for text, image in _targets(row):
            found.setdefault((text, image), row.get("tgt_inst") or "")
    return [(instruction, *target) for target, instruction in found.items()]


def qrels_of(rows: Iterable[Row], subset: str) -> pa.Table:
    """Judgements of a subset: score 1 for a row's first target, 0 for its other candidates."""
    lines = [
        {
            "query_id": query_id(subset, number),
            "document_id": document_id(subset, text, image),
            "score": float(place == 0),
        }
        for number, row in enumerate(rows)
        for place, (text, image) in enumerate(dict.fromkeys(_targets(row)))
    ]
    return pa.Table.from_pylist(lines, schema=QRELS_SCHEMA)


def query_id(subset: str, number: int) -> str:
    """Id of the query in a row."""
    return f"{subset}/{number}"


def document_id(subset: str, text: str, image: str) -> str:
    """Id of a target: the path of its image where that says all, else a hash of text and path.

    >>> document_id("CIRR", "", "CIRR/a.png"), len(document_id("VOC2007", "a dog", ""))
    ('CIRR/CIRR/a.png', 40)
    """
    if image and not text:
        return f"{subset}/{image}"
    digest = hashlib.sha256(json.dumps([text, image]).encode())
    return f"{subset}/{digest.hexdigest()[:32]}"


def _targets(row: Row) -> list[tuple[str, str]]:
    texts, images = listed(row["tgt_text"]), listed(row.get("tgt_img_path"))
    wide = max(len(texts), len(images))
    pairs = zip(_filled(texts, wide), _filled(images, wide))
    return [(text.strip(), image) for text, image in pairs if text.strip() or image]


def _filled(cells: list[Any], wide: int) -> list[str]:
    return [cell or "" for cell in [*cells, *[""] * (wide - len(cells))]]


def _joined(*texts: str | None) -> str:
    return " ".join(text.strip() for text in texts if text and text.strip())
