"""The formats that can be read: which there are, which one a path holds, and reading it.

`list_data` names the pieces of a data set, `read_data` reads one. A reader is a module of this
folder with a tuple `FORMATS`; this file knows their names and their order, nothing of their files.
Middle floor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import pyarrow as pa

from rematch_ray.data.readers.content import CONTENT
from rematch_ray.data.readers.file_list import FileList
from rematch_ray.data.readers.files import Place, absolute_path, look
from rematch_ray.data.readers.keys import row_keys
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit, with_one_payload
from rematch_ray.data.readers.unread import refuse_unread
from rematch_ray.errors import UserError, did_you_mean

# modules of this folder, in the order in which detection asks them: those that know exact names of
# columns or files first, those that read anything of a kind last
READERS = (
    "parquet",
    "mmeb",
    "mmeb_eval_files",
    "tevatron",
    "nemo",
    "ms_swift",
    "pages",
    "sentence_transformers",
    "beir",
    "lance",
    "webdataset",
    "folders",
    "pdf",
    "tables",
    "json_lines",
    "csv_files",
)

# those that read anything of a kind
TABLES = frozenset({"parquet", "jsonl", "csv"})
# settings that every format takes
COMMON = frozenset({"format", "source"})


@dataclass(frozen=True)
class Format:
    """A format that users have.

    Attributes:
        name: what `--format` takes.
        claim: how to recognise it, in a few words, for people.
        rows: what it can be read as.
        detect: why a place holds this format, in a few words ("columns query, image"), or None.
        list_units: the pieces of a place, in reading order.
        read_unit: the rows of a piece, as batches of `item_schema` or `sample_schema`; what cannot
            be read is a row too, with the reason in a column `error`.
        reads: the files of a folder that it reads, of every split, taken from those of the place.
        beside: files of a folder that have their place beside them, taken likewise; what neither
            is read nor one of these may belong to another format.
        kind: which of `rows` a place holds, where there are several; None = the first.
        uses: names of the reader settings it heeds, beside those that all do; others are refused.
        open_rows: fills in what the rows of `read_unit` only refer to (images, documents of a
            corpus), by the unit's settings; None = they are whole.
    """

    name: str
    claim: str
    rows: tuple[Rows, ...]
    detect: Callable[[Place], str | None]
    list_units: Callable[[Place, ReaderSettings, Rows], Iterable[Unit]]
    read_unit: Callable[[Unit], Iterator[pa.RecordBatch]]
    reads: Callable[[Place, ReaderSettings], FileList]
    beside: Callable[[Place, ReaderSettings], FileList] = lambda place, settings: place.files[:0]
    uses: frozenset[str] = frozenset()
    kind: Callable[[Place], Rows] | None = None
    open_rows: Callable[[pa.RecordBatch | pa.Table, ReaderSettings], Iterator[pa.RecordBatch]] | (
        None
    ) = None

    def unused(self, settings: ReaderSettings | None) -> list[str]:
        """Names of the settings that were given and mean nothing to it."""
        fields = ReaderSettings.model_fields.items() if settings is not None else ()
        changed = {name for name, f in fields if getattr(settings, name) != f.get_default()}
        return sorted(changed - COMMON - self.uses)

    def rows_at(self, place: Place) -> Rows:
        """What a place of this format is read as where nothing else is needed."""
        return self.kind(place) if self.kind is not None else self.rows[0]


@lru_cache(maxsize=1)
def formats() -> dict[str, Format]:
    """Every format by name, in the order of detection."""
    modules = [import_module(f"rematch_ray.data.readers.{name}") for name in READERS]
    return {found.name: found for module in modules for found in module.FORMATS}


def list_data(
    paths: str | Path | Sequence[str | Path],
    settings: ReaderSettings | None = None,
    *,
    rows: Rows | None = None,
) -> list[Unit]:
    """Name the pieces of files and folders, in reading order.

    What tells columns, types and where to cut is read: footers of Parquet, the beginnings of JSONL,
    headers of local tars, some captions of image folders, up to 1 GiB of large PDF files for their
    pages; CSV, and JSONL of training rows, once from end to end.

    Args:
        paths: files, folders or URIs; each may hold another format.
        settings: format and columns; None detects both.
        rows: what the rows are needed as; None takes what the first place is.

    Returns:
        The units; those of items all have the same payload type.

    Raises:
        UserError: a path is not there, its format is not known or was named wrongly, a folder
            holds files of several formats, a setting does not apply to it, a column is missing, or
            there are no rows.
    """
    settings = settings or ReaderSettings()
    if settings.image_root is not None:
        # other processes stand in other folders
        root = absolute_path(settings.image_root)
        settings = settings.model_copy(update={"image_root": root})
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    units: list[Unit] = []
    for place in map(look, given):
        found = _format_of(place, settings, rows)
        _refuse_unused(found, place, settings)
        rows = rows or found.rows_at(place)
        if settings.format is None:
            refuse_unread(found, place, rows, settings, formats().values())
        units.extend(found.list_units(place, settings, rows))
    if not any(unit.num_rows != 0 for unit in units):
        raise UserError(f"no rows in {', '.join(map(str, given)) or 'an empty list of paths'}")
    return with_one_payload(units)


def read_data(unit: Unit) -> Iterator[pa.RecordBatch]:
    """Read one unit.

    Args:
        unit: from `list_data`.

    Yields:
        Batches of Items (`item_schema` with the unit's payload) or Samples (`sample_schema`), rows
        in the unit's order, and a further column `error: string`: null = fine, otherwise the reason
        why the row could not be read; `parts` is null then, and id and source are there as far as
        they are known.

    Raises:
        UserError: the file is gone, changed since it was listed, or is damaged as a whole.
        StorageError: storage fails at it, or at what its rows refer to.
    """
    return map(_without_content, _opened(unit))


def read_keyed(unit: Unit) -> Iterator[tuple[pa.RecordBatch, pa.Int64Array]]:
    """As `read_data`, each batch of Items with the keys of its rows (keys.py)."""
    for batch in _opened(unit):
        yield _without_content(batch), row_keys(batch)


def _opened(unit: Unit) -> Iterator[pa.RecordBatch]:
    known = formats()[unit.format]
    for batch in known.read_unit(unit):
        yield from known.open_rows(batch, unit.settings) if known.open_rows else [batch]


def _without_content(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.drop_columns([CONTENT]) if CONTENT in batch.schema.names else batch


def read_links(unit: Unit) -> Iterator[pa.RecordBatch]:
    """As `read_data`, but what rows refer to stays closed until `open_links`.

    For whoever takes few rows of a unit at a time, as a training step does.
    """
    return map(_without_content, formats()[unit.format].read_unit(unit))


def open_links(table: pa.Table, unit: Unit) -> pa.Table:
    """Rows that `read_links` gave, of this unit or one like it, with all they refer to."""
    open_rows = formats()[unit.format].open_rows
    if open_rows is None:
        return table
    return pa.Table.from_batches(open_rows(table, unit.settings))


def detect(
    place: Place, rows: Rows | None = None, settings: ReaderSettings | None = None
) -> tuple[Format, str]:
    """The format of a place, and why it is that one.

    Args:
        place: where the files are.
        rows: what they are needed as; None = anything.
        settings: only a format that uses all of these is the one: `--columns` means a table.

    Raises:
        UserError: none fits; lists all and says how to name one. Or one fits that gives other rows.
    """
    other: list[str] = []
    for known in formats().values():
        if (reason := known.detect(place)) is None:
            continue
        if rows is not None and rows not in known.rows:
            other.append(f"{known.name} ({reason}), which is read as {' or '.join(known.rows)}")
        elif unused := known.unused(settings):
            other.append(f"{known.name} ({reason}), which does not use {', '.join(unused)}")
        else:
            if known.name in TABLES and not (settings and settings.columns):
                _refuse_samples(place, known, rows)
            return known, reason
    what = f"holds {' and '.join(other)}" if other else "format not recognised"
    raise UserError(f"{place.path}: {what}. Found: {_shown(place)}. {_choices(rows)}")


def _refuse_samples(place: Place, table: Format, rows: Rows | None) -> None:
    """Refuse to take training rows for any table: what happens to have a known name is no item."""
    for known in formats().values():
        if rows is None or rows in known.rows or (reason := known.detect(place)) is None:
            continue
        raise UserError(
            f"{place.path}: training rows, format {known.name} ({reason}), and here {rows} are "
            "needed. Give the corpus that they were made from; or say which columns are an item, "
            f"as in --format {table.name} --columns text=...,image=...; the rows themselves are "
            "read by training (data.sources) and by mine"
        )


def _format_of(place: Place, settings: ReaderSettings, rows: Rows | None) -> Format:
    if settings.format is None:
        return detect(place, rows, settings)[0]
    known = formats()
    if settings.format not in known:
        raise UserError(
            f"unknown format {settings.format!r}; {did_you_mean(settings.format, known)}"
        )
    found = known[settings.format]
    if rows is not None and rows not in found.rows:
        raise UserError(
            f"{place.path}: format {found.name} is read as {' or '.join(found.rows)}, here {rows} "
            f"are needed. {_choices(rows)}"
        )
    return found


def _refuse_unused(found: Format, place: Place, settings: ReaderSettings) -> None:
    if unused := found.unused(settings):
        used = ", ".join(sorted(found.uses)) or "none"
        raise UserError(
            f"{place.path}: format {found.name} does not use {', '.join(unused)} (it uses: {used});"
            " leave that out, or name another format with --format"
        )


def _shown(place: Place) -> str:
    names = [entry.name for entry in place.files[:4]]
    more = len(place.files) - len(names)
    return (", ".join(names) or "no files") + (f" and {more} more files" if more > 0 else "")


def _choices(rows: Rows | None) -> str:
    fitting = [f for f in formats().values() if rows is None or rows in f.rows]
    listed = "; ".join(f"{known.name}: {known.claim}" for known in fitting)
    return f"Name the format (--format, format of a source, or reader.format): {listed}"
