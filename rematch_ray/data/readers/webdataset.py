"""WebDataset tars: format `webdataset`, a row per key (`key.jpg` with `key.txt`, `key.json`).

Nothing is ever extracted: members are read one after another and their names only split into key
and suffix. A plain local tar is cut between keys; others are read whole. Middle floor.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Self

import pyarrow as pa

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.files import (
    FAILURES,
    Damaged,
    FileEntry,
    Place,
    is_uri,
    open_file,
)
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.mapping import Mapped
from rematch_ray.data.readers.references import IMAGE_BYTES
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.sidecars import (
    CONTENTS,
    SAMPLE,
    item_of,
    mapped_values,
    values_of,
    values_schema,
)
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "webdataset"
SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
END = 2**62
# what tarfile raises for damaged archives, beside OSError: of headers, of numbers and names in them
_DAMAGE = (tarfile.TarError, EOFError, ValueError, *FAILURES)


@dataclass
class Group:
    """The members of one key, in the order of the archive.

    Attributes:
        key: path in the archive up to the first dot of the file's name.
        begin: byte of the first member's header.
        contents: suffix -> content.
        fault: why the group cannot be read; "" = it can.
    """

    key: str
    begin: int
    contents: dict[str, bytes] = field(default_factory=dict)
    fault: str = ""


def groups(path: str, begin: int, end: int, *, with_contents: bool) -> Iterator[Group]:
    """The keys whose first members begin in [begin, end).

    Args:
        path: the archive.
        begin: byte of a header.
        end: byte of a header, or beyond the end.
        with_contents: read what is in the members, or only where they are.

    Raises:
        Damaged: the archive ends early or is no archive; says at which byte.
    """
    current: Group | None = None
    for member, place, stream in _members(path, begin):
        key, suffix = split_name(member.name)
        if current is None or key != current.key:
            if current is not None:
                yield current
            if place >= end:
                return
            current = Group(key, place)
        if with_contents:
            _add(current, member, suffix, stream)
    if current is not None:
        yield current


def split_name(name: str) -> tuple[str, str]:
    """Key and suffix of a member: the name is cut at the first dot of its last component.

    >>> split_name("a.b/000.seg.png")
    ('a.b/000', 'seg.png')
    """
    folder, slash, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _add(group: Group, member: tarfile.TarInfo, suffix: str, stream: tarfile.TarFile) -> None:
    if not f".{suffix}".endswith(CONTENTS):
        return
    if suffix in group.contents:
        group.fault = f"the key has two .{suffix} members"
    elif member.size > IMAGE_BYTES:
        group.fault = f"member .{suffix} has {member.size} bytes; at most {IMAGE_BYTES} are read"
    else:
        content = stream.extractfile(member)
        assert content is not None, "a regular file has content"
        group.contents[suffix] = content.read()
        if len(group.contents[suffix]) < member.size:
            raise tarfile.ReadError("the archive ends inside a member")


def _members(path: str, begin: int) -> Iterator[tuple[tarfile.TarInfo, int, tarfile.TarFile]]:
    """Regular files of an archive, hidden ones left out, with the byte of each header."""
    place = begin
    try:
        with _stream(path, begin) as tar:
            for member in tar:
                place = member.offset
                # what was read would otherwise be kept for every member
                tar.members = []  # type: ignore[attr-defined]
                name = member.name.rpartition("/")[2]
                if member.isreg() and not name.startswith(".") and name:
                    yield member, place, tar
    except _DAMAGE as error:
        if isinstance(error, UserError):
            raise
        raise Damaged(f"{path}, from byte {place}: the archive is damaged: {error}") from error


class _Header(tarfile.TarInfo):
    """A member's header; what is neither a header nor the end is damage, where tarfile stops."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> Self:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header and no end: {error}") from error


@contextmanager
def _stream(path: str, begin: int) -> Iterator[tarfile.TarFile]:
    mode: Any = "r:" if _is_seekable(path) else "r|*"
    with open_file(path) as file:
        if begin:
            file.seek(begin)
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_Header) as tar:
            yield tar


def _is_seekable(path: str) -> bool:
    return path.endswith(".tar") and not is_uri(path)


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    entries = place.ending(*SUFFIXES) or (() if place.is_folder else place.files)
    if not entries:
        raise UserError(f"{place.path}: no {', '.join(SUFFIXES)} file")
    schema = _schema(entries[0], settings)
    payload = mapped_values(schema, settings, entries[0].path).payload
    for entry in entries:
        for begin, end, num_rows in _cuts(entry, settings):
            yield Unit(
                format=NAME,
                path=entry.path,
                rows=rows,
                num_rows=num_rows,
                num_bytes=min(end, entry.size) - begin,
                begin=begin,
                end=end,
                stamp=entry.stamp,
                payload=payload,
                settings=settings,
                options={"schema": schema},
            )


def _cuts(entry: FileEntry, settings: ReaderSettings) -> Iterator[tuple[int, int, int | None]]:
    """(begin, end, keys) of the pieces; only headers are read, too many to ask a store for."""
    if not _is_seekable(entry.path):
        yield 0, END, None
        return
    start = num_rows = 0
    known = True
    try:
        for group in groups(entry.path, 0, END, with_contents=False):
            if num_rows and (
                group.begin - start >= settings.unit_bytes or num_rows == settings.unit_files
            ):
                yield start, group.begin, num_rows
                start, num_rows = group.begin, 0
            num_rows += 1
    except Damaged:
        # how many rows come before the damage shows when they are read, which says so in a row
        known = False
    if num_rows or not known:
        yield start, END, num_rows if known else None


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    yield from to_batches(_rows(unit), item_schema(unit.payload))


def _rows(unit: Unit) -> Iterator[Row]:
    mapped = mapped_values(unit.options["schema"], unit.settings, unit.path)
    try:
        for group in groups(unit.path, unit.begin, unit.end, with_contents=True):
            yield _row(group, mapped, unit)
    except Damaged as error:
        yield error_row(str(error), source=unit.settings.source)


def _row(group: Group, mapped: Mapped, unit: Unit) -> Row:
    where = f"{unit.path}, key {group.key}"
    try:
        if group.fault:
            raise UserError(f"{where}: {group.fault}")
        return item_of(
            group.key, group.contents, mapped, unit.settings, folder=unit.path, where=where
        )
    except UserError as error:
        return error_row(str(error), id=group.key, source=unit.settings.source)


def _schema(entry: FileEntry, settings: ReaderSettings) -> pa.Schema:
    """Columns and types of the first keys of an archive."""
    rows: list[dict[str, Any]] = []
    try:
        for group in islice(groups(entry.path, 0, END, with_contents=True), SAMPLE):
            try:
                rows.append(values_of(group.key, group.contents))
            # its row will say so
            except UserError:
                continue
    except Damaged as error:
        if not rows:
            raise UserError(f"{error}; is it a tar at all?") from error
    return values_schema(rows, settings, entry.path)


def _detect(place: Place) -> str | None:
    found = place.ending(*SUFFIXES)
    return f"{len(found)} tar files" if found else None


FORMATS = (
    Format(
        name=NAME,
        claim="WebDataset tars (key.jpg with key.txt or key.json)",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        uses=frozenset({"columns", "unit_bytes", "unit_files"}),
    ),
)
