"""Folders of image files: format `images`, a row per image, known by its path below the folder.

A caption lies beside its image: `a.txt` or `a.json` for `a.jpg`. A table `metadata.csv` or
`metadata.jsonl` takes the place of such files, and its rows are then the rows
(folder_tables.py). Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from posixpath import basename, splitext

import pyarrow as pa

from rematch_ray.data.readers import csv_files, json_lines
from rematch_ray.data.readers.batches import error_row, to_batches
from rematch_ray.data.readers.endings import IMAGES
from rematch_ray.data.readers.files import (
    FileEntry,
    Place,
    StorageError,
    join,
    parent,
    read_bytes,
)
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
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "images"
SIDECARS = (".txt", ".json")
CAPTION_BYTES = 2**20
TABLES = (".parquet", *json_lines.SUFFIXES, *csv_files.SUFFIXES)


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    images, tables = _images(place), _tables(place)
    if not images:
        raise UserError(f"{place.path}: no image file ({', '.join(IMAGES)})")
    for table in tables:
        yield from table_units(table, NAME, settings, rows)
    if not tables:
        yield from _image_units(place, images, settings, rows)


def _image_units(
    place: Place, images: Sequence[FileEntry], settings: ReaderSettings, rows: Rows
) -> Iterator[Unit]:
    beside = {image.name: _beside(place, image) for image in images}
    folder = place.path if place.is_folder else parent(place.path)
    schema = _schema(folder, beside, settings)
    # without any JSON there are no other fields
    is_open = any(name.endswith(".json") for names in beside.values() for name in names)
    payload = mapped_values(schema, settings, place.path, is_open=is_open).payload
    first_row = 0
    for group in _groups(images, settings):
        yield Unit(
            format=NAME,
            path=folder,
            rows=rows,
            num_rows=len(group),
            num_bytes=sum(image.size for image in group),
            first_row=first_row,
            begin=first_row,
            end=first_row + len(group),
            members=tuple(image.name for image in group),
            stamp=",".join(_stamp(place, image, beside[image.name]) for image in group),
            payload=payload,
            settings=settings,
            options={
                "schema": schema,
                "is_open": is_open,
                "beside": {i.name: beside[i.name] for i in group},
            },
        )
        first_row += len(group)


def _groups(images: Sequence[FileEntry], settings: ReaderSettings) -> Iterator[list[FileEntry]]:
    group: list[FileEntry] = []
    size = 0
    for image in images:
        if group and (size + image.size > settings.unit_bytes or len(group) == settings.unit_files):
            yield group
            group, size = [], 0
        group.append(image)
        size += image.size
    yield group


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    if not unit.members:
        yield from read_table(unit)
        return
    mapped = mapped_values(
        unit.options["schema"], unit.settings, unit.path, is_open=unit.options["is_open"]
    )
    rows = (_row(name, mapped, unit) for name in unit.members)
    yield from to_batches(rows, item_schema(unit.payload))


def _row(name: str, mapped: Mapped, unit: Unit) -> Row:
    where = join(unit.path, name)
    try:
        image = read_bytes(where, limit=IMAGE_BYTES)
        contents = {
            name.rpartition(".")[2]: image,
            **_captions(unit.path, unit.options["beside"][name]),
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


def _beside(place: Place, image: FileEntry) -> tuple[str, ...]:
    stem = splitext(image.name)[0]
    return tuple(f"{stem}{suffix}" for suffix in SIDECARS if place.find(f"{stem}{suffix}"))


def _stamp(place: Place, image: FileEntry, beside: Sequence[str]) -> str:
    found = [place.find(name) for name in beside]
    return ";".join([image.stamp, *(entry.stamp for entry in found if entry is not None)])


def _schema(folder: str, beside: dict[str, tuple[str, ...]], settings: ReaderSettings) -> pa.Schema:
    """Columns and types of what lies beside some of the images."""
    rows: list[Row] = []
    names = [name for name, found in beside.items() if found]
    for name in sampled(names):
        try:
            rows.append(values_of(name, _captions(folder, beside[name])))
        except StorageError:
            raise
        # its row will say so
        except UserError:
            continue
    return values_schema(rows, settings, folder, is_partial=len(names) > SAMPLE)


def _images(place: Place) -> tuple[FileEntry, ...]:
    return place.ending(*IMAGES)


def _tables(place: Place) -> list[FileEntry]:
    return [entry for entry in place.files if basename(entry.name) in METADATA]


def _reads(place: Place) -> list[FileEntry]:
    images = _images(place)
    return [*images, *_tables(place)] if images else []


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
