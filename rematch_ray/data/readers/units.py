"""The unit: the smallest piece of a data set that is read on its own, retried and shuffled.

What `list_data` gives and `read_data` takes. It does not know any format. Middle floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import pyarrow as pa

from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.errors import UserError

Rows = Literal["items", "samples"]


class Names(Sequence[str]):
    """Names of files as one text, since a folder of images has one for every row.

    Args:
        names: none of them holds a NUL.

    >>> Names(["a.png", "b.png"])[-1], len(Names([]))
    ('b.png', 0)
    """

    __slots__ = ("_count", "_text")

    def __init__(self, names: Iterable[str]) -> None:
        listed = list(names)
        self._count = len(listed)
        self._text = "\0".join(listed)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[str]:
        return iter(self._text.split("\0") if self._count else ())

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        return tuple(self)[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Names) and tuple(self) == tuple(other)

    def __hash__(self) -> int:
        return hash(self._text)


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One piece of one file or folder; small, and can be sent to another process.

    Attributes:
        format: name of the format that reads it.
        path: the file or folder: a local path or a URI.
        rows: what its rows are read as.
        num_rows: rows in it; None where counting them would mean reading them.
        num_bytes: bytes in storage.
        first_row: number of its first row in the file (of a PDF: page, from 0); 0 where that would
            mean reading what comes before it.
        begin: where the piece begins; the format says what is counted (row groups, bytes, pages).
        end: where it ends, itself not included.
        members: names of files in it, for formats whose rows are files.
        stamp: changes when the piece's content does; what the file system or the footer says.
        payload: type of the payload of its items; None = they have none.
        settings: how it is read.
        options: what else the format needs to know; plain values.
    """

    format: str
    path: str
    rows: Rows
    num_rows: int | None
    num_bytes: int
    first_row: int = 0
    begin: int = 0
    end: int = 0
    members: Sequence[str] = ()
    stamp: str = ""
    payload: pa.StructType | None = None
    settings: ReaderSettings = field(default_factory=ReaderSettings)
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    @property
    def row_group(self) -> int:
        """The row group of a Parquet unit."""
        return self.begin

    @property
    def counted_rows(self) -> int:
        """The number of rows, of a unit whose rows are counted (Parquet, and every Sample)."""
        assert self.num_rows is not None, f"{self.path}: rows of {self.format} are not counted"
        return self.num_rows

    @property
    def place(self) -> str:
        """Where it lies, for messages and logs, and what its rows are numbered in."""
        if self.num_rows is not None:
            return f"{self.path}[{self.begin}:{self.end}]"
        if len(self.members) == 1:
            return f"{self.path.rstrip('/')}/{self.members[0]}"
        if self.members:
            return f"{self.path} ({self.members[0]} to {self.members[-1]})"
        # rows are numbered from the beginning of the file, or of the piece where it is not known
        # how many come before it
        is_numbered = not self.begin or self.first_row > 0
        return self.path if is_numbered else f"{self.path}, from byte {self.begin}"


def fingerprint(units: Iterable[Unit]) -> str:
    """Identify what the units hold and how they are read, without reading them: SHA-256 (hex).

    File names count, folders do not: a data set that is moved as a whole stays the same one.
    """
    digest = hashlib.sha256()
    for unit in units:
        name = unit.path.rstrip("/").rpartition("/")[2]
        told = unit.settings.model_dump_json(exclude={"image_root", "corpus", "corpus_copy"})
        for value in (unit.format, name, unit.rows, unit.num_rows, unit.begin, unit.end, told):
            digest.update(f"{value}\0".encode())
        digest.update("\0".join((unit.stamp, *unit.members, "")).encode())
    return digest.hexdigest()


def payload_type(units: Sequence[Unit]) -> pa.StructType | None:
    """The type of payload that fits every unit: the union of their fields.

    Raises:
        UserError: a field has types that do not go together; names the two files.
    """
    found: dict[pa.StructType, str] = {}
    for unit in units:
        if unit.payload is not None and unit.payload.num_fields:
            found.setdefault(unit.payload, unit.path)
    merged: pa.Schema | None = None
    first = ""
    for kind, path in found.items():
        schema = pa.schema(list(kind))
        try:
            merged = (
                schema
                if merged is None
                else pa.unify_schemas([merged, schema], promote_options="permissive")
            )
        except pa.ArrowException as error:
            raise UserError(
                f"the payload of {path} does not go with that of {first}: {error}; give the files "
                "of one corpus the same types, or leave the column out (--columns payload=a+b)"
            ) from error
        first = first or path
    return None if merged is None else pa.struct(list(merged))


def with_one_payload(units: Sequence[Unit]) -> list[Unit]:
    """The units, each with the payload type that fits them all."""
    kind = payload_type(units)
    return [unit if unit.payload == kind else replace(unit, payload=kind) for unit in units]
