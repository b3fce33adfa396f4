"""MMEB-train: rows of `qry, pos_text, neg_text` and the paths of their images.

TIGER-Lab/MMEB-train keeps a Parquet file per subset and split beside a folder of unpacked images.
Texts hold Phi-3's `<|image_1|>` where the image stands. Middle floor.
"""

from __future__ import annotations

import re
from typing import Any

from rematch_ray.data.readers.row_files import Layout
from rematch_ray.data.readers.sample_rows import Row, content, item, sample

TAG = re.compile(r"<\|image_\d+\|>")
COLUMNS = ("qry", "qry_image_path", "pos_text", "pos_image_path")


def to_sample(row: Row) -> Row:
    """One row as a Sample; negatives may be missing, one, or a list of them.

    Raises:
        UserError: more or fewer images than placeholders, or neither text nor image.
    """
    texts, images = listed(row.get("neg_text")), listed(row.get("neg_image_path"))
    wide = max(len(texts), len(images))
    negatives = [
        item(content(text, [image], tag=TAG))
        for text, image in zip(_padded(texts, wide), _padded(images, wide))
        if text or image
    ]
    return sample(
        item(content(row["qry"], [row["qry_image_path"]], tag=TAG)),
        [item(content(row["pos_text"], [row["pos_image_path"]], tag=TAG))],
        negatives,
    )


def listed(cell: Any) -> list[Any]:
    """A cell that holds one value, a list of them, or none, as a list."""
    if cell is None:
        return []
    return list(cell) if isinstance(cell, list) else [cell]


def _padded(cells: list[Any], wide: int) -> list[Any]:
    return [*cells, *[None] * (wide - len(cells))]


FORMATS = (
    Layout(
        name="mmeb",
        claim="MMEB-train: columns qry, qry_image_path, pos_text, pos_image_path",
        rows="samples",
        columns=COLUMNS,
        convert=to_sample,
        split="original",
    ).to_format(),
)
