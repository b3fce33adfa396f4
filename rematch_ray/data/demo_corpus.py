"""What a demo corpus consists of, and how much of it to make.

Emoji, scenes and pages come in this one shape, so that everything after them is the same code. It
does not know files. Middle floor.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from rematch_ray.data.item import Item, Negative, Positive, Sample

Qrel = tuple[str, str, float]
Swap = tuple[str, str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class DemoSizes:
    """How much of each corpus to make; None is all of it."""

    emoji_train: int | None = None
    """Training emoji, drawn at random; all of them stand in the gallery."""
    emoji_held_out: int | None = None
    """Held-out emoji of each part."""
    emoji_negatives: int = 3
    """Hard negatives of each emoji row."""
    scene_train_families: int | None = None
    """Training families of 8 scenes."""
    scene_held_out_families: int | None = None
    """Held-out families of each part."""
    scene_wordings: int = 2
    """Rows of each training scene; each has a wording and a picture of its own."""
    train_pages: int = 2000
    """Training pages."""
    queries_per_page: int = 2
    """Rows of each training page."""
    held_out_pages: int = 500
    """Held-out pages of each part; each gives one query."""
    page_vocabulary: int = 100
    """Glyphs that pages are made of."""

    @classmethod
    def quick(cls) -> DemoSizes:
        """Small enough to walk the whole path in two minutes; says nothing about quality."""
        return cls(
            emoji_train=300,
            emoji_held_out=30,
            scene_train_families=60,
            scene_held_out_families=6,
            scene_wordings=1,
            train_pages=200,
            held_out_pages=40,
            page_vocabulary=60,
        )


@dataclass(frozen=True)
class DemoCorpus:
    """One corpus.

    Attributes:
        source: its name.
        train: training rows.
        documents: the whole gallery.
        queries: by part.
        qrels: (query id, document id, grade) by part.
        families: document id -> named keys (`family`, ...); documents that share one are hard to
            tell apart.
        swaps: (query id, document id, kind) by part: what a swap of the query's own scene shows.
    """

    source: str
    train: Sequence[Sample]
    documents: Sequence[Item]
    queries: Mapping[str, Sequence[Item]]
    qrels: Mapping[str, Sequence[Qrel]]
    families: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    swaps: Mapping[str, Sequence[Swap]] = field(default_factory=dict)


def training_row(
    source: str, text: str, positives: Sequence[Item], negatives: Sequence[Negative] = ()
) -> Sample:
    """A row that asks by text for an image; equal texts have equal query ids."""
    return Sample(
        query=Item.of(text, source=source),
        positives=tuple(Positive(item) for item in positives),
        negatives=tuple(negatives),
        target_modality="image",
        source=source,
    )


def some(rows: Sequence[T], count: int | None, draw: random.Random) -> list[T]:
    """`count` of the rows, drawn at random and kept in order; None, or too many, is all."""
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(draw.sample(range(len(rows)), count))]
