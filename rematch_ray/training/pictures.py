"""The demo corpora as pictures with true and false statements, for generative pretraining.

Only training splits feed pretraining; held-out parts are offered by name for measuring. Knows the
corpora and the row encoder; nothing of losses or optimisers. Middle floor.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

from rematch_ray.data.emoji import EmojiRow, rows_of
from rematch_ray.data.pages import Page, draw_page, listed, page, page_query, page_vocabulary
from rematch_ray.data.rows import RowEncoder
from rematch_ray.data.scene_drawing import draw_scene
from rematch_ray.data.scenes import Scene, scene_swaps, scenes_of
from rematch_ray.data.schema import Item
from rematch_ray.errors import UserError
from rematch_ray.training.generative import Picture

HELD_OUT = ("composed", "novel", "scenes", "pages")


def training_texts() -> Iterator[str]:
    """Every text of the training splits, for the tokenizer."""
    for row in rows_of("train"):
        yield from (*row.names, *row.aliases, *row.keywords)
    for scene in scenes_of("train"):
        yield from scene.captions


def training_pictures(
    encoder: RowEncoder, *, scene_drawings: int = 2, num_pages: int = 1200
) -> list[Picture]:
    """Pictures of the training splits of all three corpora, encoded once and kept.

    Args:
        encoder: the model's row encoder.
        scene_drawings: drawings of each scene, each with its own jitter.
        num_pages: training pages.
    """
    pictures = list(_emoji(rows_of("train"), encoder))
    for drawing in range(scene_drawings):
        pictures += _scenes(scenes_of("train"), encoder, drawing=drawing)
    return [*pictures, *_pages("train", num_pages, encoder)]


def held_out_pictures(
    part: str, encoder: RowEncoder, *, split: str = "validation"
) -> list[Picture]:
    """Pictures never pretrained on.

    Args:
        part: `composed`, `novel` (emoji), `scenes` or `pages`.
        encoder: the model's row encoder.
        split: `validation` or `test`.

    Raises:
        UserError: an unknown part.
    """
    if part in ("composed", "novel"):
        rows = rows_of(f"{part}-{split}")
        return list(_emoji(rows, encoder, siblings=rows_of("train", f"{part}-{split}")))
    if part == "scenes":
        return list(_scenes(scenes_of(split), encoder, drawing=0))
    if part == "pages":
        return list(_pages(split, 200, encoder))
    raise UserError(f"unknown part {part!r}; allowed: {', '.join(HELD_OUT)}")


def _emoji(
    rows: Iterable[EmojiRow], encoder: RowEncoder, *, siblings: Iterable[EmojiRow] | None = None
) -> Iterator[Picture]:
    rows = tuple(rows)
    by_base: dict[str, list[EmojiRow]] = defaultdict(list)
    for row in siblings or rows:
        by_base[row.base].append(row)
    for row in rows:
        truths = (*row.names, *row.aliases)
        lies = {name for other in by_base[row.base] if other.id != row.id for name in other.names}
        yield Picture(
            row=encoder.encode(row.document, "document"),
            source="emoji",
            captions=(row.name,),
            truths=truths,
            lies=tuple(sorted(lies.difference(truths))),
        )


def _scenes(scenes: Iterable[Scene], encoder: RowEncoder, *, drawing: int) -> Iterator[Picture]:
    for number, scene in enumerate(scenes):
        image = draw_scene(scene, seed=drawing * 1_000_003 + number)
        lies = [text for _, swap in scene_swaps(scene) for text in swap.captions]
        yield Picture(
            row=encoder.encode(Item.of(image, id=scene.id, source="scenes"), "document"),
            source="scenes",
            captions=(scene.caption,),
            truths=scene.captions,
            lies=tuple(lies),
        )


def _pages(split: str, count: int, encoder: RowEncoder) -> Iterator[Picture]:
    for seed in range(count):
        sheet = page(seed, split=split)
        truths = [*sheet.names, *(page_query(sheet, draw).text for draw in range(8))]
        item = Item.of(draw_page(sheet), id=sheet.id, source="pages")
        yield Picture(
            row=encoder.encode(item, "document"),
            source="pages",
            captions=(sheet.caption,),
            truths=tuple(truths),
            lies=tuple(_page_lies(sheet, random.Random(f"lie:{sheet.id}"))),
        )


def _page_lies(sheet: Page, draw: random.Random, *, count: int = 8) -> Iterator[str]:
    """Names of which exactly one is not on the page."""
    absent = [glyph.name for glyph in page_vocabulary() if glyph.name not in sheet.names]
    for _ in range(count):
        names = [*draw.sample(sheet.names, draw.choice((0, 1, 2))), draw.choice(absent)]
        draw.shuffle(names)
        yield listed(names)
