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

from rematch_ray.errors import UserError

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
