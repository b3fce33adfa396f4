import re
from collections import Counter

import pytest

from rematch_ray.data.emoji import (
    ASSETS,
    HELD_OUT,
    emoji_rows,
    rows_from_table,
    rows_of,
    rows_to_table,
)
from rematch_ray.data.emoji_sequence import decompose
from rematch_ray.data.media import decode_image
from rematch_ray.errors import UserError


def test_the_corpus_is_as_large_as_promised_and_fits_the_package():
    assert len(emoji_rows()) == 3771
    assert sum(not row.tone for row in emoji_rows()) >= 1800
    assert sum(file.stat().st_size for file in ASSETS.iterdir()) <= 8_000_000
    assert {"LICENSE-OFL.txt", "LICENSE-unicode.txt"} <= {file.name for file in ASSETS.iterdir()}


def test_every_glyph_is_a_distinct_64_pixel_picture_on_white():
    pixels = Counter()
    for row in emoji_rows():
        image = decode_image(row.image)
        assert image.size == (64, 64)
        assert (255, 255, 255) in {image.getpixel(at) for at in ((0, 0), (63, 0), (0, 63), (32, 1))}
        pixels[image.tobytes()] += 1
    assert max(pixels.values()) == 1


def test_pixel_identical_glyphs_are_one_document_with_several_names():
    by_name = {name: row for row in emoji_rows() for name in row.names}
    assert by_name["flag norway"] is by_name["flag bouvet island"]
    assert by_name["flag bouvet island"].name == "flag norway"
    assert len(by_name["flag norway"].emoji) == len(by_name["flag norway"].names) == 3


def test_names_are_lower_case_words_and_name_one_document_each():
    names = Counter(name for row in emoji_rows() for name in row.names)
    assert max(names.values()) == 1
    assert all(re.fullmatch(r"\w[\w-]*( \w[\w-]*)*", name) for name in names)
    assert all(name == name.lower() for name in names)


def test_an_alias_never_points_at_two_documents():
    called = Counter(word for row in emoji_rows() for word in {*row.names, *row.aliases})
    assert all(called[alias] == 1 for row in emoji_rows() for alias in row.aliases)


def test_held_out_parts_have_the_promised_sizes():
    assert [len(rows_of(part)) for part in HELD_OUT[:2]] == [150, 150]
    assert [len({row.base for row in rows_of(part)}) for part in HELD_OUT[2:]] == [75, 75]


def test_a_composed_emoji_has_base_tone_and_family_in_training_but_not_itself():
    train = rows_of("train")
    bases_of_tone: dict[str, set[str]] = {}
    for row in train:
        bases_of_tone.setdefault(row.tone, set()).add(row.base)
    train_bases, train_families = {row.base for row in train}, {row.family for row in train}
    train_names = {name for row in train for name in (*row.names, *row.aliases)}
    for row in rows_of("composed-validation", "composed-test"):
        assert row.tone
        assert row.base in train_bases
        assert row.family in train_families
        assert bases_of_tone[row.tone] - {row.base}
        assert row.name not in train_names


def test_a_novel_base_is_nowhere_else_with_any_composition():
    novel = {row.base for row in rows_of("novel-validation", "novel-test")}
    others = [row for row in emoji_rows() if not row.split.startswith("novel")]
    assert len(novel) == 150
    assert not novel & {row.base for row in others}
    characters = {decompose(emoji).base for row in others for emoji in row.emoji}
    assert not novel & characters
    assert not {row.base for row in rows_of("novel-validation")} & {
        row.base for row in rows_of("novel-test")
    }


def test_columns_agree_with_the_characters():
    for row in emoji_rows():
        found = decompose(row.emoji[0])
        assert (row.base, row.gender, row.tone, row.family) == (
            found.base,
            found.gender,
            found.tone,
            found.family,
        )
        assert row.group
        assert row.group != "Other"


def test_a_document_is_the_picture_alone():
    document = rows_of("novel-test")[0].document
    assert [part.kind for part in document.parts] == ["image"]
    assert document.payload["name"]


def test_rows_survive_their_table():
    rows = emoji_rows()[:20]
    assert tuple(rows_from_table(rows_to_table(rows))) == rows


def test_an_unknown_split_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'test'.*composed-validation"):
        rows_of("test")
