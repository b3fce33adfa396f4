"""Lines of a file between two bytes, so that a large file is read in pieces by many tasks.

A piece has every line that begins in it, wherever the line ends. Compressed files (.gz, .bz2,
.zst) cannot be entered in the middle and are one piece, whose bytes count uncompressed. It does not
know what a line holds. Middle floor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from rematch_ray.data.readers.files import FAILURES, Damaged, FileEntry, is_stored, open_file
from rematch_ray.errors import UserError

COMPRESSED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
BLOCK_BYTES = 2**20
# a longer line is no row of a table but another kind of file
LINE_BYTES = 512 * 2**20


def ranges(entry: FileEntry, unit_bytes: int) -> list[tuple[int, int]]:
    """The pieces of a file as [begin, end) in bytes; a compressed one is a single piece."""
    if entry.suffix in COMPRESSED:
        return [(0, entry.size)]
    return [
        (begin, min(begin + unit_bytes, entry.size)) for begin in range(0, entry.size, unit_bytes)
    ]


def lines_between(path: str, begin: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The lines that begin in [begin, end), each with the byte where it begins and with its end.

    Raises:
        UserError: the file cannot be read, or has a line of more than 512 MiB.
        Damaged: a compressed file ends early or is none; comes behind the lines before that.
    """
    compressed = path[path.rfind(".") :].lower() in COMPRESSED
    # from one byte before: whether a line begins at `begin` shows there
    place = 0 if compressed else max(begin - 1, 0)
    with _opened(path) as file:
        if place:
            file.seek(place)
        for line in split_lines(file, path):
            start, place = place, place + len(line)
            if start >= end and not compressed:
                return
            if start >= begin:
                yield start, line


@contextmanager
def _opened(path: str) -> Iterator[pa.NativeFile]:
    with open_file(path) as file:
        kind = COMPRESSED.get(path[path.rfind(".") :].lower())
        if kind is None:
            yield file
        else:
            with pa.CompressedInputStream(file, kind) as stream:
                yield stream


def split_lines(file: pa.NativeFile, path: str) -> Iterator[bytes]:
    """The lines of an open file from where it stands, each with its end.

    Raises:
        UserError: the file cannot be read, or has a line of more than 512 MiB.
    """
    pending: list[bytes] = []
    size = 0
    while block := _block(file, path):
        *whole, rest = block.split(b"\n")
        for line in whole:
            yield b"".join((*pending, line, b"\n"))
            pending, size = [], 0
        pending.append(rest)
        size += len(rest)
        if size > LINE_BYTES:
            raise UserError(f"{path}: a line of more than {LINE_BYTES} bytes; this is no table")
    if size:
        yield b"".join(pending)


def _block(file: pa.NativeFile, path: str) -> bytes:
    try:
        return file.read(BLOCK_BYTES)
    except FAILURES as error:
        told = f"{path}: cannot be read: {error}"
        raise (Damaged if _is_damaged(path) else UserError)(told) from error


def _is_damaged(path: str) -> bool:
    """Whether a compressed file fails a second time, and not because storage does."""
    if path[path.rfind(".") :].lower() not in COMPRESSED:
        return False
    try:
        with _opened(path) as file:
            while file.read(BLOCK_BYTES):
                pass
    except FAILURES:
        return is_stored(path)
    return False
