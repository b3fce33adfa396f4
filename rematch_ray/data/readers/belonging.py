"""Files that hold no rows of the folder they lie in: judgements, metadata, figures, our outputs.

It knows their names and, of an output, what its manifest says; no format. Middle floor.
"""

from __future__ import annotations

import json
import re

import numpy as np
import pyarrow.fs as pafs

from rematch_ray.data.readers.endings import IMAGES, TABLES
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import (
    FAILURES,
    Place,
    filesystem,
    is_uri,
    join,
    open_file,
    read_bytes,
)
from rematch_ray.errors import UserError

README, README_BYTES = "README.md", 2**20
# more images than these are no figures of a README
FIGURES = 1000
MANIFEST, MANIFEST_BYTES = "manifest.json", 2**28
# what the manifest of an output of ours says: of embeddings, and of mined rows
_OUTPUTS = ({"identity", "shards"}, {"job", "mined"})
# where an embedding job keeps what is not finished
_STAGING = ".progress"
# what our jobs could not read; written even where they wrote nothing else
_REPORTS = {"refused.parquet", "unreadable.jsonl"}


def without_belongings(place: Place, left: FileList) -> FileList:
    """Those of a folder's files that may hold rows.

    Args:
        place: the folder.
        left: files of it that are not read.
    """
    figures = _figures(place, left.ending(*IMAGES))
    # of an image folder the metadata are the rows
    has_images = len(left.ending(*IMAGES)) > len(figures)
    tables = set(left.ending(*TABLES).rows.tolist())
    outputs: dict[str, bool] = {}
    rows = []
    for row, (at, entry) in enumerate(zip(left.rows.tolist(), left)):
        if entry.name in figures or _is_about_rows(entry, with_metadata=not has_images):
            continue
        if at not in tables or not _is_output(place, entry, outputs):
            rows.append(row)
    return left.take(np.array(rows, np.int64))


def _is_about_rows(entry: FileEntry, *, with_metadata: bool) -> bool:
    """Whether a file holds judgements or metadata, by its name or that of a folder it lies in."""
    stems = [name.partition(".")[0].lower() for name in entry.name.split("/")]
    if any(stem.startswith("qrels") for stem in stems):
        return True
    return with_metadata and "metadata" in stems


def _is_output(place: Place, entry: FileEntry, known: dict[str, bool]) -> bool:
    """Whether a table lies in what a job of ours wrote, which may stand beside its data."""
    folder, slash, file = entry.name.rpartition("/")
    if file in _REPORTS:
        return True
    if slash and folder not in known:
        known[folder] = _has_manifest(place, folder) or _is_staged(place, folder)
    return bool(slash) and known[folder]


def _has_manifest(place: Place, folder: str) -> bool:
    found = place.find(f"{folder}/{MANIFEST}")
    if found is None:
        return False
    try:
        told = json.loads(read_bytes(found.path, limit=MANIFEST_BYTES))
    # somebody else's
    except (UserError, ValueError, RecursionError):
        return False
    return isinstance(told, dict) and any(keys <= told.keys() for keys in _OUTPUTS)


def _is_staged(place: Place, folder: str) -> bool:
    """Whether a folder is an output that is not finished; no job writes to a store."""
    if is_uri(place.path):
        return False
    system, inner = filesystem(join(place.path, f"{folder}/{_STAGING}"))
    return system.get_file_info(inner).type == pafs.FileType.Directory


def _figures(place: Place, images: FileList) -> set[str]:
    """The names of images that what describes the folder shows."""
    if not 0 < len(images) <= FIGURES or place.find(README) is None:
        return set()
    with open_file(join(place.path, README)) as file:
        try:
            readme = file.read(README_BYTES).decode(errors="replace")
        except FAILURES as error:
            raise UserError(f"{place.path}/{README}: cannot be read: {error}") from error
    return {
        entry.name
        for entry in images
        if re.search(rf"(?<![\w-]){re.escape(entry.name)}(?![\w-])", readme)
    }
