"""A folder that is full after so many bytes, for whatever takes a pyarrow filesystem."""

import errno
import os
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem


class FullFile(LocalFileOpener):
    """A local file in a folder that has room for so many bytes, other processes' included."""

    room = 0

    def write(self, data: Any) -> int:
        """Write while there is room."""
        self.f.flush()
        held = sum(file.stat().st_size for file in Path(self.path).parent.iterdir())
        if held + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
        return int(self.f.write(data))


class FullDisk(LocalFileSystem):
    """A local disk on which every folder has room for so many bytes."""

    cachable = False

    def __init__(self, room: int, **options: Any) -> None:
        super().__init__(**options)
        self.room = room

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **rest: Any) -> Any:
        file = FullFile(path, mode, fs=self, **rest)
        file.room = self.room
        return file


def full_disk(room: int) -> PyFileSystem:
    """The disk as pyarrow and Ray Data take it."""
    return PyFileSystem(FSSpecHandler(FullDisk(room)))
