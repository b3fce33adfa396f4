"""A folder that is full after so many bytes, for whatever takes a pyarrow filesystem."""

import errno
import os
import time
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileOpener, LocalFileSystem
from pyarrow.fs import FSSpecHandler, PyFileSystem

PATIENCE_S = 120.0


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
    """A local disk on which every folder has room for so many bytes.

    Args:
        room: bytes of a folder.
        late: whoever opens the first file makes this folder, and waits until it is gone.
    """

    cachable = False

    def __init__(self, room: int, late: Path, **options: Any) -> None:
        super().__init__(**options)
        self.room = room
        self.late = late

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **rest: Any) -> Any:
        try:
            self.late.mkdir()
        except FileExistsError:
            pass
        else:
            _wait_until_gone(self.late)
        file = FullFile(path, mode, fs=self, **rest)
        file.room = self.room
        return file


class SignallingDisk(LocalFileSystem):
    """A local disk whose first file lets the late writer of a full one go on, and waits for it.

    Args:
        late: the folder that it waits for.
    """

    cachable = False

    def __init__(self, late: Path, **options: Any) -> None:
        super().__init__(**options)
        self.late = late

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **rest: Any) -> Any:
        if self.late.exists():
            self.late.rmdir()
            time.sleep(2.0)
        return super()._open(path, mode, block_size, **rest)


def _wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while folder.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def full_disk(room: int, late: Path) -> PyFileSystem:
    """The disk as pyarrow and Ray Data take it."""
    return PyFileSystem(FSSpecHandler(FullDisk(room, late)))


def signalling_disk(late: Path) -> PyFileSystem:
    """The disk of the run that follows."""
    return PyFileSystem(FSSpecHandler(SignallingDisk(late)))
