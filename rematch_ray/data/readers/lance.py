"""Lance datasets with a column mapping: format `lance`, by fragments.

No convention for images in Lance is common yet. Ours: `id, image` (encoded bytes), `w, h, text,
source, sha`; any other columns go with `--columns`. A unit is a part of a fragment of one version
of the data set: what is written meanwhile is not read. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from rematch_ray.data.readers.batches import plain_rows, to_batches
from rematch_ray.data.readers.file_list import FileList
from rematch_ray.data.readers.files import FAILURES, Place, join
from rematch_ray.data.readers.formats import Format
from rematch_ray.data.readers.json_lines import MAPPED_USES
from rematch_ray.data.readers.mapping import Mapped, bad_row, item_row, map_columns
from rematch_ray.data.readers.one_payload import with_payload
from rematch_ray.data.readers.sample_rows import Row
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.data.readers.unread import images
from rematch_ray.data.schema import item_schema
from rematch_ray.errors import UserError

NAME = "lance"
VERSIONS = "_versions/"
UNIT_ROWS = 10_000
# its errors are OSError, ValueError or RuntimeError, and a panic in Rust is RuntimeError too
_FAILURES = (*FAILURES, ValueError, RuntimeError)


def _list(place: Place, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    names = _datasets(place)
    if not names:
        raise UserError(f"{place.path}: no Lance dataset (a folder with {VERSIONS})")
    for name in names:
        yield from _dataset_units(join(place.path, name).rstrip("/"), settings, rows)


def _dataset_units(path: str, settings: ReaderSettings, rows: Rows) -> Iterator[Unit]:
    dataset = _open(path)
    mapped = map_columns(dataset.schema, settings, path)
    unit_rows = settings.unit_files if mapped.has_images else UNIT_ROWS
    first_row = 0
    for fragment in dataset.get_fragments():
        num_rows = fragment.count_rows()
        for begin in range(0, num_rows, unit_rows):
            end = min(begin + unit_rows, num_rows)
            yield Unit(
                format=NAME,
                path=path,
                rows=rows,
                num_rows=end - begin,
                num_bytes=_num_bytes(fragment) * (end - begin) // num_rows,
                first_row=first_row + begin,
                begin=begin,
                end=end,
                stamp=f"{dataset.version}:{fragment.fragment_id}",
                payload=mapped.payload,
                settings=settings,
                options={"version": dataset.version, "fragment": fragment.fragment_id},
            )
        first_row += num_rows


def _read(unit: Unit) -> Iterator[pa.RecordBatch]:
    dataset = _open(unit.path, unit.options["version"])
    mapped = map_columns(dataset.schema, unit.settings, unit.path)
    batches = to_batches(_rows(unit, dataset, mapped), item_schema(mapped.payload))
    yield from with_payload(batches, unit.payload)


def _rows(unit: Unit, dataset: Any, mapped: Mapped) -> Iterator[Row]:
    number = unit.first_row
    try:
        fragment = dataset.get_fragment(unit.options["fragment"])
        if fragment is None:
            raise UserError(f"{unit.path}: fragment {unit.options['fragment']} is gone")
        for batch in fragment.to_batches(
            columns=mapped.columns,
            batch_size=64,
            offset=unit.begin,
            limit=unit.end - unit.begin,
        ):
            for values, reason in plain_rows(batch):
                where = f"{unit.path}, row {number}"
                if reason:
                    yield bad_row(reason, values, mapped, unit.settings, where=where)
                else:
                    yield item_row(values, mapped, unit.settings, folder=unit.path, where=where)
                number += 1
    except _FAILURES as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{unit.place}: cannot be read: {error}") from error


def _open(path: str, version: int | None = None) -> Any:
    try:
        import lance
    except ImportError as error:
        raise UserError(
            'Lance datasets are read through pylance; install it: pip install "rematch-ray[lance]"'
        ) from error
    try:
        return lance.dataset(path, version=version)
    except _FAILURES as error:
        raise UserError(f"{path}: not a readable Lance dataset: {error}") from error


def _num_bytes(fragment: Any) -> int:
    return sum(file.file_size_bytes or 0 for file in fragment.metadata.files)


def _datasets(place: Place) -> list[str]:
    """Names of the datasets at a place, "" for the place itself."""
    found = (entry.name.partition(VERSIONS) for entry in place.files)
    roots = {root for root, mark, _ in found if mark}
    return [""] if "" in roots else sorted(root for root in roots if root.endswith("/"))


def _reads(place: Place, settings: ReaderSettings) -> FileList:
    return place.files.starting(*_datasets(place))


def _detect(place: Place) -> str | None:
    found = _datasets(place)
    return f"{len(found)} Lance datasets" if found else None


FORMATS = (
    Format(
        name=NAME,
        claim="Lance datasets (id, image, w, h, text, source, sha, or --columns)",
        rows=("items",),
        detect=_detect,
        list_units=_list,
        read_unit=_read,
        reads=_reads,
        beside=images,
        uses=MAPPED_USES | {"unit_files"},
    ),
)
