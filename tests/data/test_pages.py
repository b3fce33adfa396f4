from itertools import islice

import numpy as np
import pytest

from rematch_ray.data.pages import (
    CELL,
    CELLS_ACROSS,
    SPLITS,
    draw_page,
    page,
    page_query,
    page_vocabulary,
    relevant_pages,
)
from rematch_ray.errors import UserError


@pytest.mark.parametrize("split", SPLITS)
def test_a_page_holds_four_to_nine_distinct_training_glyphs(split):
    pages = [page(seed, split=split) for seed in range(50)]
    assert pages == [page(seed, split=split) for seed in range(50)]
    assert {len(found.glyphs) for found in pages} == set(range(4, 10))
    for found in pages:
        assert len({glyph.id for glyph in found.glyphs}) == len(found.glyphs)
        assert {glyph.split for glyph in found.glyphs} == {"train"}
        assert list(found.cells) == sorted(set(found.cells))
        assert set(found.cells) <= set(range(9))


def test_held_out_pages_are_new_combinations():
    combinations = {
        split: {
            frozenset(glyph.id for glyph in page(seed, split=split).glyphs) for seed in range(300)
        }
        for split in SPLITS
    }
    assert not combinations["train"] & (combinations["validation"] | combinations["test"])
    assert not combinations["validation"] & combinations["test"]


def test_the_vocabulary_is_fixed_and_nested():
    assert page_vocabulary(50) == page_vocabulary(400)[:50]
    assert all(not row.tone and not row.gender for row in page_vocabulary())
    with pytest.raises(UserError, match="vocabulary 3 is out of range; allowed: 9 to"):
        page_vocabulary(3)


def test_a_query_names_two_or_three_glyphs_of_its_page():
    for seed in range(40):
        found = page(seed)
        query = page_query(found, seed)
        assert len(query.glyph_ids) in (2, 3)
        assert query.is_answered_by(found)
        names = [glyph.name for glyph in found.glyphs if glyph.id in query.glyph_ids]
        assert all(name in query.text for name in names)
        assert query.text.count(" and ") >= 1


def test_relevant_is_every_page_that_holds_all_named_glyphs_and_no_other():
    pages = [page(seed, vocabulary_size=12) for seed in range(60)]
    query = page_query(pages[0], 0)
    relevant = relevant_pages(query, pages)
    assert pages[0] in relevant
    assert 1 < len(relevant) < len(pages)
    for found in pages:
        held = {glyph.id for glyph in found.glyphs}
        assert (found in relevant) == all(glyph_id in held for glyph_id in query.glyph_ids)


def test_glyphs_are_drawn_in_their_cells_and_the_rest_is_white():
    for found in islice(map(page, range(20)), 20):
        pixels = np.asarray(draw_page(found))
        assert pixels.shape == (144, 144, 3)
        for cell in range(9):
            row, column = divmod(cell, CELLS_ACROSS)
            block = pixels[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL]
            assert (block < 255).any() == (cell in found.cells)


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="'dev' is unknown"):
        page(0, split="dev")
