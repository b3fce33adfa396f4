"""Before the first search the files of an index are in memory, the most used first, as room allows.

What lies in memory is asked of the system: pages of a mapping that this process has, in `smaps`.
"""

import logging
import os
from collections import Counter
from pathlib import Path

import pytest

from rematch_ray.index.build import build_index
from rematch_ray.index.changes import add_documents
from rematch_ray.index.generation import Generation
from rematch_ray.index.preload import Preloader, _of_group, by_use, unmapped_memory
from rematch_ray.index.search import SearchIndex
from rematch_ray.index.segment import Segment
from tests.index.made import unit, write_embeddings

ROOMY = 1 << 30


def vectors(path: Path, count: int, seed: int) -> Path:
    return write_embeddings(path, unit((count, 8, 16), seed), unit((count, 24), seed + 1))


@pytest.fixture
def index(tmp_path: Path) -> Path:
    build_index(vectors(tmp_path / "first", 400, 1), tmp_path / "index")
    return tmp_path / "index"


def in_memory(directory: Path) -> Counter[str]:
    """Pages of each file of a directory that this process has mapped and can read at once."""
    pages: Counter[str] = Counter()
    name = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        fields = line.split()
        if "-" in fields[0] and len(fields) >= 5:
            path = Path(fields[5]) if len(fields) == 6 else Path()
            name = path.name if path.parent == directory else None
        elif fields[0] == "Rss:" and name is not None:
            pages[name] += int(fields[1]) * 1024 // os.sysconf("SC_PAGE_SIZE")
    return pages


def num_pages(segment: Segment, name: str) -> int:
    return -(-segment.manifest.files[name].bytes // os.sysconf("SC_PAGE_SIZE"))


def test_every_page_of_a_segment_is_in_memory(index: Path) -> None:
    generation = Generation(index)
    [segment] = generation.segments
    assert in_memory(segment.directory).total() == 0
    preloader = Preloader(lambda: ROOMY)
    preloader.take(generation)
    found = in_memory(segment.directory)
    assert found == {name: num_pages(segment, name) for name in segment.manifest.files}
    assert found["originals_4_8.npy"] > 10
    preloader.keep([])
    assert in_memory(segment.directory).total() == 0


def test_what_small_budgets_read_comes_first(index: Path) -> None:
    [segment] = Generation(index).segments
    names = by_use(segment)
    assert sorted(names) == sorted(segment.manifest.files)
    places = [names.index(name) for name in (
        "keys.npy", "codes_0_1.npy", "codes_1_4.npy", "scales_4_8.npy", "payload.sqlite",
        "originals_0_1.npy", "originals_4_8.npy",
    )]  # fmt: skip
    assert places == sorted(places)
    assert names.index("codes_fused.npy") < names.index("codes_1_4.npy")
    [held] = Generation(index, device="cpu").segments
    assert not any(name.startswith(("codes_", "scales_")) for name in by_use(held))


def test_what_does_not_fit_stays_on_disk_and_is_named(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generation = Generation(index)
    [segment] = generation.segments
    names = by_use(segment)
    room = sum(segment.manifest.files[name].bytes for name in names[:-1])
    preloader = Preloader(lambda: room)
    with caplog.at_level(logging.INFO):
        preloader.take(generation)
    assert preloader.held(segment) == set(names[:-1])
    assert f"left on disk: {names[-1]}" in caplog.text
    none = Preloader(lambda: 0)
    none.take(generation)
    assert not none.held(segment)


def test_only_what_is_new_is_read(index: Path, tmp_path: Path) -> None:
    asked: list[int] = []

    def room() -> int:
        asked.append(1)
        return ROOMY

    preloader, first = Preloader(room), Generation(index)
    preloader.take(first)
    add_documents(index, vectors(tmp_path / "more", 3, 5))
    second = Generation(index)
    preloader.take(second)
    assert len(second.segments) == len(asked) == 2
    preloader.keep([second])
    assert all(preloader.held(segment) for segment in second.segments)
    preloader.keep([first])
    assert [bool(preloader.held(segment)) for segment in second.segments] == [True, False]


def test_an_index_that_is_opened_so_is_in_memory_and_so_is_the_latest(
    index: Path, tmp_path: Path
) -> None:
    def read(opened: SearchIndex) -> list[bool]:
        segments = opened._generation.segments
        pages = [in_memory(segment.directory) for segment in segments]
        return [
            # some are mapped by the index as well
            found >= Counter({name: num_pages(segment, name) for name in segment.manifest.files})
            for segment, found in zip(segments, pages, strict=True)
        ]

    mapped = SearchIndex.open(index)
    assert read(mapped) == [False]
    opened = SearchIndex.open(index, preload=True)
    assert read(opened) == [True]
    add_documents(index, vectors(tmp_path / "more", 3, 5))
    assert read(mapped.latest()) == [True, False]
    assert read(opened.latest()) == [True, True]


def test_a_file_that_is_gone_is_no_error_of_reading_ahead(
    index: Path, caplog: pytest.LogCaptureFixture
) -> None:
    generation = Generation(index)
    [segment] = generation.segments
    (segment.directory / "originals_4_8.npy").unlink()
    preloader = Preloader(lambda: ROOMY)
    preloader.take(generation)
    assert "originals_4_8.npy is not read ahead" in caplog.text
    assert preloader.held(segment) == set(segment.manifest.files) - {"originals_4_8.npy"}


def test_the_memory_of_a_control_group_counts(tmp_path: Path) -> None:
    assert _of_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\nfile 300\nfile_mapped 100\n")
    assert _of_group(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    # 300 that nobody uses, and 200 of files that nobody has mapped
    assert _of_group(tmp_path) == 500
    (tmp_path / "memory.max").write_text("100\n")
    assert _of_group(tmp_path) == 0
    assert unmapped_memory() > 0
