"""Array files are written at the boundaries of large pages, and opened by many threads at once."""

import gc
import hashlib
import io
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rematch_ray.index.npy import LARGE_PAGE, ArrayWriter, map_npy


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


class Watched(io.FileIO):
    """A file that notes where each write begins and ends."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "wb")
        self.written: list[tuple[int, int]] = []

    def write(self, data: object) -> int:
        start = self.tell()
        size = super().write(data)  # type: ignore[arg-type]
        self.written.append((start, start + size))
        return size


@pytest.mark.parametrize("rows_at_once", [1, 7, 100])
def test_what_is_written_is_cut_at_the_boundaries_of_large_pages(
    rows_at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[Watched] = []

    def open_watched(path: Path, mode: str) -> io.BufferedWriter:
        watched.append(Watched(path))
        return io.BufferedWriter(watched[-1])

    monkeypatch.setattr("rematch_ray.index.npy.open", open_watched, raising=False)
    wanted = np.random.default_rng(0).integers(0, 256, (100, 70_001), dtype=np.uint8)
    with ArrayWriter(tmp_path / "a.npy", wanted.shape, wanted.dtype) as writer:
        for start in range(0, len(wanted), rows_at_once):
            writer.append(wanted[start : start + rows_at_once])
        entry = writer.finish()
    content = (tmp_path / "a.npy").read_bytes()
    assert np.array_equal(np.load(tmp_path / "a.npy"), wanted)
    assert (entry.bytes, entry.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    [file] = watched
    assert [start % LARGE_PAGE for start, _ in file.written] == [0] * len(file.written)
    assert len(file.written) == (2 if rows_at_once == 100 else 1 + len(content) // LARGE_PAGE)


def test_a_file_below_a_large_page_is_whole(tmp_path: Path) -> None:
    wanted = np.arange(12, dtype="<f4").reshape(3, 4)
    with ArrayWriter(tmp_path / "a.npy", wanted.shape, wanted.dtype) as writer:
        writer.append(wanted)
        entry = writer.finish()
    assert np.array_equal(map_npy(tmp_path / "a.npy"), wanted)
    assert entry.bytes == (tmp_path / "a.npy").stat().st_size
