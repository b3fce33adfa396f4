"""The log of a run: one JSON object per line, written by rank 0 and read while it grows.

A full disk does not end a training run: what cannot be written waits in memory and is written with
the next record. Nor does a line that a process left half written when it was killed: the next
record begins a line of its own, and readers leave out what is no record. Plain files; knows nothing
of Ray, models or what the records say.
"""

import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

FULL = (errno.ENOSPC, errno.EDQUOT)


class Journal:
    """The records of one file.

    Args:
        path: the file; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting: list[bytes] = []

    def append(self, record: dict[str, Any]) -> None:
        """Append a record, and what was waiting for room on the disk before it."""
        self._waiting.append(json.dumps(record).encode() + b"\n")
        with self.path.open("a+b", buffering=0) as file:
            whole = file.seek(0, os.SEEK_END)
            try:
                _write_all(file.fileno(), _line_end(file, whole) + b"".join(self._waiting))
            except OSError as error:
                file.truncate(whole)  # half a line would spoil the next one
                if error.errno not in FULL:
                    raise
                return
        self._waiting.clear()

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield every record; a last line that is still being written is left out."""
        yield from Tail(self.path).read().records

    def keep(self, kept: list[dict[str, Any]]) -> None:
        """Replace the whole file by these records."""
        self._waiting.clear()
        replace(self.path, "".join(json.dumps(record) + "\n" for record in kept))


@dataclass(frozen=True)
class News:
    """What a `Tail` found.

    Args:
        anew: the file was written anew: the records are all it holds, not only the latest.
        records: in order.
        damaged: numbers, from 1, of lines that are no record: a process was killed as it wrote one.
    """

    anew: bool
    records: list[dict[str, Any]]
    damaged: list[int]


class Tail:
    """Reads on from where the last call stopped, however long the file is by now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = 0
        self._offset = 0
        self._lines = 0

    def read(self) -> News:
        """Return the records since the last call, and which lines are none."""
        try:
            with self._path.open("rb") as file:
                state = os.fstat(file.fileno())
                anew = state.st_ino != self._file or state.st_size < self._offset
                if anew:
                    self._file, self._offset, self._lines = state.st_ino, 0, 0
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return News(False, [], [])
        self._offset += len(whole) + len(newline)
        news = News(anew, [], [])
        for line in (whole + newline).split(b"\n")[:-1]:
            self._lines += 1
            record = _parsed(line)
            if record is None:
                news.damaged.append(self._lines)
            else:
                news.records.append(record)
        return news


def replace(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The record of a line, None where there is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _line_end(file: BinaryIO, size: int) -> bytes:
    """What ends the last line of a file: nothing, or the newline that a killed process owes."""
    if not size:
        return b""
    file.seek(size - 1)
    return b"" if file.read(1) == b"\n" else b"\n"


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]
