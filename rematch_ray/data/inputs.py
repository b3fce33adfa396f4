"""Items from whatever a caller passes to `encode_query` and `encode_document`. Middle floor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rematch_ray.data.schema import Item


def as_items(inputs: Sequence[Any] | Any) -> list[Item]:
    """Items from whatever `encode_query` and `encode_document` accept.

    >>> [part.kind for part in as_items(["a red circle"])[0].parts]
    ['text']
    """
    single = isinstance(inputs, (str, bytes, Item)) or not isinstance(inputs, Sequence)
    return [_as_item(value) for value in ([inputs] if single else inputs)]


def _as_item(value: Any) -> Item:
    if isinstance(value, Item):
        return value
    parts = value if isinstance(value, (list, tuple)) else [value]
    return Item.of(*parts)
