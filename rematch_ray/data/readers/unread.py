"""Files of a folder that the format it is read in leaves unread: their rows would be lost silently.

A folder has one format. What lies beside its files and belongs to them (judgements, metadata, what
rows refer to) is no loss; any other file that another format reads is one where it surely holds
rows of the kind that is needed, and is named in a warning where it may. Middle floor.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rematch_ray.data.readers.belonging import without_belongings
from rematch_ray.data.readers.endings import IMAGES, TABLES, TARS
from rematch_ray.data.readers.file_list import FileEntry, FileList
from rematch_ray.data.readers.files import Place
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.splits import SPLITS, split_of
from rematch_ray.data.readers.units import Rows
from rematch_ray.errors import UserError

if TYPE_CHECKING:
    from rematch_ray.data.readers.formats import Format

_log = logging.getLogger(__name__)

SHOWN = 3
# tables of many that are opened, and of as many folders the first, to see what rows they hold
LOOKED_AT = 64
PDF = ".pdf"
_QUERIES = re.compile(r"quer(y|ies)(?![a-z])", re.IGNORECASE)


def refuse_unread(
    found: Format,
    place: Place,
    rows: Rows,
    settings: ReaderSettings,
    known: Collection[Format],
    *,
    can_be_named: bool = True,
) -> None:
    """Refuse a folder that is read in part where another format would read the rest.

    What may be meant to be left out is named in a warning.

    Args:
        found: the format that was detected.
        place: the folder; a single file is read as a whole.
        rows: what is needed: a file that gives no such rows is no loss.
        settings: how the folder is read.
        known: every format, in the order of detection.
        can_be_named: whether who reads can name the format.

    Raises:
        UserError: names some of the files that would be left unread.
    """
    own = found.reads(place, settings) if place.is_folder else place.files
    if len(own) == len(place.files):
        return
    others = [other for other in known if other is not found and rows in other.rows]
    fitting = [other for other in others if not other.unused(settings)]
    taken = _marks(place, [own, found.beside(place, settings)])
    meant = _marks(place, [other.reads(place, settings) for other in fitting]) & ~taken
    left = without_belongings(place, place.files.take(np.flatnonzero(meant)))
    lost, doubtful = _told_apart(left, own, rows, settings, known)
    if "columns" not in found.uses and not all(map(_is_queries, own)):
        # pages that a data set has drawn of them may be its rows
        lost, sources = _split_off(lost, lost.ending(PDF))
        doubtful += sources
    if len(lost):
        advice = f", or name the format whose files alone are meant, as in --format {found.name}"
        raise UserError(
            f"{place.path}: format {found.name} was detected, which reads {len(own)} files here "
            f"and would leave out {len(lost)} that hold rows too ({_named(lost)}); give the files "
            "or subfolders that are meant, each as a path of its own"
            f"{advice if can_be_named else ''}"
        )
    # of formats that the settings do not go with: those settings say that other files are meant
    any_other = _marks(place, [other.reads(place, settings) for other in others]) & ~taken & ~meant
    doubtful += without_belongings(place, place.files.take(np.flatnonzero(any_other)))
    if doubtful:
        _log.warning(
            "%s is read as %s; %d files beside it are left out (%s)",
            *(place.path, found.name, len(doubtful), _named(doubtful)),
        )


def images(place: Place, settings: ReaderSettings) -> FileList:
    """The images of a place: beside a table they are what rows refer to."""
    return place.ending(*IMAGES)


def media(place: Place, settings: ReaderSettings) -> FileList:
    """The images of a place, and archives, in which a data set ships its images."""
    return place.ending(*IMAGES, *TARS)


def _marks(place: Place, lists: Iterable[FileList]) -> NDArray[np.bool_]:
    """(n,) which files of a place are in any of the lists."""
    marks = np.zeros(len(place.files), np.bool_)
    for files in lists:
        marks[files.rows] = True
    return marks


def _told_apart(
    left: FileList,
    own: FileList,
    rows: Rows,
    settings: ReaderSettings,
    known: Collection[Format],
) -> tuple[FileList, list[FileEntry]]:
    """Files whose rows would surely be lost, and tables that may be meant to be left out."""
    tables = left.ending(*TABLES)
    none: list[int] = []
    doubtful: list[int] = []
    for row, (entry, held) in enumerate(_what_they_hold(tables, known)):
        if held is not None and held[0] != rows and not settings.columns:
            # any table may be one of training rows, whose columns nobody knows
            (doubtful if held[1] else none).append(row)
        elif _is_another_table(entry, own, settings):
            doubtful.append(row)
    others = tables.take(np.array([*none, *doubtful], np.int64))
    return _split_off(left, others)[0], [tables[row] for row in doubtful]


def _split_off(files: FileList, some: FileList) -> tuple[FileList, list[FileEntry]]:
    """The files without some of them, and those."""
    return files.take(np.flatnonzero(~np.isin(files.rows, some.rows))), list(some)


def _what_they_hold(
    tables: FileList, known: Collection[Format]
) -> Iterator[tuple[FileEntry, tuple[Rows, bool] | None]]:
    """Each table with what `_held` says of it, or of the one before it in its folder."""
    step = max(1, -(-len(tables) // LOOKED_AT))
    looked, last, held = 0, "", None
    for number, entry in enumerate(tables):
        folder = entry.name.rpartition("/")[0]
        if number % step == 0 or (folder != last and looked < 2 * LOOKED_AT):
            held = _held(entry, known)
            looked += 1
        last = folder
        yield entry, held


def _held(entry: FileEntry, known: Collection[Format]) -> tuple[Rows, bool] | None:
    """The rows that a table gives when it is read alone, and whether any table gives these."""
    place = Place(entry.path, False)
    try:
        for other in known:
            if other.detect(place) is not None:
                return other.rows_at(place), "columns" in other.uses
    # reading it would say why
    except UserError:
        pass
    return None


def _is_another_table(entry: FileEntry, own: FileList, settings: ReaderSettings) -> bool:
    """Whether a table is by its name the queries, the corpus or a split that is not read."""
    if "corpus" in entry.name.split("/")[:-1]:
        return True
    if settings.part != "queries" and _is_queries(entry):
        return True
    split = split_of(entry)
    return split in SPLITS and all(split_of(read) != split for read in own.ending(*TABLES))


def _is_queries(entry: FileEntry) -> bool:
    return any(map(_QUERIES.match, entry.name.split("/")))


def _named(entries: FileList | list[FileEntry]) -> str:
    names = ", ".join(entry.name for entry in entries[:SHOWN])
    return f"{names}{', ...' if len(entries) > SHOWN else ''}"
