"""A corpus of mixed sizes, drawn by a seed: short and long texts, small and large pictures, both.

What is measured with it depends on sizes only: texts are words of a list, pictures are noise that
compresses as photographs do, more or less. The sizes repeat every `PERIOD` rows: a few long texts
weigh much, and arms that measured different rows of one corpus differed by a quarter in padding.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from rematch_ray.data.item import Item
from rematch_ray.data.schema import items_to_table, write_parquet

WORDS = tuple(
    "the a of and in on under over left right small large red green blue yellow bar circle square "  # noqa: SIM905
    "train market river old new bright dark paper page table number three seven first last".split()
)
PERIOD = 256
ROWS_PER_FILE = 2 * PERIOD
ROW_GROUP_BYTES = 2 * 2**20


def write_corpus(folder: Path, rows: int, *, seed: int = 0) -> Path:
    """Writes `rows` items in files of our own schema; the first rows of two corpora are the same.

    Args:
        folder: of the files.
        rows: a third texts, a third pictures, a third pictures with a text.
        seed: of the draw.
    """
    for number, start in enumerate(range(0, rows, ROWS_PER_FILE)):
        items = [
            Item.of(*_parts(seed, row % PERIOD), id=f"row-{row}", source="mixed")
            for row in range(start, min(start + ROWS_PER_FILE, rows))
        ]
        write_parquet(
            items_to_table(items), folder / f"{number:05d}.parquet", row_group_bytes=ROW_GROUP_BYTES
        )
    return folder


def _parts(seed: int, row: int) -> Iterator[str | bytes]:
    draw = np.random.default_rng([seed, row])
    if row % 3 != 1:
        # words of a text: median 20, one in twenty beyond 90
        count = int(np.clip(draw.lognormal(3.0, 0.9), 2, 300))
        yield " ".join(draw.choice(WORDS, count))
    if row % 3 != 0:
        yield _picture(draw)


def _picture(draw: np.random.Generator) -> bytes:
    width, height = (int(x) for x in draw.integers(40, 220, 2))
    coarse = draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return buffer.getvalue()
