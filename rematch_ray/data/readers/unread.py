"""Files of a folder that the format it is read in leaves unread: their rows would be lost silently.

A folder has one format. What lies beside its files and belongs to them (judgements, metadata, what
rows refer to) is no loss; any other file that some format reads is one. It knows names of files,
and of a format what it reads. Middle floor.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rematch_ray.data.readers.endings import IMAGES, TARS
from rematch_ray.data.readers.files import FAILURES, FileEntry, Place, open_file
from rematch_ray.data.readers.units import Rows
from rematch_ray.errors import UserError

if TYPE_CHECKING:
    from rematch_ray.data.readers.formats import Format

SHOWN = 3
README, README_BYTES = "README.md", 2**20
# what the folder of an embedding job holds beside its shards
_EMBEDDINGS = ("manifest.json", "summary.json")


def refuse_unread(found: Format, place: Place, rows: Rows, known: Iterable[Format]) -> None:
    """Refuse a folder that is read in part where another format would read the rest.

    Args:
        found: the format that was detected.
        place: the folder; a single file is read as a whole.
        rows: what is needed: a file that gives no such rows is no loss.
        known: every format.

    Raises:
        UserError: names some of the files that would be left unread.
    """
    left = _unread(found, place, rows, known) if place.is_folder else []
    if left:
        count = len({entry.name for entry in found.reads(place)})
        names = ", ".join(entry.name for entry in left[:SHOWN])
        raise UserError(
            f"{place.path}: format {found.name} was detected, which reads {count} files here and "
            f"would leave out {len(left)} that hold rows too "
            f"({names}{', ...' if len(left) > SHOWN else ''}); give the files or subfolders "
            "that are meant, each as a path of its own, or name the format whose files "
            f"alone are meant, as in --format {found.name}"
        )


def is_image(place: Place, entry: FileEntry) -> bool:
    """Whether a file is an image: beside a table it is what rows refer to."""
    return entry.name.lower().endswith(IMAGES)


def is_media(place: Place, entry: FileEntry) -> bool:
    """Whether a file is an image, or an archive in which a data set ships its images."""
    return entry.name.lower().endswith((*IMAGES, *TARS))


def _unread(found: Format, place: Place, rows: Rows, known: Iterable[Format]) -> list[FileEntry]:
    others = {
        entry.name: entry
        for other in known
        if other is not found and rows in other.rows
        for entry in other.reads(place)
        if not found.beside(place, entry)
    }
    for entry in found.reads(place) if others else ():
        others.pop(entry.name, None)
    left = [
        entry
        for _, entry in sorted(others.items())
        if not _is_about_rows(place, entry) and not _is_embedding(place, entry)
    ]
    readme = _readme(place) if any(is_image(place, entry) for entry in left) else ""
    return [entry for entry in left if not (is_image(place, entry) and _shows(readme, entry))]


def _is_about_rows(place: Place, entry: FileEntry) -> bool:
    """Whether a file holds judgements or metadata, by its name or that of a folder it lies in."""
    stems = [name.partition(".")[0].lower() for name in entry.name.split("/")]
    if any(stem.startswith("qrels") for stem in stems):
        return True
    # of an image folder the metadata are the rows
    return "metadata" in stems and not place.ending(*IMAGES)


def _is_embedding(place: Place, entry: FileEntry) -> bool:
    """Whether a file lies in the output of an embedding job, which may stand beside its data."""
    folder, slash, _ = entry.name.rpartition("/")
    return bool(slash) and all(place.find(f"{folder}/{name}") for name in _EMBEDDINGS)


def _readme(place: Place) -> str:
    if place.find(README) is None:
        return ""
    with open_file(f"{place.path.rstrip('/')}/{README}") as file:
        try:
            return file.read(README_BYTES).decode(errors="replace")
        except FAILURES as error:
            raise UserError(f"{place.path}/{README}: cannot be read: {error}") from error


def _shows(readme: str, entry: FileEntry) -> bool:
    """Whether an image is a figure of what describes the folder."""
    return bool(re.search(rf"(?<![\w-]){re.escape(entry.name)}(?![\w-])", readme))
