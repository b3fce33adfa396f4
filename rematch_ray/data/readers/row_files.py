"""Files whose rows become Samples or Items one by one: Parquet and JSONL in the layout of others.

A `Layout` says how one row is converted; this module cuts the files into pieces of counted rows,
reads them, and turns what a conversion refuses into a row with a reason. It knows no layout.
Middle floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import pyarrow as pa

from rematch_ray.data.item import SchemaError
from rematch_ray.data.readers.batches import error_row, is_text, to_batches
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import Place, parent
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.json_lines import parsed
from rematch_ray.data.readers.line_files import first_line, list_lines, read_lines
from rematch_ray.data.readers.linked_images import in_folder, load_images
from rematch_ray.data.readers.parquet_rows import list_groups, parquet_columns, read_cells
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.splits import split_of
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.readers.unread import media
from rematch_ray.data.schema import item_schema, sample_schema
from rematch_ray.errors import UserError, did_you_mean

PARQUET, JSONL = (".parquet",), (".jsonl", ".ndjson")
# rows read at a time: with their images they have to fit into a reader's memory several times over
UNIT_ROWS = 1000
MEDIA = ("image_root", "url_hosts", "url_bytes", "url_seconds")
AnyRow = TypeVar("AnyRow")


@dataclass(frozen=True)
class Layout:
    """A layout of rows in files.

    Attributes:
        name: of the format.
        claim: how to recognise it, for people.
        rows: what its rows become.
        columns: those without which it is not this layout.
        convert: a row -> a Sample or Item; what it refuses is a bad row.
        detected: whether columns are this layout's; None = it has all of `columns`.
        split: the one that is read where a folder holds several and none is named.
        id_of: the id of a row that may be a bad one, or None.
        within: where in a place the rows lie, for data sets that hold more than one table.
        uses: reader settings it heeds beside `split`.
    """

    name: str
    claim: str
    rows: Rows
    columns: tuple[str, ...]
    convert: Callable[[Row], Row]
    detected: Callable[[Sequence[str]], bool] | None = None
    split: str | None = "train"
    id_of: Callable[[Row], str | None] = lambda row: None
    within: Callable[[Place, ReaderSettings], Place] = lambda place, settings: place
    uses: tuple[str, ...] = MEDIA

    def to_format(self) -> Format:
        """The layout as a format of the registry."""
        return Format(
            name=self.name,
            claim=self.claim,
            rows=(self.rows,),
            detect=self._detect,
            list_units=self._list_units,
            read_unit=self._read_unit,
            reads=self._reads,
            beside=self._beside,
            open_rows=load_images,
            uses=frozenset({"split", *self.uses}),
        )

    def _detect(self, place: Place) -> str | None:
        inside = self.within(place, ReaderSettings())
        return detect_columns(inside, needed=self.columns, fits=self.detected)

    def _list_units(self, place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
        inside = self.within(place, settings)
        for entry in split_files(inside, settings.split, otherwise=self.split):
            check_columns(entry, self.columns, self.name)
            yield from list_rows(inside, entry, self.name, rows, settings)

    def _reads(self, place: Place, settings: ReaderSettings) -> FileList:
        inside = self.within(place, settings)
        if inside is place:
            return row_tables(place)
        name = inside.path.removeprefix(place.path).lstrip("/")
        below = place.files.starting(f"{name}/" if inside.is_folder else name)
        return below.ending(*PARQUET, *JSONL)

    def _beside(self, place: Place, settings: ReaderSettings) -> FileList:
        # where one table of a data set is read, any other is as the data set has it
        is_whole = self.within(place, settings) is place
        return media(place, settings) if is_whole else place.files

    def _read_unit(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        yield from converted(read_rows(unit), self.convert, unit, id_of=self.id_of)


def row_tables(place: Place) -> FileList:
    """The files of a place that hold rows, of every split."""
    return place.ending(*PARQUET, *JSONL)


def converted(
    rows: Iterable[AnyRow | UserError],
    convert: Callable[[AnyRow], Row],
    unit: Unit,
    *,
    id_of: Callable[[AnyRow], str | None] = lambda row: None,
) -> Iterator[pa.RecordBatch]:
    """Rows of a piece as batches of Samples or Items; what is refused says why in `error`."""
    schema = sample_schema() if unit.rows == "samples" else item_schema()
    yield from to_batches((_converted(row, convert, unit, id_of) for row in rows), schema)


def _converted(
    row: AnyRow | UserError,
    convert: Callable[[AnyRow], Row],
    unit: Unit,
    id_of: Callable[[AnyRow], str | None],
) -> Row:
    source = unit.settings.source
    if isinstance(row, UserError):
        return error_row(str(row), source=source)
    try:
        made = convert(row)
        made = made | {"source": made.get("source") or source}
        return in_folder(made, unit.options["folder"])
    except UserError as refused:
        return error_row(str(refused), id=id_of(row), source=source)
    # cells of another type than the layout's; which ones, only the conversion could say
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        told = f"the row is not one of {unit.format}: {type(error).__name__}: {error}"
        return error_row(told, id=id_of(row), source=source)


def detect_columns(
    place: Place,
    *,
    needed: Sequence[str],
    fits: Callable[[Sequence[str]], bool] | None = None,
) -> str | None:
    """The columns of a place's first file in words, where they are a layout's; otherwise None."""
    entry = next(iter(place.ending(*PARQUET, *JSONL)), None)
    columns = columns_of(entry) if entry is not None else ()
    fitting = fits(columns) if fits is not None else set(needed) <= set(columns)
    return f"columns {', '.join(columns)}" if columns and fitting else None


def columns_of(entry: FileEntry) -> tuple[str, ...]:
    """Names of a file's columns; empty where it cannot be read, which reading it will say."""
    try:
        return _columns(entry.path, entry.stamp)
    except UserError:
        return ()


def check_columns(entry: FileEntry, needed: Sequence[str], name: str) -> None:
    """Refuse a file that lacks a column.

    Raises:
        SchemaError: names the file, the column and what resembles it.
    """
    columns = _columns(entry.path, entry.stamp)
    if missing := [column for column in needed if column not in columns]:
        raise SchemaError(
            f"{entry.path}: no column {missing[0]!r}, which format {name} needs "
            f"({', '.join(needed)}); {did_you_mean(missing[0], columns)}"
        )


def split_files(place: Place, split: str | None, *, otherwise: str | None) -> list[FileEntry]:
    """The data files of a place that belong to one split.

    Splits are told by file names (`train-00000-of-00002.parquet`, `test.jsonl`) or by the folder
    a file lies in. Names that say nothing of a split belong to every one.

    Raises:
        UserError: no data file, none of the split, or several splits and none named.
    """
    entries = row_tables(place)
    if not entries:
        raise UserError(f"{place.path}: no {', '.join((*PARQUET, *JSONL))} file")
    splits = {entry: split_of(entry) for entry in entries}
    known = sorted({found for found in splits.values() if found is not None})
    if split is None and len(known) > 1:
        if otherwise not in known:
            raise UserError(f"{place.path} holds the splits {', '.join(known)}; name one (split)")
        split = otherwise
    if split is not None and known and split not in known:
        raise UserError(f"{place.path} has no split {split!r}; {did_you_mean(split, known)}")
    return [entry for entry, found in splits.items() if split is None or found in (None, split)]


def list_rows(
    place: Place, entry: FileEntry, name: str, rows: Rows, settings: ReaderSettings
) -> Iterator[Unit]:
    """The pieces of a file, of at most `UNIT_ROWS` rows each, all counted.

    Images lie below the file's own folder where no `image_root` is set. The root is then the whole
    place, so that every piece of it has the same settings.
    """
    folder = ""
    if settings.image_root is None:
        root = place.path if place.is_folder else parent(place.path)
        settings = settings.model_copy(update={"image_root": root})
        folder = entry.name.rpartition("/")[0]
    cut = list_groups if entry.suffix in PARQUET else list_lines
    for unit in cut(entry, name, rows, settings, unit_rows=UNIT_ROWS):
        yield replace(unit, options={**unit.options, "folder": folder})


def read_rows(unit: Unit) -> Iterator[Row | UserError]:
    """The rows of a piece; one that cannot be read, such as a line that is not JSON, is an error.

    Raises:
        UserError: the file is gone, or not what it was when it was listed.
    """
    if unit.path.lower().endswith(PARQUET):
        for number, (row, reason) in enumerate(read_cells(unit), unit.first_row):
            yield UserError(f"row {number}: {reason}") if reason else row
        return
    for number, line in enumerate(read_lines(unit), unit.first_row):
        yield _parsed(line, number)


def _parsed(line: bytes, number: int) -> Row | UserError:
    try:
        return parsed(line, f"line {number}")
    except UserError as error:
        return error


def _columns(path: str, stamp: str) -> tuple[str, ...]:
    found = _columns_or_why(path, stamp)
    if isinstance(found, UserError):
        raise UserError(str(found)) from found
    return found


# detection asks every layout about the same file, which may be one that cannot be read
@lru_cache(maxsize=32)
def _columns_or_why(path: str, stamp: str) -> tuple[str, ...] | UserError:
    try:
        if path.lower().endswith(PARQUET):
            return parquet_columns(path)
        row = parsed(first_line(path), f"{path}, its first line")
    except UserError as error:
        return error
    # half a surrogate pair is no name that anybody asks for, or could be shown
    return tuple(name for name in row if is_text(name))
