"""Files that make one item together: images, texts and JSON of one name.

What image folders and WebDataset archives share: a name (file name, key) and, by suffix, the
contents. They become one row of values, mapped to an item like the row of any table. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import pyarrow as pa

from rematch_ray.data.readers.endings import IMAGES
from rematch_ray.data.readers.inferred import inferred_schema
from rematch_ray.data.readers.json_lines import parsed
from rematch_ray.data.readers.mapping import (
    Mapped,
    item_row,
    map_columns,
    tell_unseen,
)
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError

TEXTS = (".txt", ".text", ".caption", ".cls")
JSON = (".json",)
CONTENTS = IMAGES + TEXTS + JSON
# no file of an item is called so: the item's name, and all its images
NAME, IMAGE = "file_name", "image files"
# where a caption is looked for, unless a column is named
CAPTIONS = ("txt", "text", "caption")
SAMPLE = 64
T = TypeVar("T")


def values_of(name: str, contents: Mapping[str, bytes]) -> Row:
    """One item's files as values by column.

    Args:
        name: of the item.
        contents: suffix without its dot (`jpg`, `seg.png`, `json`) -> content, in their order;
            suffixes that are neither image, text nor JSON are left out.

    Returns:
        `file_name`, `image files`, a value per suffix, and the fields of the JSON.

    Raises:
        UserError: a text is not UTF-8, or JSON is not an object.
    """
    values: Row = {}
    images: list[bytes] = []
    for suffix, content in contents.items():
        kind = f".{suffix}".lower()
        if kind.endswith(IMAGES):
            if not content:
                raise UserError(f"{name}: its {suffix} file is empty")
            images.append(content)
            values[suffix] = content
        elif kind.endswith(JSON):
            values = {**parsed(content, f"{name}, its {suffix} file"), **values}
        elif kind.endswith(TEXTS):
            values[suffix] = _text(content, name, suffix)
    return {**values, NAME: name, IMAGE: images}


def values_schema(
    rows: Iterable[Mapping[str, Any]], settings: ReaderSettings, where: str, *, is_partial: bool
) -> pa.Schema:
    """The columns of such values; refuses a mapping that does not fit them.

    Args:
        rows: values of some items.
        settings: `columns`.
        where: the place, for messages.
        is_partial: whether there are more items than these.

    Raises:
        SchemaError: a column that the mapping names is in none of the rows, and these are all.
    """
    # an image stands for the list of all: neither is ever payload
    found = inferred_schema({**row, IMAGE: b""} for row in ({NAME: ""}, *rows))
    mapped_values(found, settings, where, is_partial=is_partial)
    tell_unseen(found, settings, where)
    return found


def mapped_values(
    schema: pa.Schema,
    settings: ReaderSettings,
    where: str,
    *,
    is_open: bool = True,
    is_partial: bool = True,
) -> Mapped:
    """Which value is what: the images, then the caption, unless `columns` says otherwise."""
    roles = {role for role, _ in settings.columns}
    columns = settings.columns
    captions: tuple[str, ...] = ()
    if "image" not in roles:
        columns = (("image", IMAGE), *columns)
    if "text" not in roles:
        captions = caption_columns(schema, is_partial=is_partial)
        columns += tuple(("text", name) for name in captions[:1])
    if "id" not in roles:
        columns += (("id", NAME),)
    told = settings.model_copy(update={"columns": columns})
    mapped = map_columns(schema, told, where, is_open=is_open, is_partial=is_partial)
    return replace(mapped, captions=captions)


def caption_columns(
    schema: pa.Schema, names: Sequence[str] = CAPTIONS, *, is_partial: bool
) -> tuple[str, ...]:
    """Where the caption of an item is looked for, in this order.

    Args:
        schema: columns of some items. The first of the names there is the caption of all that have
            it, and the others are payload.
        names: that a caption may have.
        is_partial: other items may have columns that these do not: names that are not there are
            the captions of items without the first.
    """
    seen = [name for name in names if name in schema.names]
    return (*seen[:1], *(name for name in names if is_partial and name not in seen))


def item_of(
    name: str,
    contents: Mapping[str, bytes],
    mapped: Mapped,
    settings: ReaderSettings,
    *,
    folder: str,
    where: str,
) -> Row:
    """One item's files as a row of Items; raises UserError as `values_of` does."""
    values = values_of(name, contents)
    if IMAGE not in mapped.used:
        del values[IMAGE]
    return item_row(values, mapped, settings, folder=folder, where=where)


def sampled(among: Sequence[T]) -> Sequence[T]:
    """Some of many, spread over all, enough to learn the fields from."""
    return among[:: max(1, len(among) // SAMPLE)][:SAMPLE]


def _text(content: bytes, name: str, suffix: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: its {suffix} file is not UTF-8: {error}") from error
