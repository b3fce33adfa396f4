"""Texts and images as callers send them, and as the `Item` that is encoded.

Images stay encoded bytes here and are decoded where they are encoded. Knows no endpoint: a query, a
document to rerank and one to store are all content.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from rematch_ray.data.item import Item, Part
from rematch_ray.serve.api.base import RequestModel, Text
from rematch_ray.serve.api.bounds import Bounded
from rematch_ray.serve.failures import refuse
from rematch_ray.serve.settings import Limits

# one pixel
DATA_URI = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR42mP4z8AAAA"
    "MBAQD3A0FDAAAAAElFTkSuQmCC"
)


class TextPart(RequestModel):
    """A text part."""

    type: Literal["text"]
    text: Text = Field(examples=["an otter"])


class ImageUrl(RequestModel):
    """Where an image is: a data URI."""

    url: Text = Field(
        description="data:image/png;base64,... (other schemes are not fetched)",
        examples=[DATA_URI],
    )


class ImagePart(RequestModel):
    """An image part, in the form that OpenAI clients send."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextAndImage(RequestModel):
    """At most one image and one text, the image first."""

    text: Text | None = Field(None, examples=["an otter"])
    image: Text | None = Field(
        None, description="data:image/...;base64,... or bare base64", examples=[DATA_URI]
    )


def _kind_of(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f"<{kind}>" if kind in ("text", "image_url") else None


ContentPart = Annotated[
    Annotated[TextPart, Tag("<text>")] | Annotated[ImagePart, Tag("<image_url>")],
    Discriminator(
        _kind_of,
        custom_error_type="content_part",
        custom_error_message="a part is {type: text, text} or {type: image_url, image_url: {url}}",
    ),
]
ContentParts = Annotated[list[ContentPart], Bounded("parts", "max_parts")]


def _form_of(value: Any) -> str | None:
    """Which form content has, so that a mistake in it is explained for that form alone."""
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, list):
        return "<parts>"
    if isinstance(value, TextPart | ImagePart) or (isinstance(value, dict) and "type" in value):
        return "<part>"
    return "<fields>" if isinstance(value, dict | TextAndImage) else None


Content = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[TextAndImage, Tag("<fields>")]
    | Annotated[ContentParts, Tag("<parts>")]
    | Annotated[ContentPart, Tag("<part>")],
    Discriminator(
        _form_of,
        custom_error_type="content",
        custom_error_message="give a text, {text, image}, or a list of parts",
    ),
    Field(description="a text, {text, image}, or parts in reading order", examples=["an otter"]),
]
AnyContent = str | TextAndImage | Sequence[TextPart | ImagePart] | TextPart | ImagePart


def item_of(content: AnyContent, limits: Limits, *, param: str, id: str = "query") -> Item:
    """Content as an Item.

    Args:
        content: as sent.
        limits: of parts and texts.
        param: the field it came in, for messages.
        id: of the item.

    Raises:
        RequestError: it is empty, has too many or too long parts, or an image is no base64.
    """
    parts = _parts(content, param)
    if not parts:
        raise refuse(param, "it is empty: give a text, an image or both")
    if len(parts) > limits.max_parts:
        raise refuse(param, f"{len(parts)} parts, at most {limits.max_parts}")
    for part in parts:
        if part.text is not None and len(part.text) > limits.max_text_chars:
            raise refuse(
                param, f"a text of {len(part.text)} characters, at most {limits.max_text_chars}"
            )
    return Item.of(*parts, id=id)


def check_instruction(instruction: str | None, limits: Limits) -> None:
    """Refuse an instruction that is too long: it is read in full, before each item.

    Raises:
        RequestError: it is.
    """
    most = limits.max_instruction_chars
    if instruction is not None and len(instruction) > most:
        raise refuse("instruction", f"{len(instruction)} characters, at most {most}: shorten it")


def _parts(content: AnyContent, param: str) -> list[Part]:
    if isinstance(content, str):
        return [Part.of_text(content)] if content.strip() else []
    if isinstance(content, TextAndImage):
        image = [_image(content.image, f"{param}.image")] if content.image else []
        text = [Part.of_text(content.text)] if content.text and content.text.strip() else []
        return image + text
    if isinstance(content, TextPart | ImagePart):
        return _parts([content], param)
    return [
        Part.of_text(part.text)
        if isinstance(part, TextPart)
        else _image(part.image_url.url, f"{param}.{position}.image_url.url")
        for position, part in enumerate(content)
    ]


def _image(source: str, param: str) -> Part:
    if "://" in source[:16]:
        raise refuse(param, "images are not fetched: send a data URI, data:image/png;base64,...")
    encoded = source
    if source.startswith("data:"):
        head, comma, encoded = source.partition(",")
        if not comma or not head.endswith(";base64"):
            raise refuse(param, "a data URI must read data:image/png;base64,...")
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as bad:
        raise refuse(param, f"not base64: {bad}") from bad
    if not content:
        raise refuse(param, "the image has no bytes")
    return Part.of_image(content)
