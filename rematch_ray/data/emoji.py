"""The shipped emoji: colour glyphs with their official English names, read from the package.

Real pictures with real names, rendered once by `jobs/render_emoji.py` (`data/emoji_render.py`). The
held-out parts are columns of the shards, so every reader sees the same split. This module does not
know models or training. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rematch_ray.data.schema import Item, Part, items_from_table, items_to_table
from rematch_ray.errors import UserError

ASSETS = Path(__file__).resolve().parents[1] / "assets" / "emoji"
SOURCE = "emoji"
SPLITS = ("train", "composed-validation", "composed-test", "novel-validation", "novel-test")
HELD_OUT = SPLITS[1:]

PAYLOAD = pa.struct(
    [
        ("name", pa.string()),
        ("names", pa.list_(pa.string())),
        ("aliases", pa.list_(pa.string())),
        ("keywords", pa.list_(pa.string())),
        ("emoji", pa.list_(pa.string())),
        ("group", pa.string()),
        ("subgroup", pa.string()),
        ("base", pa.string()),
        ("family", pa.string()),
        ("gender", pa.string()),
        ("tone", pa.string()),
        ("split", pa.string()),
    ]
)


@dataclass(frozen=True)
class EmojiRow:
    """One document: a glyph and everything known about it.

    Attributes:
        id: `emoji-` and the code points in hex.
        image: PNG, 64 x 64, on white.
        emoji: the characters that look like this (several when their glyphs are pixel-identical).
        names: official English names, lower case, in the order of `emoji`.
        aliases: other ways to say it.
        keywords: single words and short phrases from Unicode's annotations.
        group: Unicode's group, e.g. `People & Body`.
        subgroup: Unicode's subgroup, e.g. `person-role`.
        base: key of all emoji with the same base, whatever gender and tone.
        family: key of all emoji that differ in skin tone alone (same base and gender).
        gender: `woman`, `man`, `woman man`, ..., or empty.
        tone: `light`, `medium-light`, `medium`, `medium-dark`, `dark`, two joined by `+`, or empty.
        split: one of `SPLITS`.
    """

    id: str
    image: bytes
    emoji: tuple[str, ...]
    names: tuple[str, ...]
    aliases: tuple[str, ...]
    keywords: tuple[str, ...]
    group: str
    subgroup: str
    base: str
    family: str
    gender: str
    tone: str
    split: str

    @property
    def name(self) -> str:
        """The official name; of several, the shortest (`flag france`, not `... clipperton`)."""
        return min(self.names, key=len)

    @property
    def document(self) -> Item:
        """The document: the image alone, its name in the payload for showing."""
        payload = {
            "name": self.name,
            "group": self.group,
            "emoji": self.emoji[0],
            "family": self.family,
            "split": self.split,
        }
        return Item(self.id, (Part.of_image(self.image),), source=SOURCE, payload=payload)


@lru_cache(maxsize=1)
def emoji_rows() -> tuple[EmojiRow, ...]:
    """Every shipped emoji, in Unicode's order, with its split.

    Returns:
        About 3,800 rows; use `rows_of(split)` for one part.

    Raises:
        UserError: the shards are not in the package.
    """
    files = sorted(ASSETS.glob("emoji-*.parquet"))
    if not files:
        raise UserError(
            f"no emoji shards in {ASSETS}; install the package with its data, or make them with "
            "`python jobs/render_emoji.py`"
        )
    return tuple(
        row for file in files for row in rows_from_table(pq.read_table(file), where=str(file))
    )


def rows_of(*splits: str) -> tuple[EmojiRow, ...]:
    """The rows of the named splits, in order."""
    unknown = set(splits) - set(SPLITS)
    if unknown:
        raise UserError(f"emoji split {sorted(unknown)} is unknown; allowed: {', '.join(SPLITS)}")
    return tuple(row for row in emoji_rows() if row.split in splits)


def rows_to_table(rows: Iterable[EmojiRow]) -> pa.Table:
    """Rows as a table of Items whose payload holds every field."""
    return items_to_table((_item(row) for row in rows), PAYLOAD)


def rows_from_table(table: pa.Table, *, where: str = "table") -> list[EmojiRow]:
    """Rows of a table made by `rows_to_table`."""
    return [_row(item) for item in items_from_table(table, where=where)]


def _item(row: EmojiRow) -> Item:
    payload = {field.name: getattr(row, field.name) for field in PAYLOAD}
    return Item(row.id, (Part.of_image(row.image),), source=SOURCE, payload=payload)


def _row(item: Item) -> EmojiRow:
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in item.payload.items()
        if key != "name"
    }
    return EmojiRow(id=item.id, image=item.parts[0].image or b"", **fields)
