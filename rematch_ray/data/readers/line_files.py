"""Pieces of files of lines: counted, so that a training plan knows every row beforehand.

A file is read through once when it is listed, which counts its lines and identifies its content.
Empty lines are no rows. It does not know what a line holds. Middle floor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from rematch_ray.data.readers.files import FAILURES, FileEntry, open_file
from rematch_ray.data.readers.lines import split_lines
from rematch_ray.data.readers.settings import ReaderSettings
from rematch_ray.data.readers.units import Rows, Unit
from rematch_ray.errors import UserError


def list_lines(
    entry: FileEntry, name: str, rows: Rows, settings: ReaderSettings, *, unit_rows: int
) -> list[Unit]:
    """The pieces of a file, each at most `unit_rows` lines; `begin` and `end` are bytes.

    Raises:
        UserError: the file cannot be read, or has a line of more than 512 MiB.
    """
    digest = hashlib.sha256()
    cuts: list[tuple[int, int]] = [(0, 0)]  # (byte, row) at which a piece begins
    place = row = 0
    for line in _lines(entry.path):
        digest.update(line)
        if line.strip():
            if row - cuts[-1][1] == unit_rows:
                cuts.append((place, row))
            row += 1
        place += len(line)
    ends = [*cuts[1:], (place, row)]
    return [
        Unit(
            format=name,
            path=entry.path,
            rows=rows,
            num_rows=last_row - first_row,
            num_bytes=end - begin,
            first_row=first_row,
            begin=begin,
            end=end,
            stamp=digest.hexdigest(),
            settings=settings,
        )
        for (begin, first_row), (end, last_row) in zip(cuts, ends)
        if last_row > first_row
    ]


def read_lines(unit: Unit) -> list[bytes]:
    """The lines of a piece, without empty ones.

    Raises:
        UserError: the file is gone, or has another number of lines there.
    """
    try:
        with open_file(unit.path) as file:
            file.seek(unit.begin)
            content = file.read(unit.end - unit.begin)
    except FAILURES as error:
        raise UserError(f"{unit.place} cannot be read: {error}") from error
    lines = [line for line in content.split(b"\n") if line.strip()]
    if len(lines) != unit.num_rows:
        raise UserError(
            f"{unit.place} has {len(lines)} lines, {unit.num_rows} when the data was listed; do "
            "not write to a data set while it is being read"
        )
    return lines


def first_line(path: str) -> bytes:
    """The first line that is not empty, or an empty object."""
    return next(read_file_lines(path), b"{}")


def read_file_lines(path: str) -> Iterator[bytes]:
    """Every line of a file, without empty ones."""
    return (line for line in _lines(path) if line.strip())


def _lines(path: str) -> Iterator[bytes]:
    with open_file(path) as file:
        yield from split_lines(file, path)
