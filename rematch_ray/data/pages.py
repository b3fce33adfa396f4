"""Generated pages: sheets of four to nine glyphs, asked for by the names of two or three of them.

One vector cannot hold nine glyphs, so this is the test of budgets. All glyphs are training-split
emoji: a held-out page is a new combination of seen glyphs. Pure functions of seeds. Middle floor.
"""

from __future__ import annotations

import io
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image

from rematch_ray.data.emoji import EmojiRow, rows_of
from rematch_ray.errors import UserError

CELL = 48
CELLS_ACROSS = 3
GLYPH = 44
SIDE = CELL * CELLS_ACROSS
FEWEST, MOST = 4, 9
SPLITS = ("train", "validation", "test")
VOCABULARY_SIZE = 400
VOCABULARY_SEED = 0
GROUPS = (
    "Smileys & Emotion",
    "Animals & Nature",
    "Food & Drink",
    "Travel & Places",
    "Activities",
    "Objects",
)


@dataclass(frozen=True)
class Page:
    """Distinct glyphs and the cell (0 to 8, row by row) that each stands in."""

    id: str
    glyphs: tuple[EmojiRow, ...]
    cells: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the glyphs in reading order."""
        return tuple(glyph.name for glyph in self.glyphs)

    @property
    def caption(self) -> str:
        """All names, as a query would list them."""
        return listed(self.names)


@dataclass(frozen=True)
class PageQuery:
    """Two or three glyphs that a page must hold."""

    id: str
    glyph_ids: tuple[str, ...]
    text: str

    def is_answered_by(self, page: Page) -> bool:
        """Whether the page holds every named glyph."""
        return set(self.glyph_ids) <= {glyph.id for glyph in page.glyphs}


@lru_cache(maxsize=4)
def page_vocabulary(size: int = VOCABULARY_SIZE) -> tuple[EmojiRow, ...]:
    """The glyphs that pages are made of: training split; no people, flags, signs or clocks.

    Args:
        size: how many; a smaller vocabulary is the beginning of a larger one.
    """
    rows = [
        row
        for row in rows_of("train")
        if row.group in GROUPS and row.subgroup != "time" and not (row.tone or row.gender)
    ]
    if not MOST <= size <= len(rows):
        raise UserError(f"page vocabulary {size} is out of range; allowed: {MOST} to {len(rows)}")
    random.Random(VOCABULARY_SEED).shuffle(rows)
    return tuple(rows[:size])


def page(seed: int, *, split: str = "train", vocabulary_size: int = VOCABULARY_SIZE) -> Page:
    """A page: four to nine distinct glyphs in random cells.

    Args:
        seed: the draw; also the number in the page's id.
        split: `train`, `validation` or `test`; each has draws of its own.
        vocabulary_size: glyphs to draw from.

    Returns:
        The page, glyphs in reading order; the same for the same arguments.
    """
    if split not in SPLITS:
        raise UserError(f"page split {split!r} is unknown; allowed: {', '.join(SPLITS)}")
    draw = random.Random(f"page:{split}:{seed}")
    num_glyphs = draw.randint(FEWEST, MOST)
    glyphs = draw.sample(page_vocabulary(vocabulary_size), num_glyphs)
    cells = sorted(draw.sample(range(CELLS_ACROSS**2), num_glyphs))
    return Page(f"page-{split}-{seed}", tuple(glyphs), tuple(cells))


def page_query(page: Page, seed: int) -> PageQuery:
    """A query that the page answers: the names of two or three of its glyphs, in random order."""
    draw = random.Random(f"query:{page.id}:{seed}")
    named = draw.sample(page.glyphs, draw.choice((2, 3)))
    return PageQuery(
        f"{page.id}-query-{seed}",
        tuple(glyph.id for glyph in named),
        listed([glyph.name for glyph in named]),
    )


def relevant_pages(query: PageQuery, pages: Iterable[Page]) -> list[Page]:
    """Every page that holds all named glyphs."""
    return [page for page in pages if query.is_answered_by(page)]


def listed(names: Sequence[str]) -> str:
    """Names as a list in words.

    >>> listed(["otter", "key", "red heart"])
    'otter, key and red heart'
    """
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def draw_page(page: Page) -> Image.Image:
    """Draw a page: RGB, 144 x 144, white, each glyph 44 x 44 in the middle of its cell."""
    sheet = Image.new("RGB", (SIDE, SIDE), "white")
    inset = (CELL - GLYPH) // 2
    for glyph, cell in zip(page.glyphs, page.cells, strict=True):
        row, column = divmod(cell, CELLS_ACROSS)
        sheet.paste(_small_glyph(glyph), (column * CELL + inset, row * CELL + inset))
    return sheet


@lru_cache(maxsize=1024)
def _small_glyph(glyph: EmojiRow) -> Image.Image:
    image = Image.open(io.BytesIO(glyph.image)).convert("RGB")
    return image.resize((GLYPH, GLYPH), Image.Resampling.LANCZOS)
