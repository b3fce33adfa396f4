import io

import pytest
from PIL import Image

from rematch_ray.data.item import Item, Part, SchemaError, content_id
from rematch_ray.errors import UserError


def test_an_item_without_an_id_is_named_by_its_content_alone():
    first = Item.of("a red bar", b"\x89PNG")
    second = Item.of("a red bar", b"\x89PNG", source="scenes", payload={"name": "x"})
    assert first.id == second.id
    assert len(first.id) == 64


def test_contents_that_only_concatenate_equally_have_different_ids():
    ids = {
        content_id(parts)
        for parts in (
            [Part.of_text("ab")],
            [Part.of_text("a"), Part.of_text("b")],
            [Part.of_image(b"ab")],
            [Part.of_text("b"), Part.of_text("a")],
        )
    }
    assert len(ids) == 4


def test_parts_keep_their_order_and_kind():
    item = Item.of("before", b"bytes", "after")
    assert [part.kind for part in item.parts] == ["text", "image", "text"]
    assert item.text == "before after"
    assert [part.image for part in item.images] == [b"bytes"]


def test_a_pil_image_is_stored_without_loss():
    image = Image.effect_noise((9, 7), 90).convert("RGB")
    stored = Item.of(image).parts[0].image
    assert Image.open(io.BytesIO(stored)).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Part("text"),
        lambda: Part("image"),
        lambda: Part("sound", text="x"),
        lambda: Item.of(3),
    ],
)
def test_a_part_that_holds_nothing_or_something_else_is_refused(make):
    with pytest.raises(SchemaError):
        make()
    assert issubclass(SchemaError, UserError)


def test_a_part_may_be_a_reference():
    assert Part("image", uri="pictures/a.png").image is None
