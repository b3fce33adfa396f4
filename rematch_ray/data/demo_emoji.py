"""The emoji corpus: a name asks for a glyph among all glyphs.

Hard negatives differ in what the test asks for: other skin tones, other genders, then neighbours in
Unicode's subgroups. Pure functions of seed and sizes. Middle floor.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rematch_ray.data.demo_corpus import DemoCorpus, DemoSizes, Qrel, some, training_row
from rematch_ray.data.emoji import HELD_OUT, SOURCE, EmojiRow, rows_of
from rematch_ray.data.item import Item, Negative, Part


def emoji_corpus(seed: int, sizes: DemoSizes) -> DemoCorpus:
    """The corpus: every emoji, training and held out, stands in the gallery.

    Training rows are the official names and the aliases of training emoji; queries are the official
    names of held-out ones, and their payload says whether training saw every word of the name.
    """
    draw = random.Random(f"emoji:{seed}")
    train = some(rows_of("train"), sizes.emoji_train, draw)
    parts = {part: some(rows_of(part), sizes.emoji_held_out, draw) for part in HELD_OUT}
    negatives = NegativeDraw(train, draw)
    rows = [
        training_row(SOURCE, text, [picture(row)], negatives.of(row, sizes.emoji_negatives))
        for row in train
        for text in (*row.names, *row.aliases)
    ]
    seen = {word for row in rows for word in row.query.text.split()}
    asked = {part: _queries(held_out, seen) for part, held_out in parts.items()}
    gallery = [*train, *(row for held_out in parts.values() for row in held_out)]
    return DemoCorpus(
        source=SOURCE,
        train=rows,
        documents=[row.document for row in gallery],
        queries={part: queries for part, (queries, _) in asked.items()},
        qrels={part: qrels for part, (_, qrels) in asked.items()},
        families={row.id: {"family": row.family, "base": row.base} for row in gallery},
    )


def picture(row: EmojiRow) -> Item:
    """The glyph without payload, as training rows carry it."""
    return Item(row.id, (Part.of_image(row.image),), source=SOURCE)


class NegativeDraw:
    """Draws hard negatives among training emoji, the hardest kinds first."""

    def __init__(self, rows: Iterable[EmojiRow], draw: random.Random) -> None:
        self._draw = draw
        self._members: dict[tuple[str, str], list[EmojiRow]] = defaultdict(list)
        for row in rows:
            for key in _kinships(row):
                self._members[key].append(row)

    def of(self, row: EmojiRow, count: int) -> list[Negative]:
        """At most two of other tones and one of another gender; the rest neighbours."""
        chosen: dict[str, Negative] = {}
        for key, limit in zip(_kinships(row), (2, 1, count, count), strict=True):
            others = [
                other
                for other in self._members[key]
                if other.id not in chosen and other.id != row.id and _differs(key[0], other, row)
            ]
            for other in self._draw.sample(others, min(limit, count - len(chosen), len(others))):
                chosen[other.id] = Negative(picture(other), key[0])
        return list(chosen.values())


def _kinships(row: EmojiRow) -> list[tuple[str, str]]:
    return [
        ("swap:tone", row.family),
        ("swap:gender", row.base),
        ("near:subgroup", row.subgroup),
        ("near:group", row.group),
    ]


def _differs(kinship: str, other: EmojiRow, row: EmojiRow) -> bool:
    """Whether they differ in what the kinship is about, and in nothing else that it can keep."""
    if kinship == "swap:tone":
        return True
    if kinship == "swap:gender":
        return other.gender != row.gender and other.tone == row.tone
    return other.base != row.base


def _queries(rows: Sequence[EmojiRow], seen: set[str]) -> tuple[list[Item], list[Qrel]]:
    """One query for each official name of each row."""
    queries: list[Item] = []
    qrels: list[Qrel] = []
    for row in rows:
        for i, name in enumerate(row.names):
            query_id = f"query-{row.id}" + (f"-{i}" if i else "")
            payload = {"all_words_seen": set(name.split()) <= seen}
            queries.append(Item.of(name, id=query_id, source=SOURCE, payload=payload))
            qrels.append((query_id, row.id, 1.0))
    return queries, qrels
