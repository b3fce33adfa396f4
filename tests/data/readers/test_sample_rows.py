"""Cells of foreign layouts become interleaved parts, or an error that says which cell is wrong."""

import re

import pytest

from rematch_ray.data.readers.sample_rows import (
    content,
    image_part,
    item,
    sample,
)
from rematch_ray.data.schema import sample_from_row
from rematch_ray.errors import UserError

TAG = re.compile("<image>")


def spelled(parts: list) -> list[str]:
    return [part.get("text") or part.get("uri") or part["image"].decode() for part in parts]


@pytest.mark.parametrize(
    ("text", "images", "wanted"),
    [
        ("a <image>\nb", ["x"], ["a", "x", "b"]),
        ("<image><image>", ["x", "y"], ["x", "y"]),
        ("caption", ["x"], ["x", "caption"]),
        ("caption", ["", None], ["caption"]),
        (None, [b"bytes"], ["bytes"]),
        ("", [{"bytes": None, "path": "p.png"}], ["p.png"]),
    ],
)
def test_placeholders_are_filled_in_order(text: str, images: list, wanted: list[str]) -> None:
    assert spelled(content(text, images, tag=TAG)) == wanted


@pytest.mark.parametrize(
    ("text", "images", "reason"),
    [
        ("<image> b", [], "1 placeholders for images and the row 0 images: '<image> b'"),
        ("<image><image>", ["x"], "2 placeholders for images and the row 1 images"),
        ("  ", [""], "neither text nor image"),
        (7, [], "a text is a int"),
        ("a", [7], "an image is a int; allowed: bytes, a path"),
        ("a", [{"bytes": b"", "path": None}], "an image is empty"),
    ],
)
def test_what_does_not_fit_is_named(text: object, images: list, reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)):
        content(text, images, tag=TAG)


def test_a_row_is_in_the_shape_of_the_schema() -> None:
    query = item(content("which"), id=7)
    row = sample(query, [item([image_part(b"x")])], [item(content("no"))], scores=[0.5])
    read = sample_from_row(row)
    assert read.query.id == "7"
    assert len(read.positives[0].item.id) == 64  # known by its content
    assert read.negatives[0].teacher_score == 0.5


def test_a_sample_needs_a_positive() -> None:
    with pytest.raises(UserError, match="no positive document"):
        sample(item(content("q")), [])
