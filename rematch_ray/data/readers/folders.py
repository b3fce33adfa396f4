"""Folders of image files: format `images`, a row per image, known by its path below the folder.

A caption lies beside its image: `a.txt` or `a.json` for `a.jpg`. A table `metadata.csv` or
`metadata.jsonl` takes the place of such files, and its rows are then the rows
(folder_tables.py). Middle floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from posixpath import basename, splitext

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.endings import IMAGES, TABLES
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import Place, StorageError, join, parent, read_bytes
from rematch_ray.data.readers.folder_tables import METADATA, read_table, table_units
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.json_lines import MAPPED_USES
from rematch_ray.data.readers.mapping import Mapped
from rematch_ray.data.readers.references import IMAGE_BYTES
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.sidecars import (
    SAMPLE,
    item_of,
    mapped_values,
    sampled,
    values_of,
    values_schema,
)
from rematch_ray.data.readers.units import Names, Rows, Unit
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "images"
SIDECARS = (".txt", ".json")
CAPTION_BYTES = 2**20


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    images, tables = _images(place), _tables(place)
    if not images:
        raise UserError(f"{place.path}: no image file ({', '.join(IMAGES)})")
    for table in tables:
        yield from table_units(table, NAME, settings, rows)
    if not tables:
        yield from _image_units(place, images, settings, rows)


def _image_units(
    place: Place, images: FileList, settings: ReaderSettings, rows: Rows
) -> Iterator[Unit]:
    beside = _Beside(place, images)
    folder = place.path if place.is_folder else parent(place.path)
    is_partial = beside.count() > SAMPLE
    schema = _schema(folder, beside.sample(images), settings, is_partial=is_partial)
    # without any JSON there are no other fields
    is_open = beside.has(".json")
    payload = mapped_values(schema, settings, place.path, is_open=is_open).payload
    for begin, end in _groups(images, settings):
        part = slice(begin, end)
        names = Names(images.names[part].to_pylist())
        yield Unit(
            format=NAME,
            path=folder,
            rows=rows,
            num_rows=end - begin,
            num_bytes=int(images.sizes[part].sum()),
            first_row=begin,
            begin=begin,
            end=end,
            members=names,
            stamp=_stamp([images.stamps[part].to_pylist(), *beside.stamps(part)]),
            payload=payload,
            settings=settings,
            options={"schema": schema, "is_open": is_open, "beside": beside.marks[part].tobytes()},
        )


def _groups(images: FileList, settings: ReaderSettings) -> Iterator[tuple[int, int]]:
    """(begin, end) of the images of each piece."""
    begin = size = 0
    for end in range(len(images)):
        more = int(images.sizes[end])
        if end > begin and (
            size + more > settings.unit_bytes or end - begin == settings.unit_files
        ):
            yield begin, end
            begin, size = end, 0
        size += more
    yield begin, len(images)


class _Beside:
    """What lies beside each image.

    Attributes:
        marks: (n,) uint8, a bit for each of `SIDECARS` that is there.
    """

    def __init__(self, place: Place, images: FileList) -> None:
        self.marks = np.zeros(len(images), np.uint8)
        self._found: list[tuple[FileList, pa.Int32Array]] = []
        for bit, suffix in enumerate(SIDECARS):
            files = place.ending(suffix)
            if not files:
                continue
            names = pc.replace_substring_regex(images.names, r"\.[^./]*$", suffix)
            rows = files.rows_of(names)
            self.marks |= rows.is_valid().to_numpy(zero_copy_only=False).astype(np.uint8) << bit
            self._found.append((files, rows))

    def has(self, suffix: str) -> bool:
        """Whether any image has a file of this suffix beside it."""
        return bool((self.marks >> SIDECARS.index(suffix) & 1).any())

    def count(self) -> int:
        """How many images have anything beside them."""
        return int(np.count_nonzero(self.marks))

    def sample(self, images: FileList) -> dict[str, tuple[str, ...]]:
        """The names beside some of the images that have any."""
        with_any = np.flatnonzero(self.marks)
        rows = with_any[list(sampled(range(len(with_any))))]
        names = (image.name for image in images.take(rows))
        return {n: _names_beside(n, int(m)) for n, m in zip(names, self.marks[rows])}

    def stamps(self, part: slice) -> Iterator[list[str | None]]:
        """By suffix the stamps of what lies beside some of the images."""
        for files, rows in self._found:
            yield files.stamps.take(rows[part]).to_pylist()


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    if not unit.members:
        yield from read_table(unit)
        return
    mapped = mapped_values(
        unit.options["schema"], unit.settings, unit.path, is_open=unit.options["is_open"]
    )
    marked = zip(unit.members, unit.options["beside"], strict=True)
    rows = (_row(name, _names_beside(name, marks), mapped, unit) for name, marks in marked)
    yield from to_batches(rows, item_schema(unit.payload))


def _row(name: str, beside: Sequence[str], mapped: Mapped, unit: Unit) -> Row:
    where = join(unit.path, name)
    try:
        image = read_bytes(where, limit=IMAGE_BYTES)
        contents = {
            name.rpartition(".")[2]: image,
            **_captions(unit.path, beside),
        }
        row = item_of(name, contents, mapped, unit.settings, folder=unit.path, where=where)
    except StorageError:
        raise
    except UserError as error:
        return error_row(str(error), id=name, source=unit.settings.source)
    for part in row.get("parts") or ():
        if part.get("image") is image:
            part["uri"] = name
    return row


def _captions(folder: str, names: Sequence[str]) -> dict[str, bytes]:
    """What lies beside an image, by suffix."""
    return {
        splitext(name)[1][1:].lower(): read_bytes(join(folder, name), limit=CAPTION_BYTES)
        for name in names
    }


def _names_beside(image: str, marks: int) -> tuple[str, ...]:
    """The files beside an image, by the bits of `_Beside`.

    >>> _names_beside("cats/a.png", 2)
    ('cats/a.json',)
    """
    stem = splitext(image)[0]
    return tuple(f"{stem}{suffix}" for bit, suffix in enumerate(SIDECARS) if marks >> bit & 1)


def _stamp(columns: Sequence[Sequence[str | None]]) -> str:
    """One stamp of many, which are not kept."""
    digest = hashlib.sha256()
    for row in zip(*columns, strict=True):
        digest.update((";".join(stamp for stamp in row if stamp is not None) + ",").encode())
    return digest.hexdigest()


def _schema(
    folder: str, beside: dict[str, tuple[str, ...]], settings: ReaderSettings, *, is_partial: bool
) -> pa.Schema:
    """Columns and types of what lies beside some of the images."""
    rows: list[Row] = []
    for name, names in beside.items():
        try:
            rows.append(values_of(name, _captions(folder, names)))
        except StorageError:
            raise
        # its row will say so
        except UserError:
            continue
    return values_schema(rows, settings, folder, is_partial=is_partial)


def _images(place: Place) -> FileList:
    return place.ending(*IMAGES)


def _tables(place: Place) -> list[FileEntry]:
    return [entry for entry in place.ending(*METADATA) if basename(entry.name) in METADATA]


def _reads(place: Place, settings: ReaderSettings) -> FileList:
    images = _images(place)
    # other tables with such an ending keep a folder from being one of images
    return place.ending(*IMAGES, *METADATA) if images else images


def _detect(place: Place) -> str | None:
    images = _images(place)
    # a table that is not the folder's own refers to the images, which are then not the rows
    if not images or any(basename(e.name) not in METADATA for e in place.ending(*TABLES)):
        return None
    return f"{len(images)} image files"


FORMATS = (
    Format(
        name=NAME,
        claim="image files, with captions beside them or in metadata.csv / metadata.jsonl",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        reads=_reads,
        uses=MAPPED_USES | {"unit_bytes", "unit_files"},
    ),
)
