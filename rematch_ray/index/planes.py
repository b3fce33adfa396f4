"""Plane files: the vectors of one range of document tokens, document-major, `[N][n][D]`.

A plane is a plain `.npy` file of float16, so that numpy alone opens it; it is written batch by
batch and read through a memory map, so that a small budget never touches the planes above it. The
element type is decided here and nowhere else. Knows nothing of segments or scores. Middle floor.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import FileEntry

DTYPE = np.dtype("<f2")


def plane_file(start: int, stop: int) -> str:
    """File name of the plane that holds document tokens [start, stop).

    >>> plane_file(4, 8)
    'plane_4_8.npy'
    """
    return f"plane_{start}_{stop}.npy"


class PlaneWriter:
    """Writes one plane file of a known shape in batches; a context manager.

    Args:
        path: file to write.
        shape: final shape, documents first: (N, n, D), or (N, F) for fused vectors.
    """

    def __init__(self, path: Path, shape: Sequence[int]) -> None:
        self.path = path
        self.shape = tuple(shape)
        self._rows = 0
        self._digest = hashlib.sha256()
        self._file = open(path, "w+b")  # noqa: SIM115 -- closed by __exit__
        header = {"descr": DTYPE.str, "fortran_order": False, "shape": self.shape}
        np.lib.format.write_array_header_1_0(self._file, header)
        self._file.seek(0)
        self._digest.update(self._file.read())

    def __enter__(self) -> PlaneWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, block: NDArray[np.floating]) -> None:
        """Adds the next documents, (rows, *shape[1:])."""
        assert block.shape[1:] == self.shape[1:], (block.shape, self.shape)
        data = np.ascontiguousarray(block, dtype=DTYPE).tobytes()
        self._file.write(data)
        self._digest.update(data)
        self._rows += len(block)

    def finish(self) -> FileEntry:
        """Makes the file durable and describes it; all rows must have been written."""
        assert self._rows == self.shape[0], (self._rows, self.shape)
        self._file.flush()
        os.fsync(self._file.fileno())
        return FileEntry(bytes=self._file.tell(), sha256=self._digest.hexdigest())


def open_plane(path: Path, shape: Sequence[int]) -> NDArray[np.float16]:
    """Maps a plane file without reading it.

    Args:
        path: a file that a PlaneWriter made.
        shape: the shape that the manifest promises.

    Returns:
        Read-only memory map, float16.

    Raises:
        UserError: the file is missing, cut short, or of another shape or type.
    """
    try:
        plane = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError) as broken:
        raise UserError(f"{path} cannot be mapped ({broken}): the index is damaged") from broken
    if plane.shape != tuple(shape) or plane.dtype != DTYPE:
        raise UserError(
            f"{path} holds {plane.dtype} {plane.shape}, its manifest says {DTYPE} "
            f"{tuple(shape)}: the index is damaged, build it again"
        )
    return plane
