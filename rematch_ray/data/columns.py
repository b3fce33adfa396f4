"""Whether a file's Arrow columns can be read as the columns a row needs.

String and large_string, binary and large_binary, and all list types count as equal, further columns
are allowed, a struct may lack optional fields. It does not look at values. Middle floor.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rematch_ray.data.item import SchemaError

SCHEMA_VERSION = 1
VERSION_KEY = b"rematch_ray.schema_version"


def check_schema(
    schema: pa.Schema, expected: pa.Schema, *, required: Sequence[str], where: str
) -> None:
    """Check that a table can be read as `expected`.

    Args:
        schema: what the file has; further columns are allowed.
        expected: what we read.
        required: columns that must be there.
        where: the file, for the message.

    Raises:
        SchemaError: names the file and the column.
    """
    version = (schema.metadata or {}).get(VERSION_KEY)
    if version is not None and (not version.isdigit() or int(version) > SCHEMA_VERSION):
        raise SchemaError(
            f"{where}: schema version {version.decode(errors='replace')}, this release reads up to "
            f"{SCHEMA_VERSION}; upgrade rematch_ray or write the file again"
        )
    for name in required:
        if name not in schema.names:
            raise SchemaError(
                f"{where}: no column {name!r} (columns: {', '.join(schema.names) or 'none'}); "
                f"needed: {', '.join(required)}"
            )
    for column in expected:
        if column.name in schema.names:
            _check_type(
                schema.field(column.name).type, column.type, f"{where}: column {column.name!r}"
            )


def _check_type(found: pa.DataType, expected: pa.DataType, where: str) -> None:
    if pa.types.is_struct(expected):
        if pa.types.is_struct(found):
            for child in expected:
                if found.get_field_index(child.name) >= 0:
                    _check_type(
                        found.field(child.name).type, child.type, f"{where}, field {child.name!r}"
                    )
            return
    elif _is_list(expected):
        if _is_list(found):
            _check_type(found.value_type, expected.value_type, f"{where}, element")
            return
    elif pa.types.is_null(found) or _family(found) == _family(expected):
        return
    raise SchemaError(f"{where} has type {found}; needed: {expected}")


def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _family(kind: pa.DataType) -> str:
    if pa.types.is_dictionary(kind):
        return _family(kind.value_type)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "binary"
    if pa.types.is_floating(kind) or pa.types.is_integer(kind):
        return "number"
    return str(kind)
