"""Opening `.npy` files from several threads.

Python 3.11 keeps the state of its literal parser once per process: of two threads that read the
headers of such files at the same moment one may fail with a SystemError ("AST constructor recursion
depth mismatch"). So they take turns. Middle floor.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TURN = threading.Lock()


def map_npy(path: Path) -> NDArray[Any]:
    """Maps a `.npy` file without reading more than its header.

    Raises:
        OSError, EOFError, ValueError: as of `np.load`.
    """
    with _TURN:
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return mapped
