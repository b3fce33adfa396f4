"""The pages corpus: two or three names ask for a sheet that holds all of them.

Every page of a split that holds all named glyphs is relevant, in training rows too. Pure functions
of seed and sizes. Middle floor.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from rematch_ray.data.demo_corpus import DemoCorpus, DemoSizes, training_row
from rematch_ray.data.item import Item, Part, Sample
from rematch_ray.data.media import encode_png
from rematch_ray.data.pages import Page, draw_page, page, page_query

SOURCE = "pages"
PARTS = ("validation", "test")
SEED_STRIDE = 1_000_000  # pages of one demo seed; another seed draws others


def pages_corpus(seed: int, sizes: DemoSizes) -> DemoCorpus:
    """The corpus; the gallery is the held-out pages of both parts, one query from each."""

    def drawn(split: str, count: int) -> list[Page]:
        first = SEED_STRIDE * seed
        return [
            page(first + i, split=split, vocabulary_size=sizes.page_vocabulary)
            for i in range(count)
        ]

    sheets = {part: drawn(part, sizes.held_out_pages) for part in PARTS}
    gallery = PageIndex(sheet for found in sheets.values() for sheet in found)
    asked = {part: [page_query(sheet, 0) for sheet in found] for part, found in sheets.items()}
    return DemoCorpus(
        source=SOURCE,
        train=_rows(drawn("train", sizes.train_pages), sizes.queries_per_page),
        documents=[_document(sheet, part) for part, found in sheets.items() for sheet in found],
        queries={
            part: [Item.of(query.text, id=query.id, source=SOURCE) for query in queries]
            for part, queries in asked.items()
        },
        qrels={
            part: [
                (query.id, sheet.id, 1.0)
                for query in queries
                for sheet in gallery.holding(query.glyph_ids)
            ]
            for part, queries in asked.items()
        },
    )


class PageIndex:
    """Which pages hold a set of glyphs."""

    def __init__(self, pages: Iterable[Page]) -> None:
        self._pages = list(pages)
        self._holding: dict[str, set[int]] = defaultdict(set)
        for number, sheet in enumerate(self._pages):
            for glyph in sheet.glyphs:
                self._holding[glyph.id].add(number)

    def holding(self, glyph_ids: Sequence[str]) -> list[Page]:
        """The pages that hold every one of the glyphs, in the order given."""
        numbers = set.intersection(*(self._holding[glyph_id] for glyph_id in glyph_ids))
        return [self._pages[number] for number in sorted(numbers)]


def picture(sheet: Page) -> Item:
    """The drawn page."""
    return Item(sheet.id, (Part.of_image(encode_png(draw_page(sheet))),), source=SOURCE)


def _rows(sheets: Sequence[Page], queries_per_page: int) -> list[Sample]:
    index = PageIndex(sheets)
    pictures = {sheet.id: picture(sheet) for sheet in sheets}
    rows = []
    for sheet in sheets:
        for i in range(queries_per_page):
            query = page_query(sheet, i)
            also = [other for other in index.holding(query.glyph_ids) if other.id != sheet.id]
            rows.append(
                training_row(SOURCE, query.text, [pictures[found.id] for found in (sheet, *also)])
            )
    return rows


def _document(sheet: Page, part: str) -> Item:
    drawn = picture(sheet)
    payload = {"name": sheet.caption, "group": f"{len(sheet.glyphs)} glyphs", "split": part}
    return Item(drawn.id, drawn.parts, source=SOURCE, payload=payload)
