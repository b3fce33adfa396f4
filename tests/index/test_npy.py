"""Array files are opened by many threads at once: searches map planes when they first need them."""

import gc
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rematch_ray.index.npy import map_npy


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns at every allocation: the collector runs Python code at each."""
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(1, 1000, 1000)
    gc.callbacks.append(_do_something)
    yield
    gc.callbacks.remove(_do_something)
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


def _do_something(*_: object) -> None:
    for _ in range(10):
        pass


def test_threads_may_map_files_at_the_same_time(tmp_path: Path, eager_threads: None) -> None:
    wanted = np.arange(12.0).reshape(3, 4)
    np.save(tmp_path / "a.npy", wanted)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: map_npy(tmp_path / "a.npy"), range(200)))
    assert all(np.array_equal(each, wanted) for each in found)
