"""The `.npy` files of an index: written batch by batch, mapped by several threads.

Searches read scattered documents of large files, and wait for the addresses of small pages as much
as for the documents: a search of a million took 3.1 to 3.5 ms with nearly all files in pages of
2 MiB, 3.8 to 4.5 with some (benchmarks/results/search.md). A file system that has such pages
(measured on ext4 under Linux 6.18) makes them of what is written in pieces that start and end at
their boundaries, and of what is read for a mapping that asks for them (`preload.read_through`).
Middle floor.
"""

from __future__ import annotations

import hashlib
import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rematch_ray.errors import UserError
from rematch_ray.index.manifest import FileEntry

LARGE_PAGE = 2 * 2**20
# Python 3.11 keeps the state of its literal parser once per process: of two threads that read the
# headers of such files at the same moment one may fail with a SystemError ("AST constructor
# recursion depth mismatch"). So they take turns.
_TURN = threading.Lock()


def map_npy(path: Path) -> NDArray[Any]:
    """Maps a `.npy` file of an open index without reading more than its header.

    Raises:
        UserError: the file is gone by now, or damaged.
    """
    try:
        with _TURN:
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as gone:
        raise overtaken(path) from gone
    except (OSError, EOFError, ValueError) as broken:
        raise UserError(f"{path} cannot be mapped ({broken}): the index is damaged") from broken
    return mapped


def overtaken(path: Path) -> UserError:
    """What to say of a file that was there when its index was opened, and is not any more."""
    return UserError(
        f"{path} is gone: the index was changed twice or more since it was opened, and files of "
        "the last two generations are kept; open it again"
    )


class ArrayWriter:
    """Writes one `.npy` file of a known shape in batches; a context manager.

    Args:
        path: file to write.
        shape: final shape, documents first.
        dtype: element type.
    """

    def __init__(self, path: Path, shape: Sequence[int], dtype: np.dtype[Any]) -> None:
        self.path = path
        self.shape = tuple(shape)
        self.dtype = dtype
        self._rows = 0
        self._digest = hashlib.sha256()
        self._file = open(path, "wb")  # noqa: SIM115 -- closed by __exit__
        # what lies behind the last boundary of large pages
        self._begun = bytearray()
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": dtype.str, "fortran_order": False, "shape": self.shape}
        )
        self._write(header.getvalue())

    def __enter__(self) -> ArrayWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def append(self, block: NDArray[Any]) -> None:
        """Adds the next documents, (rows, *shape[1:])."""
        assert block.shape[1:] == self.shape[1:], (block.shape, self.shape)
        self._write(np.ascontiguousarray(block, dtype=self.dtype).tobytes())
        self._rows += len(block)

    def finish(self) -> FileEntry:
        """Makes the file durable and describes it; all rows must have been written."""
        assert self._rows == self.shape[0], (self._rows, self.shape)
        self._file.write(self._begun)
        self._file.flush()
        os.fsync(self._file.fileno())
        return FileEntry(bytes=self._file.tell(), sha256=self._digest.hexdigest())

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._begun += data
        whole = len(self._begun) // LARGE_PAGE * LARGE_PAGE
        if whole:
            self._file.write(memoryview(self._begun)[:whole])
            # not kept for the next piece, which would put both across the boundary
            self._file.flush()
            del self._begun[:whole]
