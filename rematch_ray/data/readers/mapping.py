"""Rows of any table -> Items: which column is the id, which are text, image and payload.

Told by `--columns text=caption,image=img,id=key`; what that leaves open is taken from columns that
have the very names `id`, `text`, `image`, ... It knows values, not files. Middle floor.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.batches import error_row
from rematch_ray.data.readers.content import CONTENT, content_of, json_text
from rematch_ray.data.readers.files import StorageError
from rematch_ray.data.readers.references import with_images
from rematch_ray.data.readers.sample_rows import Row, image_part, text_part
from rematch_ray.data.readers.settings import ROLES, SAMPLE_ROLES, ReaderSettings
from rematch_ray.errors import UserError, did_you_mean

_log = logging.getLogger(__name__)

PARTS = ("text", "image")
NAMES = ("id", "parent_id", "source")
# fields that the beginning of the files did not show, or with another type, as one JSON object
REST = "other_fields"
ALL = "*"  # among the columns of a payload: all that are nothing else


@dataclass(frozen=True)
class Mapped:
    """Which columns are what.

    Attributes:
        parts: (role, column) of texts and images, in reading order.
        names: the columns of `id`, `parent_id` and `source`, where there are such.
        payload: type of the payload; None = no payload.
        kept: columns that go into the payload, whatever else they are.
        keeps_rest: whether all columns that are nothing else do.
        has_images: whether a column is known to be an image.
        captions: columns that a row's text is looked for in, the first being one of `parts`.
    """

    parts: tuple[tuple[str, str], ...]
    names: tuple[tuple[str, str], ...]
    payload: pa.StructType | None
    kept: frozenset[str] = frozenset()
    keeps_rest: bool = True
    has_images: bool = False
    captions: tuple[str, ...] = ()

    @property
    def used(self) -> frozenset[str]:
        """Columns that are part of the item itself."""
        return frozenset(column for _, column in (*self.parts, *self.names))

    def is_kept(self, column: str) -> bool:
        """Whether a column goes into the payload, if it can."""
        return column in self.kept or (self.keeps_rest and column not in self.used)

    @property
    def is_open(self) -> bool:
        """Whether rows may have more fields than the payload's type, or of other types."""
        return self.payload is not None and self.payload.get_field_index(REST) >= 0

    @property
    def columns(self) -> list[str]:
        """Columns that have to be read."""
        fields = [field.name for field in self.payload or ()]
        return [*dict.fromkeys([column for _, column in (*self.parts, *self.names)] + fields)]


def map_columns(
    schema: pa.Schema,
    settings: ReaderSettings,
    where: str,
    *,
    is_open: bool = False,
    is_partial: bool = False,
) -> Mapped:
    """Settle which column is what.

    Args:
        schema: columns of the file, with the types of their values.
        settings: `columns` says which is what.
        where: the file, for messages.
        is_open: rows may have more fields than the schema, or of other types.
        is_partial: the schema is that of some rows: others may have a column, named or of the very
            name of a role, that these do not.

    Raises:
        SchemaError: a named column is not there, or none is text or image.
    """
    told = tuple((role, column) for role, column in settings.columns if column not in ("", ALL))
    for role, column in told:
        if role in SAMPLE_ROLES:
            raise SchemaError(
                f"{where}: {role} is a role in training rows; a column of items is one of "
                f"{', '.join(ROLES)}"
            )
        if column not in schema.names and not is_partial:
            raise SchemaError(
                f"{where}: no column {column!r} for {role}; {did_you_mean(column, schema.names)}"
            )
    parts = seen = tuple(pair for pair in told if pair[0] in PARTS) or _same(schema, PARTS)
    if not parts:
        raise SchemaError(
            f"{where}: no column is text or image (columns: {', '.join(schema.names) or 'none'}); "
            "say which (--columns, or reader.columns), as in text=caption,image=img,id=key"
        )
    if is_partial and not set(parts) <= set(told):
        parts = tuple((role, role) for role in PARTS)
    taken = {column for role, column in told if role != "payload"}
    names = tuple(pair for pair in told if pair[0] in NAMES)
    missing = [role for role in NAMES if role not in dict(names) and role not in taken]
    names += tuple((role, role) for role in missing) if is_partial else _same(schema, missing)
    wanted = frozenset(settings.columns_for("payload"))
    mapped = Mapped(
        parts,
        names,
        None,
        kept=wanted - {"", ALL},
        keeps_rest=not wanted or ALL in wanted,
        # not those that only might come: pieces are as large as what is known of them asks for
        has_images=any(role == "image" for role, _ in seen),
    )
    return replace(mapped, payload=_payload_type(schema, mapped, is_open))


def tell_unseen(schema: pa.Schema, settings: ReaderSettings, where: str) -> None:
    """Warn of named columns that the rows which were looked at do not have; later ones may."""
    for role, column in settings.columns:
        if column not in ("", ALL, *schema.names):
            _log.warning(
                "%s: no column %r for %s in the rows that were looked at first; rows that have it "
                "are read by it (%s)",
                where,
                column,
                role,
                did_you_mean(column, schema.names),
            )


def item_row(
    values: Mapping[str, Any],
    mapped: Mapped,
    settings: ReaderSettings,
    *,
    folder: str,
    where: str,
    told: Mapping[str, Any] | None = None,
) -> Row:
    """One Item as a row of `item_schema(mapped.payload)`.

    Args:
        values: the columns of the row.
        mapped: which is what.
        settings: the source, and where images may come from.
        folder: what relative image paths start from unless `image_root` is set.
        where: the row, for the reason why it cannot be read.
        told: the columns as the file spells them, where other rows had a say in `values`.

    Returns:
        The item, with `payload_content` where other rows had a say in the payload's type; or an
        error row with what is known of it.

    Raises:
        StorageError: storage fails at an image.
    """
    names = _names(values, mapped, settings)
    values = _with_text(values, mapped)
    try:
        parts: list[Row] = []
        for role, column in mapped.parts:
            parts += _texts(values.get(column)) if role == "text" else _images(values.get(column))
        if not parts:
            raise UserError(f"neither text nor image in {', '.join(c for _, c in mapped.parts)}")
        loaded = with_images(parts, settings, folder)
    except StorageError:
        raise
    except UserError as error:
        return bad_row(str(error), values, mapped, settings, where=where)
    row: Row = {**names, "parts": loaded, "payload": payload_row(values, mapped)}
    if mapped.is_open:
        row[CONTENT] = content_of(dict(_kept(told or values, mapped)))
    return row


def bad_row(
    reason: str, values: Mapping[str, Any], mapped: Mapped, settings: ReaderSettings, *, where: str
) -> Row:
    """The error row of an item, with the names that its values give."""
    names = _names(values, mapped, settings)
    return error_row(f"{where}: {reason}", id=names.get("id"), source=names["source"])


def payload_row(values: Mapping[str, Any], mapped: Mapped) -> Row | None:
    """The payload of a row; what does not fit its type goes into `other_fields`."""
    if mapped.payload is None:
        return None
    made, rest = {}, {}
    types = {field.name: field.type for field in mapped.payload if field.name != REST}
    for name, value in _kept(values, mapped):
        if name in types and _fits(value, types[name]):
            text = pa.types.is_string(types[name]) and not isinstance(value, str)
            made[name] = json_text(value) if text else value
        else:
            rest[name] = value
    if rest and mapped.is_open:
        made[REST] = json_text(rest)
    return made


def _with_text(values: Mapping[str, Any], mapped: Mapped) -> Mapping[str, Any]:
    """A row's values with its caption in the first of the columns where one may stand."""
    found = next((name for name in mapped.captions if values.get(name) is not None), None)
    if found is None or found == mapped.captions[0]:
        return values
    moved = {name: v for name, v in values.items() if name != found or name in mapped.kept}
    return {**moved, mapped.captions[0]: values[found]}


def _same(schema: pa.Schema, roles: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Roles whose own name is a column."""
    return tuple((role, role) for role in roles if role in schema.names)


def _payload_type(schema: pa.Schema, mapped: Mapped, is_open: bool) -> pa.StructType | None:
    fields = [
        pa.field(field.name, _plain(field.type))
        for field in schema
        if field.name != REST and mapped.is_kept(field.name) and not _has_bytes(field.type)
    ]
    if is_open and (mapped.kept or mapped.keeps_rest):
        fields.append(pa.field(REST, pa.string()))
    return pa.struct(fields) if fields else None


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _has_bytes(kind: pa.DataType) -> bool:
    """Whether values hold bytes somewhere, or nothing at all: neither is a payload."""
    kind = _plain(kind)
    if pa.types.is_nested(kind):
        return any(_has_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return "binary" in str(kind) or pa.types.is_null(kind)


def _fits(value: Any, kind: pa.DataType) -> bool:
    if pa.types.is_boolean(kind):
        return isinstance(value, bool)
    if pa.types.is_integer(kind):
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if pa.types.is_floating(kind):
        return isinstance(value, int | float) and not isinstance(value, bool)
    return True


def _kept(values: Mapping[str, Any], mapped: Mapped) -> Iterator[tuple[str, Any]]:
    """The columns that go into the payload, of those that have a value."""
    for name, value in values.items():
        if value is not None and not isinstance(value, bytes) and mapped.is_kept(name):
            yield name, value


def _names(
    values: Mapping[str, Any], mapped: Mapped, settings: ReaderSettings
) -> dict[str, str | None]:
    names = {role: _name(values.get(column)) for role, column in mapped.names}
    names["source"] = names.get("source") or settings.source
    return names


def _name(value: Any) -> str | None:
    """A natural name as text, bytes as the text they spell or else in hex; empty is none."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            value = value.hex()
    return None if value is None or value == "" else str(value)


def _texts(value: Any) -> list[Row]:
    if isinstance(value, list | tuple):
        return [part for entry in value for part in _texts(entry)]
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise UserError(f"a text is a {type(value).__name__}; allowed: text, numbers, a list")
    return [text_part(value)] if value and value.strip() else []


def _images(value: Any) -> list[Row]:
    if isinstance(value, list | tuple):
        return [part for entry in value for part in _images(entry)]
    return [] if value is None or value == "" else [image_part(value)]
