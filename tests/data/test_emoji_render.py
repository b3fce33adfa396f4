import dataclasses
import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageFont

from rematch_ray.data import emoji_render
from rematch_ray.data.emoji import emoji_rows, rows_from_table
from rematch_ray.data.emoji_render import (
    draw_glyph,
    merge_identical,
    palette_png,
    place_of,
    read_places,
    split,
    write_shards,
)
from rematch_ray.data.readers.parquet import read_table
from rematch_ray.errors import UserError

EMOJI_TEST = """
# group: Animals & Nature
# subgroup: animal-bird
1F426                                    ; fully-qualified     # 🐦 E0.6 bird
1F426 200D 2B1B                          ; fully-qualified     # 🐦‍⬛ E15.0 black bird
# group: Symbols
# subgroup: keycap
0031 FE0F 20E3                           ; fully-qualified     # 1️⃣ E0.6 keycap: 1
0031 20E3                                ; unqualified         # 1⃣ E0.6 keycap: 1
"""


def test_the_shipped_split_is_what_the_seed_gives():
    rows = list(emoji_rows())
    blank = [dataclasses.replace(row, split="train") for row in rows]
    assert [row.split for row in split(blank, seed=0)] == [row.split for row in rows]
    other = Counter(row.split for row in split(blank, seed=1))
    assert other["composed-test"] == other["composed-validation"] == 150
    assert [row.split for row in split(blank, seed=1)] != [row.split for row in rows]


def test_at_most_a_third_of_a_family_is_held_out():
    sizes = Counter(row.family for row in emoji_rows())
    held = Counter(row.family for row in emoji_rows() if row.split.startswith("composed"))
    assert all(held[family] <= sizes[family] // 3 for family in held)


def test_places_come_from_unicode_and_newer_emoji_stand_behind_their_first_point():
    places = read_places(EMOJI_TEST)
    assert (places["1f426"].group, places["31-20e3"].subgroup) == ("Animals & Nature", "keycap")
    phoenix = place_of("🐦‍🔥", places)
    assert phoenix.group == "Animals & Nature"
    assert phoenix.order == places["1f426"].order + 0.5
    assert place_of("🦦", places).group == "Other"


def test_identical_pixels_become_one_row_with_every_name():
    first, second, third = emoji_rows()[:3]
    twin = dataclasses.replace(second, image=first.image)
    merged = merge_identical([first, twin, third])
    assert [row.id for row in merged] == [first.id, third.id]
    assert merged[0].names == (*first.names, *second.names)
    assert merged[0].emoji == (*first.emoji, *second.emoji)
    assert not set(merged[0].names) & set(merged[0].aliases)


def test_the_palette_keeps_white_white_and_every_colour_near():
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    pixels = np.stack(
        [np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 90)]
    )
    pixels = pixels.transpose(1, 2, 0).astype(np.uint8)
    pixels[:20] = 255
    stored = np.asarray(Image.open(io.BytesIO(palette_png(Image.fromarray(pixels)))).convert("RGB"))
    assert (stored[:20] == 255).all()
    assert np.abs(stored.astype(int) - pixels).mean() < 8


def test_shards_hold_all_rows_in_order(tmp_path):
    rows = list(emoji_rows()[:10])
    files = write_shards(rows, tmp_path, seed=7)
    assert len(files) == emoji_render.NUM_SHARDS
    table = read_table(tmp_path)
    assert rows_from_table(table) == rows


def test_without_the_font_rendering_says_what_to_install(tmp_path):
    with pytest.raises(UserError, match="fonts-noto-color-emoji"):
        emoji_render.render(seed=0, font=tmp_path / "no.ttf")


@pytest.mark.skipif(not emoji_render.FONT.exists(), reason="the colour font is not installed")
def test_the_font_draws_what_the_package_ships():
    typeface = ImageFont.truetype(str(emoji_render.FONT), emoji_render.FONT_SIZE)
    shipped = {emoji: row.image for row in emoji_rows() for emoji in row.emoji}
    for emoji in ("🦦", "👩🏽‍🚀", "🇳🇴"):
        drawn = Image.open(io.BytesIO(draw_glyph(emoji, typeface))).convert("RGB")
        kept = Image.open(io.BytesIO(shipped[emoji])).convert("RGB")
        assert np.abs(np.asarray(drawn, int) - np.asarray(kept, int)).mean() < 3
    assert draw_glyph("\U000f0000", typeface) is None
    assert draw_glyph("🦦🦦", typeface) is None
