"""Documents are told apart by id, source and canonical content."""

import io

import pytest
from PIL import Image

from rematch_ray.data.item import Item, Part
from rematch_ray.errors import UserError
from rematch_ray.index.mining.references import (
    IMAGE,
    TEXT,
    ReferenceMaker,
    References,
    item_modality,
    parse_modality,
    same,
)
from tests.tiny import picture, png


@pytest.fixture
def make() -> ReferenceMaker:
    return ReferenceMaker(max_pixels=10_000)


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_the_same_pixels_in_another_file_are_the_same_content(make: ReferenceMaker) -> None:
    as_png, as_bmp = (encoded(picture("red"), kind) for kind in ("PNG", "BMP"))
    assert as_png != as_bmp
    assert make.of(Item.of(as_png)).content == make.of(Item.of(as_bmp)).content
    assert make.of(Item.of(as_png)).content != make.of(Item.of(png("blue"))).content
    wide = Image.new("RGB", (4, 2), "red"), Image.new("RGB", (2, 4), "red")
    assert make.of(Item.of(wide[0])).content != make.of(Item.of(wide[1])).content


def test_blank_space_and_unicode_forms_do_not_make_another_text(make: ReferenceMaker) -> None:
    one = make.of(Item.of("caf\u00e9  au lait ")).content
    assert one == make.of(Item.of("cafe\u0301 au\nlait")).content
    assert one != make.of(Item.of("cafe au lait")).content


def test_where_texts_are_cut_and_what_comes_first_belongs_to_the_content(
    make: ReferenceMaker,
) -> None:
    contents = {
        make.of(Item.of(*parts)).content
        for parts in (("ab", "c"), ("a", "bc"), (png(), "a"), ("a", png()))
    }
    assert len(contents) == 4


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (Part.of_image(png()[:40]), "are not an image we read"),
        (Part("image", uri="s3://there"), "no bytes, only a uri"),
        (Part.of_image(png("red", 200, 200)), "too many pixels"),
    ],
)
def test_what_cannot_be_decoded_keeps_its_ids_and_says_why(
    make: ReferenceMaker, part: Part, reason: str
) -> None:
    found = make.of(Item.of("name", part, id="x"), "notes")
    assert reason in found.problem
    assert found.id_key == make.of(Item.of("other", id="x"), "notes").id_key


def test_one_id_in_two_sources_is_two_documents_unless_a_source_is_unknown(
    make: ReferenceMaker,
) -> None:
    a = make.of(Item.of("a", id="1", source="cats"))
    b = make.of(Item.of("b", id="1"), "dogs")
    c = make.of(Item.of("c", id="1"))
    found = same(References.of([a, b, c]), References.of([a, b, c]))
    assert found.tolist() == [[True, False, True], [False, True, True], [True, True, True]]


def test_modalities_are_of_what_an_item_holds() -> None:
    assert item_modality(Item.of("a")) == TEXT
    assert item_modality(Item.of(png(), " ")) == IMAGE
    assert item_modality(Item.of(png(), "a")) == TEXT | IMAGE
    assert parse_modality("Image, text") == parse_modality("text+image") == TEXT | IMAGE
    assert parse_modality("") == 0
    with pytest.raises(UserError, match="'video' is not known; allowed: text, image"):
        parse_modality("video")
