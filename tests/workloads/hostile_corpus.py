"""A corpus of texts, images and both in turn, a share of them hostile; every row from a seed."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rematch_ray.data.schema import Item, items_to_table, write_parquet
from tests.hostile import HOSTILE
from tests.tiny import COLOURS, png

WORDS = ["a", "red", "circle", "left", "of", "the", "blue", "bar", "above", "green", "stars"]


@dataclass
class Written:
    """What a corpus holds.

    Attributes:
        rows: all of them.
        bad: kind of every hostile row, by id.
    """

    rows: int
    bad: dict[str, str] = field(default_factory=dict)


def write_corpus(
    folder: Path, rows: int, *, hostile: int, rows_per_file: int, seed: int = 0
) -> Written:
    """Write Parquet files of Items.

    Args:
        folder: made.
        rows: all rows.
        hostile: how many of them have an image that cannot be decoded, of ten kinds in turn.
        rows_per_file: rows of each file.
        seed: of texts, images and places.
    """
    draw = random.Random(seed)
    kinds = list(HOSTILE)
    places = dict(zip(sorted(draw.sample(range(rows), hostile)), range(hostile), strict=True))
    written = Written(rows)
    pictures = [png(colour, 32, side) for colour in COLOURS for side in (32, 48)]

    def items() -> Iterator[Item]:
        for number in range(rows):
            name = f"row-{number:06d}"
            text = " ".join(draw.choices(WORDS, k=draw.randint(1, 12)))
            picture = draw.choice(pictures)
            parts: list[str | bytes] = [[text], [picture], [text, picture, text]][number % 3]
            if number in places:
                kind = kinds[places[number] % len(kinds)]
                written.bad[name] = kind
                attack = HOSTILE[kind](places[number] // len(kinds))
                parts = [[attack], [picture, attack], [text, attack, text]][number % 3]
            yield Item.of(
                *parts, id=name, source=f"source-{number % 2}", payload={"number": number}
            )

    stream = items()
    for file in range(0, rows, rows_per_file):
        some = [next(stream) for _ in range(min(rows_per_file, rows - file))]
        write_parquet(items_to_table(some), folder / f"{file:07d}.parquet")
    return written
